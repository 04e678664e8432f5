"""Datasets of the `datasets` library as their Arrow files: a folder of `save_to_disk`, a cache, or a name."""

import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs

from gptj_batch.errors import ConfigError, InputError, shorten
from gptj_batch.records.formats import format_of
from gptj_batch.records.locate import Place, locate

_CACHED_BY_MAP = re.compile(r"(cache-|tmp).*\.arrow")


def dataset_files(
    paths: Sequence[str], file_format: str = "auto", subset: str | None = None, split: str | None = None
) -> list[str]:
    """Return the paths with every dataset replaced by its files; with "auto" only folders that are clearly datasets.

    subset: what `datasets.load_dataset` calls `name`    split: which of its splits

    Raises ConfigError for a split that is not there or not said, InputError for a dataset that cannot be loaded.
    """
    if file_format not in ("auto", "huggingface"):
        if subset is not None or split is not None:
            raise ConfigError("input.split: it is for datasets; leave it and input.subset out, or set input.format")
        return list(paths)
    return [file for path in paths for file in _expanded(path, file_format == "huggingface", subset, split)]


def _expanded(path: str, is_dataset: bool, subset: str | None, split: str | None) -> list[str]:
    if split is not None and not re.fullmatch(r"[\w.-]+", split):
        raise ConfigError(f'input.split: "{shorten(split)}" is no name of a split; for its first rows use input.limit')
    place = locate(path)
    names = _names(place)
    if "dataset_dict.json" in names:
        splits = json.loads(_text(place, "dataset_dict.json"))["splits"]
        chosen = _choose(path, splits, split)
        place = Place(place.filesystem, f"{place.path}/{chosen}", place.before, place.after)
        return _saved(place)
    if {"state.json", "dataset_info.json"} <= names:
        return _saved(place)
    if (cached := _cached(names)) and (is_dataset or _is_cache(names)):
        return [place.public(f"{place.path}/{name}") for name in _of_split(path, place, names, cached, split)]
    if is_dataset:
        return _loaded(path, subset, split)
    return [path]


def _names(place: Place) -> set[str]:
    """Return the names in a folder; of none where it is no folder."""
    if any(sign in place.path for sign in "*?["):
        return set()
    try:
        if place.filesystem.get_file_info(place.path).type != fs.FileType.Directory:
            return set()
        return {PurePosixPath(info.path).name for info in place.filesystem.get_file_info(fs.FileSelector(place.path))}
    except OSError as error:
        raise InputError(f'input.path: "{place.public(place.path)}" cannot be listed: {error}') from error


def _text(place: Place, name: str) -> str:
    with place.filesystem.open_input_stream(f"{place.path}/{name}") as stream:
        content: bytes = stream.read()
        return content.decode("utf-8")


def _saved(place: Place) -> list[str]:
    """Return the files that `save_to_disk` wrote; those that `map` left beside them are none."""
    files = json.loads(_text(place, "state.json"))["_data_files"]
    return [place.public(f"{place.path}/{file['filename']}") for file in files]


def _cached(names: set[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".arrow") and not _CACHED_BY_MAP.fullmatch(name))


def _is_cache(names: set[str]) -> bool:
    others = [name for name in names if format_of(name) not in (None, "arrow") and not name.endswith(".json")]
    return "dataset_info.json" in names and not others


def _of_split(path: str, place: Place, names: set[str], files: list[str], split: str | None) -> list[str]:
    """Return a cache's files of one split, which their names say: `<dataset>-<split>[-00000-of-00002].arrow`."""
    info = json.loads(_text(place, "dataset_info.json")) if "dataset_info.json" in names else {}
    splits = list(info.get("splits") or {})
    if not splits:
        return files
    chosen = _choose(path, splits, split)
    return [name for name in files if re.fullmatch(rf".*-{re.escape(chosen)}(-\d+-of-\d+)?\.arrow", name)]


def _choose(path: str, splits: Sequence[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        found = "it is not set" if split is None else f'got "{split}"'
        raise ConfigError(f"input.split: {path} has the splits {', '.join(splits)}; name one of them, {found}")
    return split


def _loaded(name: str, subset: str | None, split: str | None) -> list[str]:
    """Return the files in the cache of a dataset that `datasets` loads; it downloads them if they are not there."""
    import datasets  # heavy, and wanted by nobody who reads files

    try:
        loaded: Any = datasets.load_dataset(name, subset)
    except Exception as error:
        raise _not_loaded(name, error) from error
    chosen = loaded[_choose(name, list(loaded), split)]
    files = [str(file["filename"]) for file in chosen.cache_files]
    if not files:
        raise InputError(f'input.path: the dataset "{name}" is not in files; save it with save_to_disk and give that')
    return files


def _not_loaded(name: str, error: Exception) -> InputError:
    reason = shorten(" ".join(str(error).split()), 300)
    return InputError(
        f'input.path: the dataset "{name}" cannot be loaded: {type(error).__name__}: {reason}. Check its name and '
        "input.subset. Where the hub cannot be reached, load it elsewhere, save it with save_to_disk, and give "
        "that folder"
    )
