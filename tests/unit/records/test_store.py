"""What both stores do alike, and what only a bucket's can meet: the faults of a service on a network."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptj_batch.errors import ConfigError, InputError, OutputError, OutputInUseError
from gptj_batch.records.beside import begin_beside, beside, change_places, recover
from gptj_batch.records.bucket_store import BucketStore
from gptj_batch.records.lease import take_lease
from gptj_batch.records.locate import find_files, locate
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_form import PartForm
from gptj_batch.records.part_reader import read_column
from gptj_batch.records.progress import clean, contents, save_plan
from gptj_batch.records.publish import is_complete, publish
from gptj_batch.records.read import list_files
from gptj_batch.records.store import BucketPath
from gptj_batch.records.write import write_unit

from .cut_store import MemoryBucket
from .s3_endpoint import SECRET, Fault, running_endpoint

FORM = PartForm(target_file_bytes=1)
BY = PartForm(target_file_bytes=10**9, partition_by=("by",))


@pytest.fixture(scope="module")
def endpoint():
    with running_endpoint() as endpoint:
        endpoint.make_bucket("store-tests")
        yield endpoint


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
    if request.param == "bucket":
        request.getfixturevalue("endpoint")
        return OutputFolder.at(f"s3://store-tests/{uuid4().hex}/out")
    return OutputFolder.at(tmp_path / "out")


@pytest.fixture
def bucket(endpoint):
    return OutputFolder.at(f"s3://store-tests/{uuid4().hex}/out")


def table(value, rows=5):
    return pa.table({"value": [value] * rows, "by": [f"a {i % 2}/%" for i in range(rows)]})


def make(folder, value, form=FORM):
    save_plan(folder.root, {"value": value})
    for index in range(2):
        write_unit(table(value), folder.root, index)
    return publish(folder.root, 2, form, 10)


def values(folder):
    return [value for part in folder.parts() for value in read_column(folder, part, "value").to_pylist()]


def put(folder, name, data):
    with folder.whole_file(folder.root / name) as staged:
        staged.write_bytes(data)


def test_a_bucket_is_looked_for_where_the_environment_says_now(endpoint):
    note = OutputFolder.at(f"s3://store-tests/{uuid4().hex}/out").root / "note"
    BucketStore.of(note.bucket).write(note, b"first")
    with running_endpoint() as other:
        BucketStore.of(note.bucket).write(note, b"second")
        assert other.requests
    before = len(endpoint.requests)
    BucketStore.of(note.bucket).write(note, b"third")
    assert len(endpoint.requests) == before + 1


def test_a_file_is_what_was_stored_last(folder):
    for data in (b"one", b"two"):
        put(folder, "a/file", data)
    folder.store.write(folder.root / "a" / "note", b"note")
    assert folder.store.read(folder.root / "a" / "file") == b"two"
    assert folder.store.names(folder.root / "a") == ["file", "note"]
    assert folder.store.exists(folder.root / "a" / "file") and not folder.store.exists(folder.root / "b")
    assert folder.store.is_folder(folder.root / "a") and not folder.store.is_folder(folder.root / "b")
    with pytest.raises(FileNotFoundError):
        folder.store.read(folder.root / "b")


def test_a_failure_while_writing_leaves_what_was_there(folder):
    put(folder, "file", b"old")
    with pytest.raises(RuntimeError), folder.whole_file(folder.root / "file") as staged:
        staged.write_bytes(b"new")
        raise RuntimeError
    assert folder.store.read(folder.root / "file") == b"old" and not staged.exists()


def test_of_many_that_create_a_file_one_does(folder):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: folder.store.create(folder.root / "x" / "y", b"%d" % i), range(8)))
    assert sum(made) == 1 and folder.store.read(folder.root / "x" / "y") == b"%d" % made.index(True)


def test_a_folder_is_removed_with_all_in_it_and_nothing_beside_it(folder):
    for name in ("a/b/c", "a/d", "ab"):
        put(folder, name, b"x")
    folder.store.remove(folder.root / "a")
    folder.store.remove(folder.root / "a")
    assert [name for name in folder.store.names(folder.root) if name[0] != "_"] == ["ab"]
    assert not folder.store.is_folder(folder.root / "a")


def test_a_staged_file_is_put_where_there_is_nothing_and_nowhere_else(folder):
    path = folder.root / "a" / "file"
    for data, is_new in ((b"one", True), (b"two", False)):
        staged = folder.store.stage(folder.staging, path)
        staged.write_bytes(data)
        assert folder.store.put_new(staged, path) is is_new
        staged.unlink(missing_ok=True)
    assert folder.store.read(path) == b"one" and folder.store.names(folder.root / "a") == ["file"]


def test_files_are_removed_though_some_are_gone(folder):
    for name in ("a", "b", "c"):
        put(folder, name, b"x")
    folder.store.remove_files([])
    folder.store.remove_files([folder.root / name for name in ("a", "gone", "b")])
    assert [name for name in folder.store.names(folder.root) if name[0] != "_"] == ["c"]


def test_moved_files_have_their_new_names_alone(folder):
    for name in ("a/1", "a/2", "3"):
        put(folder, name, name.encode())
    folder.store.move({folder.root / name: folder.root / f"to/{name}" for name in ("a/1", "3")})
    assert folder.store.names(folder.root / "a") == ["2"]
    assert [folder.store.read(folder.root / "to" / name) for name in ("a/1", "3")] == [b"a/1", b"3"]


def test_a_moved_folder_is_as_it_was_and_takes_no_others_place(folder):
    for name in ("from/seal", "from/_gptj_batch/x", "from/by=1/part", "fromage"):
        put(folder, name, name.encode())
    folder.store.move_folder(folder.root / "from", folder.root / "to", "seal")
    assert folder.store.read(folder.root / "to/by=1/part") == b"from/by=1/part"
    assert folder.store.names(folder.root / "to") == ["_gptj_batch", "by=1", "seal"]
    assert not folder.store.is_folder(folder.root / "from") and folder.store.exists(folder.root / "fromage")
    put(folder, "from/seal", b"another")
    with pytest.raises(FileExistsError):
        folder.store.move_folder(folder.root / "from", folder.root / "to", "seal")
    assert folder.store.read(folder.root / "to/seal") == b"from/seal" and folder.store.exists(folder.root / "from/seal")


def test_a_folder_whose_move_is_cut_off_anywhere_is_whole_where_its_seal_is(monkeypatch):
    names = ["B=1/part", "_SUCCESS", "_gptj_batch/x", "part-1", "part-2"]
    for number in range(1, 1000):
        bucket, store = MemoryBucket(monkeypatch), BucketStore.of("s3://memory")
        source, target = BucketPath("s3://memory/out/from"), BucketPath("s3://memory/out/to")
        for name in names:
            store.write(source / name, name.encode())

        def move(source=source, target=target):
            BucketStore.of("").move_folder(source, target, "_SUCCESS")

        if not bucket.killed_before_change(number, move):
            break
        for folder in (source, target):
            if store.exists(folder / "_SUCCESS"):
                assert inside(store, folder) == names
        if store.exists(source / "_SUCCESS"):
            move()
        store.remove(source)
        assert inside(store, target) == names and not store.is_folder(source)
    assert number > len(names) + 2


def inside(store, folder):
    found = store.walk(folder, lambda _: True) + store.walk(folder / "_gptj_batch", lambda _: True)
    return sorted((where / name).relative_to(folder).as_posix() for where, names in found for name in names)


def test_a_touched_file_is_younger_and_time_is_the_stores(folder):
    path = folder.root / "note"
    assert folder.store.create(path, b"x")
    before = folder.store.modified(path)
    time.sleep(1.1)
    folder.store.touch(path, b"x")
    assert folder.store.modified(path) > before
    assert 0 <= folder.store.now(path) - folder.store.modified(path) < 5
    assert folder.store.names(folder.root) == ["note"]


@pytest.mark.parametrize("form", [FORM, BY], ids=["flat", "partitioned"])
def test_units_become_parts_that_hold_their_rows(folder, form):
    names = make(folder, "x", form)
    assert len(names) == 2 and values(folder) == ["x"] * 10 and is_complete(folder.root)
    assert folder.unit_indices() == [] and contents(folder.root) == "ours"
    assert publish(folder.root, 2, form, 10) == names
    clean(folder.root)
    assert contents(folder.root) == "nothing"


@pytest.mark.parametrize("ending", ["arrow", "jsonl"])
def test_other_formats_can_be_read_again(folder, ending):
    make(folder, "x", PartForm(target_file_bytes=1, format=ending, compression="zstd"))
    assert values(folder) == ["x"] * 10


@pytest.mark.parametrize("forms", [(FORM, FORM), (BY, FORM), (FORM, BY)], ids=["flat", "to flat", "to partitioned"])
def test_an_overwritten_output_is_the_new_one(folder, forms):
    make(folder, "old", forms[0])
    begin_beside(folder.root)
    make(OutputFolder.at(beside(folder.root)), "new", forms[1])
    assert values(folder) == ["old"] * 10
    change_places(folder.root)
    assert values(folder) == ["new"] * 10 and folder.generation == 1
    assert not folder.store.is_folder(beside(folder.root))


def test_a_lease_keeps_others_out_and_leaves_nothing(folder):
    with take_lease(folder.root) as lease:
        with pytest.raises(OutputInUseError, match=f"process {os.getpid()}"):
            take_lease(folder.root)
        lease.check()
    assert contents(folder.root) != "ours" or folder.store.names(folder.private) == []
    with take_lease(folder.root):
        pass


def test_another_who_asks_for_the_time_does_not_free_a_lease_that_is_alive(bucket, monkeypatch):
    modified, refused = BucketStore.modified, []

    def after_another(store, path):
        if path.name.endswith("-now") and not refused:
            refused.append(path)
            with pytest.raises(OutputInUseError):  # it stores its clock, asks and removes it, all before we ask
                take_lease(bucket.root)
        return modified(store, path)

    with take_lease(bucket.root) as lease:
        monkeypatch.setattr(BucketStore, "modified", after_another)
        with pytest.raises(OutputInUseError, match="held by another run that is alive"):
            take_lease(bucket.root)
        lease.check()
    assert refused and contents(bucket.root) == "nothing"


def test_whose_lease_was_taken_over_writes_no_more(bucket):
    with take_lease(bucket.root) as lease:
        bucket.store.create(bucket.private / "lease-00000002.json", b"{}")
        with pytest.raises(OutputInUseError, match="taken over"):
            lease.check()


def test_a_lease_that_is_gone_is_not_brought_back_by_its_sleeper(bucket):
    note = bucket.private / "lease-00000001.json"
    bucket.store.create(note, b"mine")
    bucket.store.remove(note)
    with pytest.raises(FileNotFoundError):
        bucket.store.touch(note, b"mine")
    bucket.store.create(note, b"another's")
    with pytest.raises(FileNotFoundError):
        bucket.store.touch(note, b"mine")
    assert bucket.store.read(note) == b"another's"


@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD"])
def test_a_burst_of_slow_down_is_waited_for(bucket, endpoint, method):
    with endpoint.with_faults(Fault(method, "status", times=3)) as (fault,):
        make(bucket, "x")
        assert values(bucket) == ["x"] * 10
    assert fault.seen == 3


@pytest.mark.parametrize("what", ["reset", "half", "slow"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_connections_that_are_cut_or_slow_are_tried_again(bucket, endpoint, what, method):
    if (method, what) == ("PUT", "half"):
        pytest.skip("a PUT has no body to halve in its reply")
    with endpoint.with_faults(Fault(method, what, times=2)) as (fault,):
        make(bucket, "x")
        assert values(bucket) == ["x"] * 10
    assert fault.seen == 2


def test_a_reply_that_is_lost_after_the_lease_was_made_does_not_lose_the_lease(bucket, endpoint):
    with (
        endpoint.with_faults(Fault("PUT", "lost reply", "lease-", times=1)) as (fault,),
        take_lease(bucket.root) as lease,
    ):
        lease.check()
        assert lease.fence.epoch == 1
    assert fault.seen == 1


def test_a_refused_put_says_where_what_and_what_to_do(bucket, endpoint):
    with endpoint.with_faults(Fault("PUT", "status", "unit-", status=403)), pytest.raises(OutputError) as refused:
        write_unit(table("x"), bucket.root, 3)
    said = str(refused.value)
    assert f"{bucket.root}/_gptj_batch/units/unit-00000003.parquet" in said and "PUT" in said
    assert "403" in said and "Allow it to the run's credentials" in said and SECRET not in said


@pytest.mark.parametrize("status", [403, pytest.param(500, marks=pytest.mark.extended)])  # the client tries 500s again
def test_a_refused_delete_does_no_harm(bucket, endpoint, status):
    with endpoint.with_faults(
        Fault("POST", "status", "delete", status=status), Fault("DELETE", "status", status=status)
    ):
        with take_lease(bucket.root):
            make(bucket, "x")
        assert values(bucket) == ["x"] * 10 and is_complete(bucket.root)
    with take_lease(bucket.root):  # its holder is this process, which is alive, but has given it back
        pass


def test_a_large_file_is_nowhere_until_its_last_request(bucket, endpoint):
    with endpoint.with_faults(Fault("POST", "status", "uploadId", status=403)), pytest.raises(OutputError):
        put(bucket, "large", bytes(20 * 2**20))
    assert not bucket.store.exists(bucket.root / "large")
    put(bucket, "large", bytes(20 * 2**20))
    assert len(bucket.store.read(bucket.root / "large")) == 20 * 2**20


def test_a_bucket_that_is_not_there_is_said_before_anything_is_done(endpoint):
    with pytest.raises(ConfigError, match=r"NoSuchBucket.*Create the bucket"):
        recover("s3://no-such-bucket/out")


def test_an_output_is_an_input(bucket):
    make(bucket, "x", BY)
    assert list_files(str(bucket.root)).num_rows == 10
    place = locate(str(bucket.root))
    assert pq.read_table(place.path, filesystem=place.filesystem).num_rows == 10


@pytest.mark.parametrize("path", ["", "/*.parquet"])
def test_an_inbox_in_a_bucket_may_be_empty_where_files_of_it_are_known(bucket, path):
    inbox, file = f"{bucket.root}{path}", f"{bucket.root}/a.parquet"
    put(bucket, "a.parquet", b"x")
    assert [found.path for found in find_files(inbox)] == [file]
    bucket.store.remove(bucket.root / "a.parquet")
    assert find_files(inbox, known=[file]) == []
    for known in ([], [f"{bucket.root}-2/a.parquet"]):
        with pytest.raises(InputError, match="nothing matches"):
            find_files(inbox, known=known)
    with pytest.raises(InputError):
        find_files("s3://no-such-bucket/in/*", known=["s3://no-such-bucket/in/a"])


def test_an_overwrite_cut_off_anywhere_is_old_or_new_by_its_success_and_ends_new(monkeypatch):
    for number in range(1, 1000):
        bucket, folder = MemoryBucket(monkeypatch), OutputFolder.at("s3://memory/out")
        make(folder, "old")
        if not bucket.killed_before_change(number, partial(overwrite, folder)):
            break
        assert promised(folder) in (["old"] * 10, ["new"] * 10)
        overwrite(folder)
        assert values(folder) == ["new"] * 10 == promised(folder)
    assert number > 10


def overwrite(folder):
    recover(folder.root)
    if '"new"' in folder.store.read(folder.plan).decode():
        return
    new = OutputFolder.at(beside(folder.root))
    begin_beside(folder.root)
    make(new, "new")
    change_places(folder.root)


def promised(folder):
    """The rows that a reader sees who goes by `_SUCCESS`."""
    names = json.loads(folder.store.read(folder.success))["parts"]
    return [value for name in names for value in read_column(folder, folder.root / name, "value").to_pylist()]
