import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.errors import OutputError
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.write import check_num_rows, write_unit

from .crash import crashes
from .tables import bad_utf8, every_type, numbered, same_columns

REPOSITORY = Path(__file__).parents[3]


def test_every_type_survives_with_its_metadata(tmp_path):
    path = write_unit(every_type(), tmp_path, 3)
    back = pq.read_table(path)
    assert path.name == "unit-00000003.parquet"
    assert same_columns(back.schema, every_type().schema) and back.equals(every_type())


def test_an_empty_table_keeps_its_columns(tmp_path):
    back = pq.read_table(write_unit(every_type().slice(0, 0), tmp_path, 0))
    assert back.num_rows == 0 and same_columns(back.schema, every_type().schema)


def test_the_lineage_stands_in_the_metadata_beside_what_was_there(tmp_path):
    lineage = json.dumps({"model": "demo"}).encode()
    metadata = pq.read_metadata(write_unit(every_type(), tmp_path, 0, metadata=lineage)).metadata
    assert json.loads(metadata[b"gptj_batch"]) == {"model": "demo"} and metadata[b"who"] == b"tests"


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_the_compression_is_the_one_asked_for(tmp_path, compression):
    column = pq.read_metadata(write_unit(numbered(0, 9), tmp_path, 0, compression)).row_group(0).column(0)
    assert column.compression == {"none": "UNCOMPRESSED"}.get(compression, compression.upper())


def test_a_flipped_bit_in_a_unit_is_found_by_its_checksum(tmp_path):
    path = write_unit(numbered(0, 9), tmp_path, 0, compression="none")
    content = bytearray(path.read_bytes())
    content[content.index(b"row 4")] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(path, page_checksum_verification=True)


def test_writing_a_unit_again_replaces_it(tmp_path):
    write_unit(numbered(0, 9), tmp_path, 0)
    path = write_unit(numbered(0, 4), tmp_path, 0)
    assert pq.read_table(path).num_rows == 4 and len(list(path.parent.iterdir())) == 1


def test_invalid_utf8_in_an_input_column_does_not_stop_the_unit(tmp_path):
    table = pa.table({"text": bad_utf8(b"ok", b"\xff\xfe", None)})
    back = pq.read_table(write_unit(table, tmp_path, 0)).column("text")
    assert back.cast(pa.binary()).to_pylist() == [b"ok", b"\xff\xfe", None]


def test_dictionaries_too_many_for_one_index_can_be_read_back(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    texts = [f"{side}{i}" for side in "lr" for i in range(100)]
    column = pa.chunked_array([pa.array(texts[:100]).cast(kind), pa.array(texts[100:]).cast(kind)])
    back = pq.read_table(write_unit(pa.table({"c": column}), tmp_path, 0)).column("c")
    assert back.type == kind and back.to_pylist() == texts


def test_a_footer_with_another_number_of_rows_stops_the_run(tmp_path):
    path = write_unit(numbered(0, 9), tmp_path, 0)
    with pytest.raises(OutputError, match="10 rows were written and its footer says 9"):
        check_num_rows(path, path, 10)


def test_a_type_that_parquet_cannot_hold_leaves_no_file(tmp_path):
    table = pa.table({"odd": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(OutputError, match=r"unit-00000000\.parquet cannot be written: .*month_day_nano_interval"):
        write_unit(table, tmp_path, 0)
    assert list(OutputFolder.at(tmp_path).staging.iterdir()) == [] and OutputFolder.at(tmp_path).unit_indices() == []


def test_a_process_killed_at_any_step_leaves_the_unit_whole_or_absent(tmp_path):
    def write(number: int) -> Path:
        return write_unit(numbered(0, 9), tmp_path / str(number), 0)

    for number in crashes(write):
        path = OutputFolder.at(tmp_path / str(number)).unit(0)
        assert not path.exists() or pq.read_table(path).equals(numbered(0, 9))
        assert pq.read_table(write(number)).equals(numbered(0, 9))


FULL_DISK = """
import subprocess, sys
import numpy as np, pyarrow as pa
from pathlib import Path
from gptj_batch.errors import OutputError
from gptj_batch.records.write import write_unit
out = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", out], check=True)
big = pa.table({"x": [np.random.default_rng(i).bytes(1000) for i in range(3000)]})
try:
    write_unit(big, out, 0)
except OutputError as error:
    print(error)
print([str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file()])
write_unit(big.slice(0, 10), out, 0)
print([str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file()])
"""


def test_a_full_disk_is_named_leaves_nothing_behind_and_can_be_written_to_later(tmp_path):
    unshare = ["unshare", "-rm", sys.executable]
    if subprocess.run([*unshare, "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip("needs a mount namespace for a small disk")
    done = subprocess.run(
        [*unshare, "-c", FULL_DISK, str(tmp_path)], check=False, capture_output=True, text=True, cwd=REPOSITORY
    )
    message, after_failure, after_success = done.stdout.splitlines()
    assert f"{tmp_path}/_gptj_batch/units/unit-00000000.parquet cannot be written" in message
    assert "No space left on device" in message and "Make room" in message
    assert after_failure == "[]" and after_success == "['_gptj_batch/units/unit-00000000.parquet']"
