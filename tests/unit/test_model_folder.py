import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from gptj_batch import model_folder
from gptj_batch.demo import demo_folder
from gptj_batch.errors import CheckpointError
from gptj_batch.model_folder import CLASS_NAMES, Head, identity, read_facts, resolve_folder


def test_an_existing_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_folder(tmp_path) == tmp_path
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("owner/model") == Path("owner/model")


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_folder(tmp_path / "model.safetensors")


@pytest.mark.parametrize("path", ["gptj", "/no/such/folder", "../elsewhere/gptj", "a/b/c", "no such"])
def test_what_is_neither_folder_nor_hub_name_is_never_looked_up(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(CheckpointError, match="neither a folder nor a hub name"):
        resolve_folder(path)


def test_without_network_a_hub_name_gives_one_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"owner/model \(revision v2\).*could not be fetched"):
        resolve_folder("owner/model", "v2")


def test_errors_of_the_clients_http_library_do_not_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise Exception("Name or service not known")  # httpx.ConnectError is no OSError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="Name or service not known"):
        resolve_folder("owner/model")


def test_without_network_what_was_fetched_before_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--owner--model"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").touch()
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve_folder("owner/model") == snapshot


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_pickles_are_fetched_only_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    asked: list[list[str]] = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    (tmp_path / f"model.{ending}").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_folder("owner/model") == tmp_path
    assert ["pytorch_model*.bin" in patterns for patterns in asked] == [False, True][: 1 + (ending == "bin")]
    assert not any("*.msgpack" in patterns or "*.h5" in patterns for patterns in asked)


# Facts


def write_model(folder: Path, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"model_type": "gptj", "n_positions": 64, "vocab_size": 300, **settings}
    (folder / "config.json").write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))
    return folder


def test_the_facts_of_a_model_are_those_of_its_config(tmp_path: Path) -> None:
    facts = read_facts(write_model(tmp_path, architectures=["GPTJForCausalLM"]))
    assert (facts.folder, facts.n_positions, facts.vocab_size) == (tmp_path, 64, 300)
    assert facts.architectures == ("GPTJForCausalLM",) and len(facts.identity) == 64


def test_what_a_config_leaves_out_is_as_gptj_has_it(tmp_path: Path) -> None:
    facts = read_facts(write_model(tmp_path, model_type=..., n_positions=..., vocab_size=..., architectures=None))
    assert (facts.n_positions, facts.vocab_size, facts.architectures) == (2048, 50400, ())
    assert (facts.n_embd, facts.n_layer) == (4096, 28)


def test_sizes_may_stand_under_transformers_other_names(tmp_path: Path) -> None:
    names = {"hidden_size": 32, "num_hidden_layers": 3, "max_position_embeddings": 48}
    facts = read_facts(write_model(tmp_path, n_embd=64, **names))
    assert (facts.n_embd, facts.n_layer, facts.n_positions) == (32, 3, 48)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config\.json cannot be read \(FileNotFoundError\); give a model folder"),
        ("{", r"config\.json cannot be read \(JSONDecodeError\)"),
        ("\xff", r"config\.json cannot be read \(UnicodeDecodeError\)"),
        ("[]", "model_type is 'list'; only 'gptj' is run here"),
        ('{"model_type": "llama"}', "model_type is 'llama'; only 'gptj' is run here"),
        ('{"model_type": null}', "model_type is None; only 'gptj' is run here"),
        ('{"n_positions": 0}', "n_positions must be a whole number of at least 1, got 0"),
        ('{"n_positions": "64"}', "n_positions must be a whole number of at least 1, got '64'"),
        ('{"n_positions": true}', "n_positions must be a whole number of at least 1, got True"),
        ('{"n_embd": 0}', "n_embd must be a whole number of at least 1, got 0"),
        ('{"hidden_size": 0}', "hidden_size must be a whole number of at least 1, got 0"),
        ('{"n_layer": null}', "n_layer must be a whole number of at least 1, got None"),
        ('{"vocab_size": 1.5}', r"vocab_size must be a whole number of at least 1, got 1\.5"),
        ('{"vocab_size": null}', "vocab_size must be a whole number of at least 1, got None"),
        ('{"architectures": "GPTJForCausalLM"}', "architectures must be a list of names, got 'GPTJForCausalLM'"),
        ('{"architectures": [1]}', r"architectures must be a list of names, got \[1\]"),
    ],
)
def test_a_config_that_is_no_gptjs_is_refused_with_its_file(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_facts(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


# Identity


def test_the_same_files_in_another_place_are_the_same_model(tmp_path: Path) -> None:
    one, other = (write_model(tmp_path / name) for name in ("one", "other"))
    for folder in (one, other):
        (folder / "model.safetensors").write_bytes(b"weights")
    assert identity(one) == identity(other)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "model.safetensors.index.json",
        "model.safetensors",
        "pytorch_model.bin",
    ],
)
def test_what_decides_the_results_decides_the_identity(tmp_path: Path, name: str) -> None:
    write_model(tmp_path)
    seen = {identity(tmp_path)}
    for content in (b"{}", b"{} ", b"[]"):
        (tmp_path / name).write_bytes(content)
        seen.add(identity(tmp_path))
    assert len(seen) == 4


def test_what_decides_nothing_does_not(tmp_path: Path) -> None:
    before = identity(write_model(tmp_path))
    (tmp_path / "README.md").write_text("a model")
    (tmp_path / "logs").mkdir()
    (tmp_path / "old.json").mkdir()
    assert identity(tmp_path) == before


def test_of_large_weights_both_ends_and_the_size_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "SAMPLED_BYTES", 8)
    write_model(tmp_path)
    seen = {}
    for name, content in (
        ("first", b"a" + b"." * 30),
        ("last", b"." * 30 + b"a"),
        ("middle", b"." * 15 + b"a" + b"." * 15),
        ("other middle", b"." * 15 + b"b" + b"." * 15),
        ("longer", b"." * 15 + b"a" + b"." * 16),
    ):
        (tmp_path / "model.safetensors").write_bytes(content)
        seen[name] = identity(tmp_path)
    assert len(set(seen.values())) == 4
    assert seen["middle"] == seen["other middle"], "a change in the middle alone goes unseen, as README says"


def test_a_small_file_counts_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "SAMPLED_BYTES", 8)
    write_model(tmp_path)
    seen = set()
    for position in range(12):
        (tmp_path / "model.safetensors").write_bytes(b"." * position + b"a" + b"." * (11 - position))
        seen.add(identity(tmp_path))
    assert len(seen) == 12


def test_the_demo_is_the_model_in_the_package_whatever_stands_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert resolve_folder("demo") == demo_folder("causal-lm")
    assert resolve_folder("./demo") == Path("demo")


def test_a_home_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_folder("~/model") == tmp_path / "model"


def test_the_demo_has_a_folder_for_each_head() -> None:
    heads: tuple[Head, ...] = ("causal-lm", "sequence-classification", "question-answering")
    assert [resolve_folder("demo", head=head) for head in heads] == [demo_folder(head) for head in heads]
    assert list(CLASS_NAMES) == [*heads, "none"]
    assert resolve_folder("demo", head="none") == demo_folder("causal-lm"), "any of them would do"


@pytest.mark.parametrize(
    ("settings", "labels", "problem"),
    [
        ({}, ("LABEL_0", "LABEL_1"), "single_label_classification"),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2"), "single_label_classification"),
        ({"id2label": {"1": "b", "0": "a"}}, ("a", "b"), "single_label_classification"),
        ({"id2label": {"0": "a"}}, ("a",), "regression"),
        ({"id2label": {"0": "a"}, "problem_type": "multi_label_classification"}, ("a",), "multi_label_classification"),
    ],
)
def test_a_classifier_names_its_labels_and_what_it_was_trained_for(
    tmp_path: Path, settings: dict[str, Any], labels: tuple[str, ...], problem: str
) -> None:
    facts = read_facts(write_model(tmp_path, **settings))
    assert (facts.labels, facts.problem_type) == (labels, problem)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must give a name to each of 0, 1, 2"),
        ({"id2label": {"0": 1}}, "id2label must give a name"),
        ({"id2label": ["a"]}, "id2label must give a name"),
        ({"num_labels": -1}, "num_labels must be a whole number of at least 1, got -1"),
        ({"problem_type": "ranking"}, "problem_type must be null or one of regression, .*, got 'ranking'"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_facts(write_model(tmp_path, **settings))
