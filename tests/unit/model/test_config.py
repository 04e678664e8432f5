import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from gptj_batch.errors import CheckpointError, ConfigError
from gptj_batch.model import GPTJConfig

# The signature of the public documentation.
DOCUMENTED = {
    "vocab_size": 50400,
    "n_positions": 2048,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "layer_norm_epsilon": 1e-05,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


def test_the_fields_and_defaults_are_those_of_the_documentation() -> None:
    parameters = list(inspect.signature(GPTJConfig).parameters.values())
    assert {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD} == DOCUMENTED
    config = GPTJConfig()
    assert {name: getattr(config, name) for name in DOCUMENTED} == DOCUMENTED
    assert (config.head_dim, config.inner_dim, config.num_labels) == (256, 16384, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", "31"),
        ("n_positions", -1),
        ("n_embd", 16.0),
        ("n_layer", 0),
        ("n_layer", True),
        ("n_head", 3),
        ("n_head", 0),
        ("rotary_dim", 3),
        ("rotary_dim", 10),
        ("rotary_dim", None),
        ("n_inner", 0),
        ("activation_function", "gelu_fast"),
        ("resid_pdrop", 1.5),
        ("embd_pdrop", -0.1),
        ("attn_pdrop", "0"),
        ("layer_norm_epsilon", 0.0),
        ("layer_norm_epsilon", float("nan")),
        ("initializer_range", -1.0),
        ("use_cache", "yes"),
        ("tie_word_embeddings", 1),
        ("output_attentions", None),
        ("bos_token_id", "<s>"),
        ("eos_token_id", [1, "2"]),
        ("pad_token_id", 1.5),
        ("problem_type", "ranking"),
        ("num_labels", 0),
        ("num_labels", "3"),
        ("id2label", {0: "a", 2: "b"}),
        ("id2label", {}),
        ("id2label", {"a": 0}),
        ("id2label", ["a", "b"]),
        ("label2id", {"a": "x"}),
        ("dtype", "int8"),
    ],
)
def test_a_value_that_no_model_can_have_is_refused_with_the_fields_name(
    tiny: dict[str, Any], name: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be .* got "):
        GPTJConfig(**{**tiny, name: value})


def test_a_single_label_is_no_choice(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="num_labels"):
        GPTJConfig(**tiny, num_labels=1, problem_type="single_label_classification")


def test_the_general_names_are_read_written_and_taken_as_arguments(tiny: dict[str, Any]) -> None:
    config = GPTJConfig(
        vocab_size=31,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=3,
        max_position_embeddings=8,
        rotary_dim=4,
    )
    assert (config.n_embd, config.n_head, config.n_layer, config.n_positions) == (16, 2, 3, 8)
    assert (config.hidden_size, config.num_attention_heads) == (16, 2)
    assert (config.num_hidden_layers, config.max_position_embeddings) == (3, 8)
    config.num_hidden_layers = 1
    assert config.n_layer == 1
    assert "hidden_size" not in config.to_dict()


def test_labels_are_named_by_number_by_names_or_by_ids(tiny: dict[str, Any]) -> None:
    assert GPTJConfig(**tiny, num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    named = GPTJConfig(**tiny, id2label={"0": "World", "1": "Sports", "2": "Business"})
    assert named.num_labels == 3
    assert named.label2id == {"World": 0, "Sports": 1, "Business": 2}
    assert GPTJConfig(**tiny, label2id={"no": 0, "yes": "1"}).id2label == {0: "no", 1: "yes"}


def test_another_number_of_labels_drops_the_old_names(tiny: dict[str, Any]) -> None:
    values = GPTJConfig(**tiny, id2label={0: "a", 1: "b"}).to_dict()
    assert GPTJConfig.from_dict(values, num_labels=2).id2label == {0: "a", 1: "b"}
    assert GPTJConfig.from_dict(values, num_labels=3).label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


def test_new_names_replace_both_label_maps(tiny: dict[str, Any]) -> None:
    values = GPTJConfig(**tiny, id2label={0: "a", 1: "b"}).to_dict()
    assert GPTJConfig.from_dict(values, id2label={0: "x", 1: "y"}).label2id == {"x": 0, "y": 1}
    assert GPTJConfig.from_dict(values, label2id={"x": 0, "y": 1, "z": 2}).num_labels == 3


def test_eos_is_none_one_or_several(tiny: dict[str, Any]) -> None:
    assert GPTJConfig(**tiny, eos_token_id=None).eos_token_ids == ()
    assert GPTJConfig(**tiny, eos_token_id=5).eos_token_ids == (5,)
    assert GPTJConfig(**tiny, eos_token_id=[5, 6]).eos_token_ids == (5, 6)


def test_a_round_trip_keeps_every_field_and_every_unknown_key(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = GPTJConfig(
        **tiny,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=3,
        n_inner=24,
        num_labels=1,
        problem_type="regression",
        dtype="float16",
        architectures=["GPTJModel"],
        task_specific_params={"text-generation": {"max_length": 50}},
    )
    config.save_pretrained(tmp_path)
    again = GPTJConfig.from_pretrained(tmp_path)
    assert again == config
    assert again.eos_token_id is None
    assert again.extra == {"task_specific_params": {"text-generation": {"max_length": 50}}}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gptj"


def test_the_older_name_of_dtype_is_understood(tiny: dict[str, Any]) -> None:
    assert GPTJConfig(**tiny, torch_dtype="float16").dtype == "float16"
    assert GPTJConfig(**tiny, torch_dtype="float16", dtype="bfloat16").dtype == "bfloat16"
    assert "torch_dtype" not in GPTJConfig(**tiny, torch_dtype="float16").to_dict()


def test_overrides_win_over_the_file(tiny: dict[str, Any], tmp_path: Path) -> None:
    GPTJConfig(**tiny).save_pretrained(tmp_path)
    assert GPTJConfig.from_pretrained(tmp_path, num_labels=5).num_labels == 5


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "has no config.json"),
        ("{", "cannot be read as JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"model_type": "gpt2"}', "model_type is 'gpt2'"),
        ('{"n_head": 3}', r"config\.json: n_head must be"),
        ('{"num_labels": 0}', r"config\.json: num_labels must be"),
    ],
)
def test_a_folder_whose_config_is_no_gptj_is_refused(tmp_path: Path, content: str | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=complaint):
        GPTJConfig.from_pretrained(tmp_path)


def test_a_config_shows_its_content(config: GPTJConfig) -> None:
    assert '"n_embd": 16' in repr(config)
    assert config != "GPTJConfig"
