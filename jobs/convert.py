"""`gptj-batch convert`: a GPT-J checkpoint of any layout to safetensors shards."""

import json
import shutil
from pathlib import Path

from gptj_batch.errors import CheckpointError
from gptj_batch.model_folder import read_facts

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


def convert(source: str, target: str, dtype: str | None, revision: str | None) -> int:
    """Write the checkpoint and its tokenizer to the folder `target`.

    Raises CheckpointError where the source cannot be read or the target is not empty.
    """
    import gptj_batch.model as model_classes

    facts = read_facts(source, revision)
    folder = Path(target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is not an empty folder; give a new one")
    name = facts.architectures[0] if facts.architectures else "GPTJForCausalLM"
    model_class = getattr(model_classes, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, model_classes.GPTJPreTrainedModel)):
        raise CheckpointError(f"{facts.folder / 'config.json'}: architectures names {name}, which is no GPT-J class")
    model = model_class.from_pretrained(facts.folder, dtype=dtype, allow_new_head=False)
    model.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        if (facts.folder / file).is_file():
            shutil.copyfile(facts.folder / file, folder / file)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(json.dumps({"class": name, "dtype": str(model.dtype), "parameters": model.num_parameters(), "bytes": size}))
    return 0
