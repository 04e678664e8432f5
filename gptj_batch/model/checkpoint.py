"""The weight files of a model folder: which there are, what tensors they hold, reading one without the rest."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptj_batch.errors import CheckpointError

SAFETENSORS_NAME: Final = "model.safetensors"
SAFETENSORS_INDEX: Final = "model.safetensors.index.json"
PICKLE_NAME: Final = "pytorch_model.bin"
PICKLE_INDEX: Final = "pytorch_model.bin.index.json"

# A mapped file's pages count as this process's memory until the map is closed. With at most this much read per map, a
# model of 1.07 GB peaks at 1.08 to 1.09 times its size (tests/parity/test_checkpoint_memory.py); with 32 MB, 1.11.
PIECE_BYTES: Final = 16 << 20


class Checkpoint(Protocol):
    """Tensors by name, on disk."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every tensor's shape."""
        ...

    def dtype(self) -> torch.dtype:
        """Return the dtype of the first floating-point tensor."""
        ...

    def copy_into(self, name: str, destination: Tensor) -> None:
        """Read a tensor into `destination`, converting to its dtype and device.

        destination: the tensor's shape, of at least one dimension
        """
        ...


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder's weights: safetensors before pickles, and of each a single file before shards.

    Raises CheckpointError where there are none or a shard is missing.
    """
    readers = ((SAFETENSORS_NAME, SAFETENSORS_INDEX, SafetensorsFiles), (PICKLE_NAME, PICKLE_INDEX, PickledFiles))
    for single, index, reader in readers:
        if (folder / single).is_file():
            return reader([folder / single])
        if (folder / index).is_file():
            return reader(_shards(folder / index))
    names = ", ".join((SAFETENSORS_NAME, SAFETENSORS_INDEX, PICKLE_NAME, PICKLE_INDEX))
    raise CheckpointError(f"{folder} holds no weights; looked for {names}")


def _shards(index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read as an index of shards ({type(error).__name__})") from None
    # A shard's name is data from a file: it may not lead out of the folder.
    stray = [name for name in names if Path(name).name != name]
    if stray:
        raise CheckpointError(f"{index} names shards outside its folder: {', '.join(stray)}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index} names shards that are not there: {', '.join(missing)}")
    return [index.parent / name for name in names]


class SafetensorsFiles:
    """One or several safetensors files."""

    def __init__(self, files: list[Path]) -> None:
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with _opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    self._file_of[name] = file
                    self._shapes[name] = tuple(tensors.get_slice(name).get_shape())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every tensor's shape."""
        return self._shapes

    def dtype(self) -> torch.dtype:
        """Return the dtype of the first floating-point tensor."""
        for name, file in self._file_of.items():
            with _opened(file) as tensors:
                piece = tensors.get_slice(name)[:1] if self._shapes[name] else tensors.get_tensor(name)
                if piece.is_floating_point():
                    return piece.dtype  # type: ignore[no-any-return]
        return torch.float32

    def copy_into(self, name: str, destination: Tensor) -> None:
        """Read a tensor piece by piece."""
        for rows in _pieces(destination):
            with _opened(self._file_of[name]) as tensors:
                destination[rows].copy_(tensors.get_slice(name)[rows])


def _pieces(destination: Tensor) -> Iterator[slice]:
    """Yield the rows to read at a time. The file is opened for each piece, so that the pages read before are let go."""
    row_bytes = 4 * max(1, destination[0].numel())
    num_rows = max(1, PIECE_BYTES // row_bytes)
    for start in range(0, destination.shape[0], num_rows):
        yield slice(start, start + num_rows)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is no whole safetensors file ({file.stat().st_size:,} bytes): {error}; fetch or convert it again"
        ) from None


class PickledFiles:
    """One or several legacy `pytorch_model.bin`, read by torch's restricted unpickler: tensors only, no code."""

    def __init__(self, files: list[Path]) -> None:
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: list[torch.dtype] = []
        self._held: dict[Path, dict[str, Tensor]] = {}
        for file in files:
            # What torch before 1.6 wrote cannot be mapped, and is held in memory whole.
            can_map = zipfile.is_zipfile(file)
            tensors = _unpickled(file, can_map)
            if not can_map:
                self._held[file] = tensors
            self._file_of |= dict.fromkeys(tensors, file)
            self._shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            self._dtypes += [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every tensor's shape."""
        return self._shapes

    def dtype(self) -> torch.dtype:
        """Return the dtype of the first floating-point tensor."""
        return self._dtypes[0] if self._dtypes else torch.float32

    def copy_into(self, name: str, destination: Tensor) -> None:
        """Read a tensor piece by piece."""
        file = self._file_of[name]
        for rows in _pieces(destination):
            tensors = self._held[file] if file in self._held else _unpickled(file, can_map=True)
            destination[rows].copy_(tensors[name][rows])


def _unpickled(file: Path, can_map: bool) -> dict[str, Tensor]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=can_map)
    except Exception as error:  # noqa: BLE001 - the unpickler raises whatever a broken or hostile file leads it to
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else "no details"
        raise CheckpointError(
            f"{file} cannot be read as plain tensors ({type(error).__name__}: {first_line[:200]}); "
            "get the model as safetensors"
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(f"{file} must hold a dictionary of tensors")
    return tensors
