import hashlib

import pytest

from gptj_batch.errors import InputError
from gptj_batch.records.content import hash_files


def test_a_hash_is_of_all_bytes_as_sha256sum_prints_it(tmp_path):
    contents = {"empty": b"", "small": b"abc", "large": bytes(range(256)) * 50_000}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = hash_files([str(tmp_path / name) for name in contents])
    assert list(found.values()) == [hashlib.sha256(content).hexdigest() for content in contents.values()]


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone.*cannot be read"):
        hash_files([str(tmp_path / "gone")])
