"""Reading a model from a checkpoint, and writing it to one."""

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gptj_batch.errors import CheckpointError, ConfigError
from gptj_batch.model.checkpoint import SAFETENSORS_INDEX, SAFETENSORS_NAME, Checkpoint, open_checkpoint
from gptj_batch.model.config import DTYPES, GPTJConfig
from gptj_batch.model_folder import resolve_folder

if TYPE_CHECKING:
    from gptj_batch.model.backbone import GPTJPreTrainedModel

BODY: Final = "transformer."
HEADS: Final = ("lm_head.", "score.", "qa_outputs.")
# Constants that old checkpoints stored as buffers: causal masks and rotary tables.
KNOWN_BUFFERS: Final = re.compile(r"(^|\.)attn\.(bias|masked_bias|embed_positions)$")
MAX_LISTED: Final = 20
SIZE_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


M = TypeVar("M", bound="GPTJPreTrainedModel")


def load(
    cls: type[M],
    path: str | Path,
    revision: str | None,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    allow_new_head: bool,
    config_overrides: dict[str, Any],
) -> M:
    """Read a model; see `GPTJPreTrainedModel.from_pretrained`."""
    folder = resolve_folder(path, revision)
    config = GPTJConfig.from_pretrained(folder, **config_overrides)
    checkpoint = open_checkpoint(folder)
    final_dtype = torch_dtype(dtype) or torch_dtype(config.dtype) or checkpoint.dtype()
    with torch.device("meta"):
        model = cls(config)
    sources, new_head = _match(model, checkpoint, folder)
    if new_head and not allow_new_head:
        raise CheckpointError(f"{folder} has no {', '.join(new_head)}: it is not a {cls.__name__} checkpoint")
    for name, parameter in list(model.named_parameters()):
        tensor = torch.empty(parameter.shape, dtype=final_dtype, device=device or "cpu")
        if name in sources:
            checkpoint.copy_into(sources[name], tensor)
        _replace(model, name, tensor)
    if new_head:
        _initialise(model, new_head, folder)
    config.dtype = str(final_dtype).removeprefix("torch.")
    return model.eval()


def torch_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """Return the torch dtype of a name such as "float16"; None for None and "auto".

    Raises ConfigError for one that no model is run in.
    """
    text = str(name).removeprefix("torch.")
    if name is None or text == "auto":
        return None
    if text not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    dtype: torch.dtype = getattr(torch, text)
    return dtype


def _match(model: nn.Module, checkpoint: Checkpoint, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Return each parameter's name in the checkpoint, and the parameters of a head that the checkpoint does not have.

    Raises CheckpointError that lists what does not fit.
    """
    stored = checkpoint.shapes()
    stored_has_body_prefix = any(name.startswith(BODY) for name in stored)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    sources = {name: _stored_name(name, hasattr(model, "transformer"), stored_has_body_prefix) for name in wanted}
    missing = [name for name, source in sources.items() if source not in stored]
    head = [name for name in wanted if name.startswith(HEADS)]
    new_head = head if head and set(head) <= set(missing) else []
    unexpected = [name for name in stored if name not in set(sources.values()) and not _is_ignored(name, head)]
    misshaped = [
        f"{name}: {list(stored[source])} in the file, {list(wanted[name])} by the config"
        for name, source in sources.items()
        if source in stored and stored[source] != wanted[name]
    ]
    problems = [
        *_listed("missing", [name for name in missing if name not in new_head]),
        *_listed("unexpected", unexpected),
        *_listed("of another shape", misshaped),
    ]
    if problems:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json; " + "; ".join(problems))
    return {name: source for name, source in sources.items() if name not in new_head}, new_head


def _is_ignored(name: str, head: list[str]) -> bool:
    """Tell whether a stored tensor may stay unread: a constant of old checkpoints, or another class's head."""
    of_other_head = name.startswith(HEADS) and not any(name.split(".")[0] == own.split(".")[0] for own in head)
    return of_other_head or name == "lm_head.weight" or KNOWN_BUFFERS.search(name) is not None


def _stored_name(name: str, model_has_body_prefix: bool, stored_has_body_prefix: bool) -> str:
    """Return a parameter's name in a checkpoint of the bare model or of one with a head."""
    if name.startswith(HEADS) or model_has_body_prefix == stored_has_body_prefix:
        return name
    return name.removeprefix(BODY) if model_has_body_prefix else BODY + name


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return [f"{len(names)} {what}: {', '.join(names[:MAX_LISTED])}{more}"]


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a real tensor where the model has a parameter without storage; tied parameters stay tied."""
    module_name, _, parameter_name = name.rpartition(".")
    old = model.get_parameter(name)
    new = nn.Parameter(tensor)
    setattr(model.get_submodule(module_name), parameter_name, new)
    for module in model.modules():
        for other, parameter in list(module.named_parameters(recurse=False)):
            if parameter is old:
                setattr(module, other, new)


def _initialise(model: "GPTJPreTrainedModel", names: list[str], folder: Path) -> None:
    # By parameter, not by module: a tied lm_head.weight is the embedding, which was read.
    for name in names:
        parameter = model.get_parameter(name)
        if name.endswith(".bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, 0.0, model.config.initializer_range)
    warnings.warn(
        f"{folder} has no {', '.join(names)}: this head of {type(model).__name__} is newly initialised; "
        "train it before its outputs mean anything",
        stacklevel=4,
    )


def save(model: "GPTJPreTrainedModel", folder: Path, max_shard_size: int | str) -> None:
    """Write a model; see `GPTJPreTrainedModel.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    shards = _split(tensors, _num_bytes(max_shard_size))
    files = [_shard_name(index, len(shards)) for index in range(len(shards))]
    for old in [*folder.glob("model-*-of-*.safetensors"), folder / SAFETENSORS_NAME, folder / SAFETENSORS_INDEX]:
        old.unlink(missing_ok=True)
    for file, names in zip(files, shards, strict=True):
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def _split(tensors: dict[str, Tensor], max_bytes: int) -> list[list[str]]:
    """Cut the names, in order, into shards of at most `max_bytes`; a larger tensor has one to itself."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    return shards


def _shard_name(index: int, count: int) -> str:
    return SAFETENSORS_NAME if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _num_bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", size.strip())
    if match is None or match[2].upper() not in SIZE_UNITS:
        raise ConfigError(f"max_shard_size must be a number of bytes or a size such as 5GB, got {size!r}")
    return int(float(match[1]) * SIZE_UNITS[match[2].upper()])
