"""The content of input files, as a hash: what tells whether a file that was touched, moved or copied is another one."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from gptj_batch.errors import InputError, shorten
from gptj_batch.records.locate import locate

_NUM_THREADS = 4  # hashing lets other threads run; a bucket answers several at once
_CHUNK_BYTES = 2**22


def hash_files(paths: Sequence[str]) -> dict[str, str]:
    """Return each file's SHA-256 in hexadecimal, as `sha256sum` prints it. Raises InputError for one that is gone."""
    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        return dict(zip(paths, pool.map(_hash, paths), strict=True))


def _hash(path: str) -> str:
    digest = hashlib.sha256()
    try:
        place = locate(path)
        with place.filesystem.open_input_file(place.path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (OSError, pa.ArrowException) as error:
        reason = shorten(" ".join(str(error).split()), 200)
        raise InputError(f"{path}: the file cannot be read: {reason}. Run the job again when it is there") from error
    return digest.hexdigest()
