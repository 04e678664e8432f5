import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gptj_batch.errors import CheckpointError
from gptj_batch.model import checkpoint
from gptj_batch.model.checkpoint import open_checkpoint

TENSORS = {"number": torch.arange(3), "matrix": torch.randn(7, 5, dtype=torch.bfloat16), "row": torch.randn(4)}


def write(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, folder / name) if name.endswith(".bin") else save_file(tensors, folder / name)


def read(folder: Path, name: str, dtype: torch.dtype) -> Tensor:
    opened = open_checkpoint(folder)
    destination = torch.empty(opened.shapes()[name], dtype=dtype)
    opened.copy_into(name, destination)
    return destination


@pytest.mark.parametrize("ending", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("piece_bytes", [1, 40, 1 << 20])
def test_tensors_are_read_and_converted_whatever_the_size_of_the_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, piece_bytes: int
) -> None:
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", piece_bytes)
    write(tmp_path, ending, TENSORS)
    assert open_checkpoint(tmp_path).shapes() == {"number": (3,), "matrix": (7, 5), "row": (4,)}
    assert open_checkpoint(tmp_path).dtype() in (torch.bfloat16, torch.float32)
    assert torch.equal(read(tmp_path, "matrix", torch.bfloat16), TENSORS["matrix"])
    assert torch.equal(read(tmp_path, "matrix", torch.float32), TENSORS["matrix"].float())
    assert torch.equal(read(tmp_path, "row", torch.float16), TENSORS["row"].half())


def test_a_checkpoint_without_floats_counts_as_float32(tmp_path: Path) -> None:
    write(tmp_path, "model.safetensors", {"number": torch.arange(3)})
    assert open_checkpoint(tmp_path).dtype() == torch.float32
    (tmp_path / "model.safetensors").unlink()
    write(tmp_path, "pytorch_model.bin", {"number": torch.arange(3)})
    assert open_checkpoint(tmp_path).dtype() == torch.float32


def test_what_old_torch_wrote_is_read_too(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read(tmp_path, "row", torch.float32), TENSORS["row"])


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_found_by_their_index(tmp_path: Path, ending: str) -> None:
    weight_map = {}
    for name, tensor in TENSORS.items():
        write(tmp_path, f"{name}.{ending}", {name: tensor})
        weight_map[name] = f"{name}.{ending}"
    stem = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
    (tmp_path / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(read(tmp_path, "row", torch.float32), TENSORS["row"])


def test_safetensors_are_read_before_pickles(tmp_path: Path) -> None:
    write(tmp_path, "model.safetensors", {"row": torch.ones(4)})
    write(tmp_path, "pytorch_model.bin", {"row": torch.zeros(4)})
    assert read(tmp_path, "row", torch.float32).tolist() == [1, 1, 1, 1]


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no weights.*pytorch_model\.bin"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kept_bytes", [0, 5, 60, -1])
@pytest.mark.parametrize("ending", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_one_error_with_its_name(tmp_path: Path, ending: str, kept_bytes: int) -> None:
    write(tmp_path, ending, TENSORS)
    content = (tmp_path / ending).read_bytes()
    (tmp_path / ending).write_bytes(content[:kept_bytes])
    with pytest.raises(CheckpointError, match=ending):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ("{", "cannot be read as an index"),
        ("[]", "cannot be read as an index"),
        ('{"weight_map": ["a"]}', "cannot be read as an index"),
        ('{"weight_map": {"row": "model-1.safetensors"}}', r"not there: model-1\.safetensors"),
        ('{"weight_map": {"row": 7}}', "not there: 7"),
        ('{"weight_map": {"row": "../model.safetensors"}}', r"outside its folder: \.\./model\.safetensors"),
        ('{"weight_map": {"row": "/etc/passwd"}}', "outside its folder: /etc/passwd"),
        ('{"weight_map": {"row": ".."}}', "not there"),
    ],
)
def test_an_index_that_leads_nowhere_or_out_of_the_folder_is_refused(
    tmp_path: Path, index: str, complaint: str
) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=complaint):
        open_checkpoint(tmp_path)


class Hostile:
    """Unpickling this touches a file; a restricted unpickler must not come to that."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "old torch", "plain pickle"])
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path: Path, form: str) -> None:
    marker, file = tmp_path / "marker", tmp_path / "pytorch_model.bin"
    content = {"row": torch.zeros(4), "payload": Hostile(marker)}
    if form == "plain pickle":
        file.write_bytes(pickle.dumps(Hostile(marker), protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        open_checkpoint(tmp_path)
    assert not marker.exists()
    if form == "plain pickle":
        pickle.loads(file.read_bytes())
        assert marker.exists()  # the control: an ordinary unpickler does execute it


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"step": 3}, {3: torch.zeros(1)}])
def test_a_pickle_of_anything_but_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="must hold a dictionary of tensors"):
        open_checkpoint(tmp_path)
