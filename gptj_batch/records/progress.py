"""What an output folder already holds: finished units, the configuration that made them, or somebody else's files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptj_batch.errors import OutputError, shorten
from gptj_batch.records.lease import is_lease
from gptj_batch.records.output import OutputFolder, not_written
from gptj_batch.records.plan import UnitPlan

UnitIndices = NDArray[np.int32]


def committed_units(output: str | PurePath, plan: UnitPlan) -> UnitIndices:
    """Return the numbers of the plan's units that are finished, ascending; all of them where the output is complete."""
    folder = OutputFolder.at(output)
    if folder.store.exists(folder.success):
        return np.arange(plan.num_units, dtype=np.int32)
    indices = np.array(folder.unit_indices(), dtype=np.int64)
    return indices[indices < plan.num_units].astype(np.int32)


def pending_units(output: str | PurePath, plan: UnitPlan) -> UnitIndices:
    """Return the numbers of the plan's units that are still to do, ascending."""
    pending = np.ones(plan.num_units, dtype=bool)
    pending[committed_units(output, plan)] = False
    return np.flatnonzero(pending).astype(np.int32)


def contents(output: str | PurePath) -> Literal["nothing", "ours", "foreign"]:
    """Tell whether a folder holds nothing (but names with a dot), an output of gptj-batch, or somebody else's files."""
    folder = OutputFolder.at(output)
    is_private, inside = _private_names(folder)
    # A lease alone is no output: a run takes it before it begins. An empty folder is what is left of one.
    if is_private and (not inside or any(not is_lease(name) for name in inside)):
        return "ours"
    try:
        names = [name for name in folder.store.names(folder.root) if not (is_private and name == folder.private.name)]
    except FileNotFoundError:
        return "nothing"
    except NotADirectoryError:
        return "foreign"
    except OSError as error:
        raise not_written(folder.root, error) from error
    return "foreign" if any(not name.startswith(".") for name in names) else "nothing"


def clean(output: str | PurePath) -> None:
    """Remove an earlier run's output: its parts, `_SUCCESS` and `_gptj_batch/` but its lease, and nothing else.

    Raises OutputError for a folder that gptj-batch did not make, and where something cannot be removed.
    """
    folder = OutputFolder.at(output)
    if contents(output) == "foreign":
        raise OutputError(
            f"output.path: {folder.root} is not an output of gptj-batch, so nothing in it is overwritten; choose "
            "another output.path, or empty the folder yourself"
        )
    # The plan goes last: until then the folder is known for what it was, and no other run goes on with its units.
    doomed = [folder.success, *folder.parts(), folder.units, folder.staging]
    _, inside = _private_names(folder)
    others = [folder.private / name for name in inside if not is_lease(name)]
    doomed += [path for path in others if path not in (*doomed, folder.plan)]
    _remove_all(folder, doomed)
    folder.remove_empty_partitions()
    _remove_all(folder, [folder.plan, *([] if any(map(is_lease, inside)) else [folder.private])])


def _remove_all(folder: OutputFolder, paths: Iterable[PurePath]) -> None:
    for path in paths:
        try:
            folder.store.remove(path)
        except OSError as error:
            raise not_written(path, error) from error


def _private_names(folder: OutputFolder) -> tuple[bool, list[str]]:
    """Tell whether the private folder is there, and return the names in it."""
    is_there = folder.store.is_folder(folder.private)
    return is_there, folder.store.names(folder.private) if is_there else []


def save_plan(output: str | PurePath, fingerprint: Mapping[str, Any]) -> None:
    """Write down which configuration makes this output. Raises OutputError."""
    folder = OutputFolder.at(output)
    with folder.whole_file(folder.plan) as staged:
        staged.write_text(json.dumps(fingerprint, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_plan(output: str | PurePath) -> dict[str, Any] | None:
    """Return what `save_plan` wrote; None for an output that has not begun.

    Raises OutputError where it cannot be read, and where units or parts are there without it.
    """
    folder = OutputFolder.at(output)
    try:
        plan = json.loads(folder.store.read(folder.plan))
    except FileNotFoundError:
        if contents(output) == "ours" and (folder.unit_indices() or folder.parts()):
            raise OutputError(
                f"output.path: {folder.root} has results but no {folder.plan.name} that says what made them; overwrite "
                "it with output.on_exists=overwrite, or choose another output.path"
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(folder, str(error)) from error
    if not isinstance(plan, dict):
        raise _unreadable(folder, "it is not a JSON object")
    return plan


def _unreadable(folder: OutputFolder, reason: str) -> OutputError:
    return OutputError(
        f"output.path: {folder.plan} cannot be read: {shorten(reason, 200)}; overwrite the output with "
        "output.on_exists=overwrite, or choose another output.path"
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line `field: old -> new` for every field that differs, by name; nested ones with dots."""
    before, after = (_flat(json.loads(json.dumps(fingerprint))) for fingerprint in (old, new))
    names = sorted(before.keys() | after.keys())
    return [
        f"{name}: {_shown(before, name)} -> {_shown(after, name)}"
        for name in names
        if name not in before or name not in after or before[name] != after[name]
    ]


def _flat(fingerprint: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fingerprint.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    return shorten(json.dumps(values[name], ensure_ascii=False)) if name in values else "nothing"
