import json
from pathlib import Path

import pytest

from gptj_batch import Embedded, EmbedRequest, Generated, Request
from gptj_batch.backends import make_backend
from gptj_batch.backends.vllm_install import installed
from gptj_batch.errors import ConfigError


def test_the_fake_speaks_the_models_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 3}))
    backend = make_backend("fake", model_path=tmp_path)
    (result,) = backend.run([Request(key="a", prompt_token_ids=[1])])
    assert isinstance(result, Generated)
    assert set(result.token_ids) == {0, 1, 2}


def test_the_fake_has_the_models_width(tmp_path: Path) -> None:
    for settings, width in (({"n_embd": 12}, 12), ({"hidden_size": 8}, 8), ({}, 4096)):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        (result,) = make_backend("fake", model_path=tmp_path).run([EmbedRequest(key="a", prompt_token_ids=[1])])
        assert isinstance(result, Embedded) and len(result.vector) == width


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"vocab_size": "x"}', "{}"])
def test_the_fake_does_without_a_model(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert make_backend("fake", model_path=tmp_path).describe()["vocab_size"] == 50257


@pytest.mark.skipif(installed().vllm is not None, reason="vllm is installed")
def test_without_vllm_its_backend_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"backend.kind: vllm is not installed; it takes vllm 0\.32\.0 .*pip install"):
        make_backend("vllm", model_path="m")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of auto, native, vllm, fake, got tgi"):
        make_backend("tgi", model_path="m")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of auto, float16, bfloat16, float32, int8, got int4"):
        make_backend("native", model_path="m", dtype="int4")


def test_a_cache_without_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_cache_gb must be above 0"):
        make_backend("native", model_path="m", kv_cache_gb=0.0)
