"""Whether the input is still what was planned: files that changed or went while a run read them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from pyarrow import fs

from gptj_batch.errors import ConfigError, InputError, shorten
from gptj_batch.records.footers import InputFile
from gptj_batch.records.locate import locate

_NUM_THREADS = 16
_MAX_SHOWN = 5


def check_unchanged(files: Sequence[InputFile]) -> None:
    """Raise InputError, naming the files, where one is gone or has another size or time than when it was planned."""
    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        changes = [change for change in pool.map(_change, files) if change]
    if changes:
        more = f"; and {len(changes) - _MAX_SHOWN:,} more" if len(changes) > _MAX_SHOWN else ""
        raise InputError(
            f"input.path: {len(changes):,} of {len(files):,} files changed while the run read them: "
            f"{'; '.join(changes[:_MAX_SHOWN])}{more}. The output may hold rows of both states and was not published; "
            "put the old files back and run the job again, or start anew with output.on_exists=overwrite"
        )


def _change(file: InputFile) -> str | None:
    """Return what became of a file; None where it is as it was, and where that cannot be told now."""
    try:
        place = locate(file.path)
        info = place.filesystem.get_file_info(place.path)
    except (OSError, pa.ArrowException, ConfigError, InputError):
        return None
    if info.type != fs.FileType.File:
        return f"{shorten(file.path, 200)} is gone"
    if info.size != file.size_bytes:
        return f"{shorten(file.path, 200)} had {file.size_bytes:,} bytes and has {info.size:,}"
    if file.mtime_ns and info.mtime_ns and info.mtime_ns != file.mtime_ns:
        return f"{shorten(file.path, 200)} was written again"
    return None
