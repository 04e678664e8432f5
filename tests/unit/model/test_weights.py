import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptj_batch.errors import CheckpointError, ConfigError
from gptj_batch.model import (
    GPTJConfig,
    GPTJForCausalLM,
    GPTJForQuestionAnswering,
    GPTJForSequenceClassification,
    GPTJModel,
)
from gptj_batch.model.weights import torch_dtype


@pytest.fixture
def folder(config: GPTJConfig, tmp_path: Path) -> Path:
    GPTJForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    """Let `change` edit the tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_model_comes_back_as_it_was_and_in_eval_mode(config: GPTJConfig, tmp_path: Path) -> None:
    saved = GPTJForCausalLM(config)
    saved.save_pretrained(tmp_path)
    read = GPTJForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in saved.state_dict().items())
    assert not read.training
    assert all(parameter.requires_grad for parameter in read.parameters())
    assert read.config.architectures == ["GPTJForCausalLM"]


def test_the_dtype_is_the_one_given_or_the_configs_or_the_files(folder: Path) -> None:
    GPTJForCausalLM.from_pretrained(folder, dtype="bfloat16").save_pretrained(folder)
    assert GPTJForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    assert GPTJForCausalLM.from_pretrained(folder, dtype=torch.float16).dtype == torch.float16
    assert GPTJForCausalLM.from_pretrained(folder, dtype="auto").config.dtype == "bfloat16"
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert GPTJForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float8", "int8", torch.int8, "half precision", ""])
def test_a_dtype_that_no_model_is_run_in_is_refused(folder: Path, dtype: Any) -> None:
    with pytest.raises(ConfigError, match="dtype must be one of auto, float16"):
        GPTJForCausalLM.from_pretrained(folder, dtype=dtype)


def test_dtypes_are_taken_by_either_name() -> None:
    assert torch_dtype("torch.float16") == torch_dtype(torch.float16) == torch.float16
    assert torch_dtype(None) is None
    assert torch_dtype("auto") is None


def test_the_device_is_where_every_parameter_lies(folder: Path) -> None:
    model = GPTJForCausalLM.from_pretrained(folder, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert GPTJForCausalLM.from_pretrained(folder, device=torch.device("cpu")).device.type == "cpu"


def test_keywords_override_the_config(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"no score\.weight"):
        model = GPTJForSequenceClassification.from_pretrained(folder, num_labels=5)
    assert model.score.weight.shape == (5, 16)


def test_everything_that_does_not_fit_stands_in_one_error(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["transformer.h.1.mlp.fc_in.bias"], tensors["transformer.ln_f.weight"]
        tensors["transformer.h.2.ln_1.bias"] = torch.zeros(16)
        tensors["transformer.wte.weight"] = torch.zeros(30, 16)

    rewrite(folder, change)
    with pytest.raises(CheckpointError) as raised:
        GPTJForCausalLM.from_pretrained(folder)
    message = str(raised.value)
    assert "2 missing: transformer.h.1.mlp.fc_in.bias, transformer.ln_f.weight" in message
    assert "1 unexpected: transformer.h.2.ln_1.bias" in message
    assert "transformer.wte.weight: [30, 16] in the file, [31, 16] by the config" in message


def test_a_long_list_of_misfits_is_cut(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({f"extra.{i}": torch.zeros(1) for i in range(50)}))
    with pytest.raises(CheckpointError, match=r"50 unexpected: .* and 30 more"):
        GPTJForCausalLM.from_pretrained(folder)


def test_half_a_head_is_no_head(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("lm_head.bias"))
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.bias"):
        GPTJForCausalLM.from_pretrained(folder)


def test_constants_of_old_checkpoints_are_passed_over(folder: Path) -> None:
    buffers = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.1.attn.masked_bias": torch.ones(1)}
    rewrite(folder, lambda tensors: tensors.update(buffers))
    assert GPTJForCausalLM.from_pretrained(folder).num_parameters() > 0


def test_a_bare_model_reads_the_body_of_one_with_a_head(folder: Path) -> None:
    bare = GPTJModel.from_pretrained(folder)
    assert torch.equal(bare.wte.weight, GPTJForCausalLM.from_pretrained(folder).transformer.wte.weight)


@pytest.mark.parametrize("model_class", [GPTJForSequenceClassification, GPTJForQuestionAnswering])
def test_a_new_head_is_drawn_with_a_warning_or_refused(folder: Path, model_class: Any) -> None:
    with pytest.warns(UserWarning, match="newly initialised"):
        model = model_class.from_pretrained(folder)
    head = model.score.weight if model_class is GPTJForSequenceClassification else model.qa_outputs.weight
    assert head.std().item() == pytest.approx(0.4, rel=0.4)
    with pytest.raises(CheckpointError, match=f"it is not a {model_class.__name__} checkpoint"):
        model_class.from_pretrained(folder, allow_new_head=False)


def test_a_new_bias_of_a_tied_head_leaves_the_embedding_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    bare = GPTJModel(GPTJConfig(**tiny, tie_word_embeddings=True))
    bare.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"no lm_head\.bias"):
        model = GPTJForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, bare.wte.weight)


def test_a_tied_weight_is_written_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    GPTJForCausalLM(GPTJConfig(**tiny, tie_word_embeddings=True)).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(("size", "num_files"), [("5GB", 1), (10**9, 1), ("10KB", 4), ("0.01 MB", 4), (1, 25)])
def test_shards_are_at_most_as_large_as_asked(config: GPTJConfig, tmp_path: Path, size: Any, num_files: int) -> None:
    model = GPTJForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size=size)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == num_files
    if num_files > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
        assert index["weight_map"].keys() == model.state_dict().keys()


@pytest.mark.parametrize("size", ["large", "5 parsecs", ""])
def test_a_shard_size_that_is_none_is_refused(config: GPTJConfig, tmp_path: Path, size: str) -> None:
    with pytest.raises(ConfigError, match="max_shard_size"):
        GPTJModel(config).save_pretrained(tmp_path, max_shard_size=size)


def test_a_checkpoint_of_another_kind_of_model_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt_neox"}))
    with pytest.raises(CheckpointError, match="gpt_neox"):
        GPTJForCausalLM.from_pretrained(folder)
