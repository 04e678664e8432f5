"""Overwriting in a bucket, where no two folders change places: one small object says which parts are the output.

The new output is made in `_gptj_batch/next/`, where no reader looks. Its parts have other names than the old ones (see
`OutputFolder.generation`). The steps, each of which may be the last of a process and is done again by the next:
    1. parts           copied within the service beside the old ones
    2. _SUCCESS        replaced by one PUT: the moment that counts; it names the new parts, as it named the old ones
    3. plan and report copied
    4. the old parts, a retry of them that was cut off, and `next/`, away
Who reads the parts that `_SUCCESS` names sees the old output or the new one. Who lists the folder sees rows of both
between 1 and 4.
"""

import json
from pathlib import PurePath

from gptj_batch.records.bucket_store import BucketStore
from gptj_batch.records.output import OutputFolder, not_written
from gptj_batch.records.store import BucketPath


def beside(output: str | PurePath) -> PurePath:
    """Return the folder in which a new output is made until it is complete."""
    return OutputFolder.at(output).private / "next"


def change_places(output: str | PurePath) -> None:
    """Make the complete new output the one that counts, and remove the old one. Raises OutputError."""
    folder, new = OutputFolder.at(output), OutputFolder.at(beside(output))
    store = _store(folder)
    try:
        promised = store.read(new.success)
        if _read(folder.success) != promised:
            for part in new.parts():
                store.copy(part, folder.root / part.relative_to(new.root))
            store.write(folder.success, promised)
    except OSError as error:
        raise not_written(folder.root, error) from error
    settle(output)


def is_unsettled(output: str | PurePath) -> bool:
    """Tell whether a change of places has happened and what comes behind it has not."""
    promised = _read(OutputFolder.at(beside(output)).success)
    return promised is not None and promised == _read(OutputFolder.at(output).success)


def settle(output: str | PurePath) -> None:
    """Finish a change of places that was cut off; does nothing where there was none. Raises OutputError."""
    folder, new = OutputFolder.at(output), OutputFolder.at(beside(output))
    store = _store(folder)
    try:
        if not store.is_folder(new.root):
            return
        is_changed = is_unsettled(output)
        if is_changed:
            for name in store.walk(new.private, lambda _: False)[0][1]:
                store.copy(new.private / name, folder.private / name)
            store.remove(folder.retry)  # of rows of the old output
        if (promised := _read(folder.success)) is not None:
            named = json.loads(promised)["parts"]
            for part in folder.parts():
                if part.relative_to(folder.root).as_posix() not in named:
                    store.remove(part)
        # Without a plan it is what a removal that was cut off has left: nobody can go on with that.
        if is_changed or not store.exists(new.plan):
            store.remove(new.root)
    except OSError as error:
        raise not_written(folder.root, error) from error


def _read(path: PurePath) -> bytes | None:
    try:
        return _store_at(path).read(path)
    except FileNotFoundError:
        return None


def _store(folder: OutputFolder) -> BucketStore:
    return _store_at(folder.root)


def _store_at(path: PurePath) -> BucketStore:
    assert isinstance(path, BucketPath), "an output in a bucket has a bucket's path"
    return BucketStore.of(path.bucket)
