"""A model's folder: where it is (on disk, in the package, on the hub), and what can be said of it without torch."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from gptj_batch.demo import DemoHead, demo_folder
from gptj_batch.errors import CheckpointError

DEMO: Final = "demo"

# What stands on a GPT-J; the demo model has each of them. "none" reads the body alone, of a checkpoint of any class.
Head = DemoHead | Literal["none"]
CLASS_NAMES: Final[dict[Head, str]] = {
    "causal-lm": "GPTJForCausalLM",
    "sequence-classification": "GPTJForSequenceClassification",
    "question-answering": "GPTJForQuestionAnswering",
    "none": "GPTJModel",
}
DEFAULT_WIDTH: Final = 4096  # of a config.json that does not say: that of EleutherAI/gpt-j-6B
OTHER_NAMES: Final = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
}  # those that transformers reads as well
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]

# Never fetched: other frameworks' weights. Pickles are fetched only where a repository has nothing else.
SMALL_FILES: Final = ["*.json", "merges.txt", "vocab.txt"]
HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_folder(path: str | Path, revision: str | None = None, head: Head = "causal-lm") -> Path:
    """Return the local folder of a model given as a folder or a hub name such as `EleutherAI/gpt-j-6B`.

    `demo` is the model in the package, with the head asked for (write ./demo for a folder of that name); otherwise an
    existing folder wins.
    Raises CheckpointError where there is neither.
    """
    if str(path) == DEMO:
        return demo_folder("causal-lm" if head == "none" else head)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"model path {folder} is a file; give the folder that holds config.json and the weights")
    if not HUB_NAME.fullmatch(str(path)):
        raise CheckpointError(
            f"model path {str(path)!r} is neither a folder nor a hub name of the form owner/model; check the path, and "
            "give the folder that holds config.json and the weights"
        )
    return _download(str(path), revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*SMALL_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            patterns = [*SMALL_FILES, "pytorch_model*.bin"]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        return folder
    except Exception as error:  # noqa: BLE001 - the client lets the errors of its HTTP library through
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"
        wanted = name if revision is None else f"{name} (revision {revision})"
        raise CheckpointError(
            f"model {wanted} is no folder here and could not be fetched from the hub ({reason}); "
            "give a local folder, or make the hub reachable"
        ) from None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a run must know of its model before any weight is read.

    labels, problem_type: of a classification head, in the order of its logits; `config.json` has them
    """

    folder: Path
    n_positions: int
    n_embd: int
    n_layer: int
    vocab_size: int
    architectures: tuple[str, ...]
    labels: tuple[str, ...]
    problem_type: ProblemType
    identity: str


def read_facts(path: str | Path, revision: str | None = None, head: Head = "causal-lm") -> ModelFacts:
    """Return the facts of a model. Raises CheckpointError where its config.json is missing or is not a GPT-J's."""
    folder = resolve_folder(path, revision, head)
    config = read_config(folder)
    labels = label_names(config, folder)
    return ModelFacts(
        folder=folder,
        n_positions=_whole_number(config, "n_positions", 2048, folder),
        n_embd=_whole_number(config, "n_embd", DEFAULT_WIDTH, folder),
        n_layer=_whole_number(config, "n_layer", 28, folder),
        vocab_size=_whole_number(config, "vocab_size", 50400, folder),
        architectures=_architectures(config, folder),
        labels=labels,
        problem_type=_problem_type(config, len(labels), folder),
        identity=identity(folder),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's `config.json`. Raises CheckpointError where it is missing or is not a GPT-J's."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} cannot be read ({type(error).__name__}); give a model folder"
        ) from None
    if not isinstance(config, dict) or config.get("model_type", "gptj") != "gptj":
        kind = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(f"{folder / 'config.json'}: model_type is {kind!r}; only 'gptj' is run here")
    return config


def _whole_number(config: dict[str, Any], name: str, default: int, folder: Path) -> int:
    # The other name goes first, as in `GPTJConfig`.
    name = OTHER_NAMES[name] if OTHER_NAMES.get(name) in config else name
    value = config.get(name, default)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{folder / 'config.json'}: {name} must be a whole number of at least 1, got {value!r}")
    return value


def _architectures(config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    value = config.get("architectures") or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{folder / 'config.json'}: architectures must be a list of names, got {value!r}")
    return tuple(value)


def label_names(config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """Return the names of a classification head's logits; LABEL_0, LABEL_1, ... where the config has none.

    Raises CheckpointError.
    """
    names = config.get("id2label")
    if names is None:
        count = _whole_number({"num_labels": config.get("num_labels") or 2}, "num_labels", 2, folder)
        return tuple(f"LABEL_{index}" for index in range(count))
    keys = [str(index) for index in range(len(names))] if isinstance(names, dict) else []
    if not keys or set(names) != set(keys) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{folder / 'config.json'}: id2label must give a name to each of 0, 1, 2, ...")
    return tuple(names[key] for key in keys)


def _problem_type(config: dict[str, Any], num_labels: int, folder: Path) -> ProblemType:
    """Return what a classification head was trained for; without a word on it, one label is a regression."""
    problem: Any = config.get("problem_type")
    if problem is None:
        return "regression" if num_labels == 1 else "single_label_classification"
    if problem not in get_args(ProblemType):
        known = ", ".join(get_args(ProblemType))
        raise CheckpointError(f"{folder / 'config.json'}: problem_type must be null or one of {known}, got {problem!r}")
    checked: ProblemType = problem
    return checked


# Of each weight file, its size and this much of both ends: a safetensors file's header is at its start. Reading all of
# 12 GB would cost every start a minute; a change in the middle alone goes unseen, which README says.
SAMPLED_BYTES: Final = 1 << 20


def identity(folder: Path) -> str:
    """Return a hash over a model's configuration, tokenizer, and the index, sizes and ends of its weight files."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        if file.suffix == ".json" or file.name == "merges.txt":
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        elif file.suffix in (".safetensors", ".bin"):
            size = file.stat().st_size
            digest.update(f"{file.name}\0{size}\0".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(SAMPLED_BYTES))
                stream.seek(max(0, size - SAMPLED_BYTES))
                digest.update(stream.read(SAMPLED_BYTES))
    return digest.hexdigest()
