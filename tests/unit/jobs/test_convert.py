import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptj_batch.errors import CheckpointError, ConfigError
from gptj_batch.model import GPTJConfig, GPTJForCausalLM, GPTJForSequenceClassification
from jobs.cli import main
from jobs.convert import TOKENIZER_FILES, convert


def tiny(kind: Any = GPTJForCausalLM) -> Any:
    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=300, n_positions=64, n_embd=16, n_layer=2, n_head=2, rotary_dim=4, eos_token_id=0, num_labels=3
    )
    return kind(config).eval()


@pytest.fixture
def source(tmp_path: Path, model_folder: Path) -> Path:
    """A checkpoint in float32 with its tokenizer."""
    folder = tmp_path / "source"
    tiny().save_pretrained(folder)
    shutil.copy(model_folder / "tokenizer.json", folder)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return settings


def test_a_checkpoint_comes_back_in_the_dtype_that_was_asked_for(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "target"
    assert convert(str(source), str(target), "float16", None) == 0
    before, after = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.half()), name
    assert config_of(target)["dtype"] == "float16"
    said = json.loads(capsys.readouterr().out)
    assert said["class"] == "GPTJForCausalLM" and said["dtype"] == "torch.float16"
    assert said["parameters"] == sum(tensor.numel() for tensor in after.values())


def test_without_a_dtype_nothing_is_rounded(source: Path, tmp_path: Path) -> None:
    convert(str(source), str(tmp_path / "target"), None, None)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "target"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert config_of(tmp_path / "target")["dtype"] == "float32"


def test_the_tokenizer_comes_along_whatever_its_files(source: Path, tmp_path: Path) -> None:
    for name in TOKENIZER_FILES[1:]:
        (source / name).write_text(f"{name} as it is")
    (source / "README.md").write_text("not the tokenizer's")
    convert(str(source), str(tmp_path / "target"), None, None)
    for name in TOKENIZER_FILES:
        assert (tmp_path / "target" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "target" / "README.md").exists()


def test_an_old_checkpoint_of_pickles_becomes_safetensors(source: Path, tmp_path: Path) -> None:
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(weights, source / "pytorch_model.bin")
    convert(str(source), str(tmp_path / "target"), "bfloat16", None)
    after = load_file(tmp_path / "target" / "model.safetensors")
    assert all(torch.equal(after[name], tensor.bfloat16()) for name, tensor in weights.items())
    assert not list((tmp_path / "target").glob("*.bin"))


def test_a_trained_head_is_kept(tmp_path: Path) -> None:
    model = tiny(GPTJForSequenceClassification)
    model.save_pretrained(tmp_path / "source")
    convert(str(tmp_path / "source"), str(tmp_path / "target"), None, None)
    assert config_of(tmp_path / "target")["architectures"] == ["GPTJForSequenceClassification"]
    again = GPTJForSequenceClassification.from_pretrained(tmp_path / "target")
    assert torch.equal(again.score.weight, model.score.weight)


def test_a_checkpoint_that_names_no_class_is_a_language_model(source: Path, tmp_path: Path) -> None:
    settings = config_of(source)
    del settings["architectures"]
    (source / "config.json").write_text(json.dumps(settings))
    convert(str(source), str(tmp_path / "target"), None, None)
    assert config_of(tmp_path / "target")["architectures"] == ["GPTJForCausalLM"]


def test_a_head_that_is_not_there_is_not_made_up(source: Path, tmp_path: Path) -> None:
    settings = {**config_of(source), "architectures": ["GPTJForSequenceClassification"]}
    (source / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        convert(str(source), str(tmp_path / "target"), None, None)
    assert not (tmp_path / "target").exists()


def test_a_class_that_is_none_of_gptjs_models_is_refused(source: Path, tmp_path: Path) -> None:
    name = "LlamaForCausalLM"
    (source / "config.json").write_text(json.dumps({**config_of(source), "architectures": [name]}))
    with pytest.raises(CheckpointError, match=f"architectures names {name}, which is no GPT-J class"):
        convert(str(source), str(tmp_path / "target"), None, None)


def test_a_folder_that_is_not_empty_is_never_written_into(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    for folder in (target, source):
        with pytest.raises(CheckpointError, match="is not an empty folder; give a new one"):
            convert(str(source), str(folder), None, None)
    assert [path.name for path in target.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_as_good_as_a_new_one(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    assert convert(str(source), str(tmp_path / "target"), None, None) == 0


def test_a_dtype_that_no_model_is_run_in_is_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype must be one of"):
        convert(str(source), str(tmp_path / "target"), "int8", None)
    assert not (tmp_path / "target").exists()


def test_the_command_ends_with_2_where_there_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "none"), str(tmp_path / "target")]) == 2
    assert "neither a folder nor a hub name" in capsys.readouterr().err


def test_a_target_that_is_a_file_and_an_architecture_that_is_no_model_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        convert(str(source), str(tmp_path / "target"), None, None)
    (source / "config.json").write_text(json.dumps({**config_of(source), "architectures": ["GPTJConfig"]}))
    with pytest.raises(CheckpointError, match="architectures names GPTJConfig"):
        convert(str(source), str(tmp_path / "other"), None, None)
