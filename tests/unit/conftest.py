"""What several folders of unit tests share: a tiny tokenizer, and the folder of a model that has it."""

import json
from pathlib import Path

import hypothesis
import pytest
from tiny_tokenizer import train_tokenizer

from gptj_batch.prompts.tokenizer import Tokenizer

TINY_POSITIONS = 64
TINY_WIDTH = 16
# How long an example takes says more of the machine's other users than of the code.
hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer())


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of a model but its weights; nothing may write into it."""
    folder: Path = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    backend = train_tokenizer()
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"],
        "vocab_size": backend.get_vocab_size(),
        "n_positions": TINY_POSITIONS,
        "n_embd": TINY_WIDTH,
        "n_layer": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
