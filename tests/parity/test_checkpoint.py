"""Checkpoints both ways: what transformers writes we read, what we write transformers reads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import gptj_batch.model
from gptj_batch.errors import CheckpointError

CLASSES = ("GPTJModel", "GPTJForCausalLM", "GPTJForSequenceClassification", "GPTJForQuestionAnswering")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def assert_same_bits(ours: Any, theirs: Any) -> None:
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard_size", ["5GB", "100KB"])
def test_we_read_every_class_in_every_dtype_single_or_sharded(
    oracle: Any, tmp_path: Path, class_name: str, dtype: torch.dtype, shard_size: str
) -> None:
    theirs = oracle.random(class_name).to(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "100KB")
    ours = getattr(gptj_batch.model, class_name).from_pretrained(tmp_path)
    assert_same_bits(ours, theirs)
    assert not ours.training


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard_size", ["5GB", "100KB"])
def test_transformers_reads_what_we_write_and_so_do_we(
    oracle: Any, tmp_path: Path, class_name: str, dtype: torch.dtype, shard_size: str
) -> None:
    ours = getattr(gptj_batch.model, class_name).from_pretrained(oracle.pair(class_name).folder, dtype=dtype)
    ours.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "100KB")
    theirs, report = getattr(transformers, class_name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same_bits(ours, theirs)
    assert_same_bits(ours, getattr(gptj_batch.model, class_name).from_pretrained(tmp_path))


def test_saving_again_leaves_no_old_shard_behind(oracle: Any, tmp_path: Path) -> None:
    ours = oracle.pair("GPTJModel").ours
    ours.save_pretrained(tmp_path, max_shard_size="100KB")
    ours.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.glob("*.safetensors*")) == ["model.safetensors"]
    ours.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_bits(ours, transformers.GPTJModel.from_pretrained(tmp_path))


def write_legacy(folder: Path, tensors: dict[str, Tensor], shards: int, zipped: bool = True) -> None:
    """Write pytorch_model.bin as transformers used to, with the buffers that old GPT-J checkpoints carry."""
    buffers = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e9),
    }
    everything = {**buffers, **tensors}
    names = list(everything)
    files = ["pytorch_model.bin"] if shards == 1 else [f"pytorch_model-{i + 1:05d}.bin" for i in range(shards)]
    parts = {file: names[index::shards] for index, file in enumerate(files)}
    for file, held in parts.items():
        part = {name: everything[name] for name in held}
        torch.save(part, folder / file, _use_new_zipfile_serialization=zipped)
    if shards > 1:
        weight_map = {name: file for file, held in parts.items() for name in held}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(("shards", "zipped"), [(1, True), (3, True), (1, False)])
def test_we_read_the_legacy_pickles(oracle: Any, tmp_path: Path, shards: int, zipped: bool) -> None:
    theirs = oracle.random("GPTJForCausalLM")
    theirs.config.save_pretrained(tmp_path)
    write_legacy(tmp_path, theirs.state_dict(), shards, zipped)
    assert_same_bits(gptj_batch.model.GPTJForCausalLM.from_pretrained(tmp_path), theirs)


def test_converting_while_loading_rounds_as_torch_does(oracle: Any) -> None:
    pair = oracle.pair("GPTJForCausalLM")
    for dtype, name in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        ours = gptj_batch.model.GPTJForCausalLM.from_pretrained(pair.folder, dtype=name)
        assert ours.dtype == dtype
        assert ours.config.dtype == name
        assert_same_bits(ours, gptj_batch.model.GPTJForCausalLM.from_pretrained(pair.folder, dtype=dtype))
        assert_same_bits(ours, transformers.GPTJForCausalLM.from_pretrained(pair.folder, dtype=dtype))


@torch.no_grad()
def test_tied_embeddings_travel_both_ways(oracle: Any, tmp_path: Path) -> None:
    pair = oracle.pair("GPTJForCausalLM", tie_word_embeddings=True)
    assert pair.ours.lm_head.weight is pair.ours.transformer.wte.weight
    pair.ours.save_pretrained(tmp_path)
    theirs = transformers.GPTJForCausalLM.from_pretrained(tmp_path)
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    batch = oracle.tokens(5, 7)
    oracle.assert_equal(pair.ours(**batch), pair.theirs(**batch))
    assert_same_bits(pair.ours, theirs)


def test_a_bare_checkpoint_gives_its_body_to_a_model_with_a_head(oracle: Any) -> None:
    pair = oracle.pair("GPTJModel")
    for class_name in CLASSES[1:]:
        with pytest.warns(UserWarning, match="newly initialised"):
            ours = getattr(gptj_batch.model, class_name).from_pretrained(pair.folder)
        assert_same_bits(ours.transformer, pair.theirs)


def test_a_tied_model_of_a_bare_checkpoint_keeps_the_embedding_that_it_read(oracle: Any) -> None:
    pair = oracle.pair("GPTJModel", tie_word_embeddings=True)
    with pytest.warns(UserWarning, match=r"no lm_head\.bias"):
        ours = gptj_batch.model.GPTJForCausalLM.from_pretrained(pair.folder)
    assert torch.equal(ours.lm_head.weight, pair.theirs.wte.weight)
    assert not ours.lm_head.bias.any()


@pytest.mark.parametrize("class_name", CLASSES[1:])
def test_a_checkpoint_with_a_head_gives_its_body_to_every_other_class(oracle: Any, class_name: str) -> None:
    pair = oracle.pair(class_name)
    assert_same_bits(gptj_batch.model.GPTJModel.from_pretrained(pair.folder), pair.theirs.transformer)
    for other in set(CLASSES[1:]) - {class_name}:
        with pytest.warns(UserWarning, match="newly initialised"):
            ours = getattr(gptj_batch.model, other).from_pretrained(pair.folder)
        assert_same_bits(ours.transformer, pair.theirs.transformer)
        with pytest.raises(CheckpointError, match=f"not a {other} checkpoint"):
            getattr(gptj_batch.model, other).from_pretrained(pair.folder, allow_new_head=False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_inner": 40, "rotary_dim": 8, "activation_function": "relu", "pad_token_id": 3, "eos_token_id": [1, 2]},
        {"id2label": {0: "World", 1: "Sports", 2: "Business"}, "problem_type": "multi_label_classification"},
        {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": True, "a_key_of_mine": {"kept": [1]}},
        {"num_labels": 1, "use_cache": False, "output_hidden_states": True, "dtype": "float16"},
    ],
)
def test_configs_are_read_by_each_other(tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = transformers.GPTJConfig(n_embd=32, n_head=2, **{"rotary_dim": 8, **settings})
    ours = gptj_batch.model.GPTJConfig(n_embd=32, n_head=2, **{"rotary_dim": 8, **settings})
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    read_by_us = gptj_batch.model.GPTJConfig.from_pretrained(tmp_path / "theirs")
    read_by_them = transformers.GPTJConfig.from_pretrained(tmp_path / "ours")
    names = [*FIELDS, *settings] if "a_key_of_mine" not in settings else FIELDS
    for name in names:
        expected = getattr(theirs, name)
        expected = str(expected).removeprefix("torch.") if name == "dtype" else expected
        assert getattr(ours, name) == expected, name
        assert getattr(read_by_us, name) == expected, name
        assert str(getattr(read_by_them, name)).removeprefix("torch.") == str(expected), name
    assert read_by_us.extra.get("a_key_of_mine") == settings.get("a_key_of_mine")
    assert getattr(read_by_them, "a_key_of_mine", None) == settings.get("a_key_of_mine")


FIELDS = [
    *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "rotary_dim", "n_inner", "activation_function"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "num_labels", "id2label"),
    *("problem_type", "return_dict", "output_attentions", "output_hidden_states"),
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings"),
]


def test_an_older_config_of_the_hub_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """The keys of EleutherAI/gpt-j-6B's own config.json."""
    published = {
        "activation_function": "gelu_new",
        "architectures": ["GPTJForCausalLM"],
        "attn_pdrop": 0.0,
        "bos_token_id": 50256,
        "embd_pdrop": 0.0,
        "eos_token_id": 50256,
        "gradient_checkpointing": False,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gptj",
        "n_embd": 4096,
        "n_head": 16,
        "n_inner": None,
        "n_layer": 28,
        "n_positions": 2048,
        "resid_pdrop": 0.0,
        "rotary": True,
        "rotary_dim": 64,
        "scale_attn_weights": True,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
        "tie_word_embeddings": False,
        "tokenizer_class": "GPT2Tokenizer",
        "transformers_version": "4.18.0.dev0",
        "use_cache": True,
        "vocab_size": 50400,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    ours = gptj_batch.model.GPTJConfig.from_pretrained(tmp_path)
    theirs = transformers.GPTJConfig.from_pretrained(tmp_path)
    assert [getattr(ours, name) for name in FIELDS] == [getattr(theirs, name) for name in FIELDS]
    ours.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert published.items() <= written.items()
