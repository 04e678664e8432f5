"""The ledger: whatever becomes of the input's files and of the processes, each file's rows are there once."""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from unit.records.crash import crashes, killed_before_change
from unit.records.cut_store import MemoryBucket

from gptj_batch.errors import OutputError, OutputInUseError
from gptj_batch.records.locate import FoundFile
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.progress import save_plan
from gptj_batch.records.publish import is_complete
from pipelines.incremental import Changes, changes
from pipelines.ledger import DoneFile, Entry, Ledger, append, is_incremental, read_ledger
from pipelines.run_place import drop_run, final_names, open_run, read_todo, run_name, settle, work_folder, write_todo

LAYOUT = {"output.incremental": "partition"}
NAMES = ("a", "b", "c")


def entry(number: int = 1, **facts: Any) -> Entry:
    values: dict[str, Any] = {"run": f"2026112{number}T000000Z", "ended": "", "layout": LAYOUT, "settings": {}}
    return Entry(number=number, **{**values, **facts})


def done(path: str = "a", **facts: Any) -> DoneFile:
    values: dict[str, Any] = {
        "size_bytes": 1,
        "mtime_ns": 1,
        "version": "",
        "sha256": "x",
        "num_rows": 1,
        "partition": (("day", None),),
        "run": "r",
        "parts": ("p",),
    }
    return DoneFile(path=path, **{**values, **facts})


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    assert not is_incremental(tmp_path) and read_ledger(tmp_path) == Ledger()
    first = entry(files=(done("a"), done("ü b")), parts=("p",), schema="abc")
    second = entry(2, moved=(("c", "a"),), seen=({"path": "c", "mtime_ns": 9, "version": "v"},), gone=("ü b",))
    append(tmp_path, first)
    append(tmp_path, second)
    ledger = read_ledger(tmp_path)
    assert ledger.entries == (first, second) and is_incremental(tmp_path)
    assert ledger.files == {"c": done("c", mtime_ns=9, version="v"), "ü b": done("ü b")} and ledger.gone == {"ü b"}


def test_names_that_go_round_keep_their_rows() -> None:
    ledger = Ledger().with_entry(entry(files=(done("a", sha256="1"), done("b", sha256="2"))))
    ledger = ledger.with_entry(entry(2, moved=(("a", "b"), ("b", "a"))))
    assert {path: file.sha256 for path, file in ledger.files.items()} == {"a": "2", "b": "1"}


def test_of_two_entries_with_one_number_the_second_is_refused(tmp_path: Path) -> None:
    append(tmp_path, entry())
    with pytest.raises(OutputInUseError):
        append(tmp_path, entry(run="another"))
    assert [each.run for each in read_ledger(tmp_path).entries] == [entry().run]
    assert len(list((tmp_path / "_gptj_batch" / "ledger").iterdir())) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"number": 1}', "null"])
def test_a_damaged_ledger_is_named_and_not_passed_over(tmp_path: Path, content: str) -> None:
    append(tmp_path, entry())
    (tmp_path / "_gptj_batch" / "ledger" / "00000001.json").write_text(content)
    with pytest.raises(OutputError, match=r"00000001\.json cannot be read"):
        read_ledger(tmp_path)


def test_an_entry_that_is_missing_is_seen(tmp_path: Path) -> None:
    append(tmp_path, entry(2))
    with pytest.raises(OutputError, match=r"00000002\.json"):
        read_ledger(tmp_path)


def test_runs_are_named_by_time_and_never_before_the_last_whatever_the_clock_says() -> None:
    assert run_name(0.0, Ledger()) == "19700101T000000Z"
    ledger = Ledger().with_entry(entry(run="20261128T155000Z"))
    assert run_name(0.0, ledger) == "20261128T155001Z"
    assert run_name(1796000000.0, ledger) == "20261130T005320Z"


def test_a_run_that_is_dropped_is_all_there_or_not_gone_on_with_wherever_that_is_cut_off(tmp_path: Path) -> None:
    for number in range(1, 30):
        write_todo(str(tmp_path / str(number)), "r", {})
        folder = OutputFolder.at(work_folder(str(tmp_path / str(number)), "r"))
        save_plan(folder.root, {})
        for name in ("_gptj_batch/units/unit-00000000.parquet", "part-00000.parquet", "_SUCCESS"):
            (Path(folder.root) / name).parent.mkdir(exist_ok=True)
            (Path(folder.root) / name).touch()
    everything = {path.name for path in Path(work_folder(str(tmp_path / "1"), "r")).rglob("*")}
    for number in crashes(lambda number: drop_run(str(tmp_path / str(number)), "r")):
        output = str(tmp_path / str(number))
        there = {path.name for path in Path(work_folder(output, "r")).rglob("*")}
        assert there == everything or read_todo(output, "r") is None
        if open_run(output, Ledger()) is not None:
            drop_run(output, "r")
        assert open_run(output, Ledger()) is None


class World:
    """An input as names with contents and times, and an output whose parts are files of text."""

    def __init__(self, output: str, mode: str) -> None:
        self.output, self.layout = output, {"output.incremental": mode}
        self.files: dict[str, tuple[str, int]] = {}
        self.removed: dict[str, str] = {}

    def found(self) -> list[Any]:
        return [(FoundFile(name, 3, time, False), "parquet") for name, (_, time) in sorted(self.files.items())]

    def hashes(self, paths: Sequence[str]) -> Mapping[str, str]:
        return {path: self.files[path][0] for path in paths}

    def run(self, rescore: Any = None) -> None:
        """Do what `jobs.incremental` does around the rows."""
        ledger = read_ledger(self.output)
        settle(self.output, ledger)
        begun = open_run(self.output, ledger)
        if begun is not None:
            drop_run(self.output, begun)
        changed = changes(self.found(), ledger, self.hashes, rescore)
        if not changed.is_noted:
            return
        new = self._entry(ledger, changed)
        append(self.output, new)
        settle(self.output, ledger.with_entry(new))

    def _entry(self, ledger: Ledger, changed: Changes) -> Entry:
        name = run_name(0.0, ledger)
        files, parts = [], []
        for number, todo in enumerate(changed.todo):
            if number == 0:
                write_todo(self.output, name, {})
            made = OutputFolder.at(work_folder(self.output, name))
            part = made.root / f"part-{number:05d}.parquet"
            made.store.write(part, todo.sha256.encode())
            parts += final_names([part.name], name, self.layout)
            stamp = {**todo.stamp(), "num_rows": 1, "partition": (), "run": name, "parts": (parts[-1],)}
            files.append(DoneFile(**stamp))
        if parts:
            made.store.write(made.success, b"")
        return entry(
            len(ledger.entries) + 1,
            run=name,
            layout=self.layout,
            files=tuple(files),
            parts=tuple(parts),
            replaced=changed.replaced,
            moved=changed.moved,
            seen=changed.seen,
            gone=changed.gone,
        )

    def kept(self) -> Counter[str]:
        """The rows that are there and that the next run has no reason to touch."""
        ledger = read_ledger(self.output)
        settle(self.output, ledger)
        found = changes(self.found(), ledger, self.hashes)
        rows = Counter(file.sha256 for file in ledger.files.values())
        return rows - Counter(file.sha256 for file in found.replaced)

    def contents(self) -> Counter[str]:
        """What a reader of the whole output finds."""
        store = OutputFolder.at(self.output).store
        folders = store.walk(OutputFolder.at(self.output).root, lambda name: "=" in name)
        parts = [folder / name for folder, names in folders for name in names if name.startswith("part-")]
        return Counter(store.read(part).decode() for part in parts)


NAME = st.sampled_from(NAMES)
CHANGE = st.one_of(
    st.tuples(st.just("write"), NAME, st.sampled_from("xyz")),
    st.tuples(st.sampled_from(["touch", "delete"]), NAME),
    st.tuples(st.sampled_from(["rename", "swap"]), NAME, NAME),
)
RUN = st.one_of(
    st.tuples(st.just("run"), st.sampled_from([None, None, "all"])),
    st.tuples(st.just("crash"), st.integers(1, 60)),
)
ROUND = st.tuples(st.lists(CHANGE, min_size=1, max_size=4), RUN)
CUT_ANYWHERE = [
    each
    for number in range(1, 30)
    for each in (([("write", "a", "xyz"[number % 3])], ("crash", number)), ([("touch", "b")], ("run", None)))
]
FIRST = [("write", name, content) for name, content in zip(NAMES, "xyz", strict=True)]


def change(world: World, step: tuple[Any, ...], time: int) -> None:
    """Change the input; every content but that of a renamed or touched file has a time of its own."""
    kind, name = step[0], step[1]
    if kind == "write":
        world.files[name] = (step[2], time)
    elif name in world.files and kind == "touch":
        world.files[name] = (world.files[name][0], time)
    elif name in world.files and kind == "delete":
        del world.files[name]
    elif name in world.files and kind == "rename":
        world.files[step[2]] = world.files.pop(name)
    elif {name, step[2] if len(step) > 2 else name} <= world.files.keys() and kind == "swap":
        world.files[name], world.files[step[2]] = world.files[step[2]], world.files[name]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["partition", "append"]), st.lists(ROUND, max_size=6))
@example("append", [([("rename", "b", "a")], ("run", None))])
def test_after_any_changes_and_crashes_every_live_file_is_there_exactly_once(mode: str, rounds: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        live_through(World(str(Path(folder) / "out"), mode), rounds, killed_before_change)


@settings(max_examples=80)
@given(st.sampled_from(["partition", "append"]), st.lists(ROUND, max_size=6))
@example("partition", CUT_ANYWHERE)
@example("append", CUT_ANYWHERE)
def test_in_a_bucket_too(mode: str, rounds: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        bucket = MemoryBucket(monkeypatch)
        live_through(World("s3://memory/out", mode), rounds, bucket.killed_before_change)


def live_through(world: World, rounds: list[Any], killed: Callable[[int, Callable[[], object]], bool]) -> None:
    steps = [step for changed, end in [(FIRST, ("run", None)), *rounds] for step in (*changed, end)]
    for now, step in enumerate([*steps, ("run", None)], start=1):
        if step[0] == "crash":
            before = world.kept()
            killed(step[1], world.run)
            assert before <= world.contents(), "a reader misses nothing in between"
        elif step[0] == "run":
            world.run(step[1])
            check(world)
        else:
            change(world, step, now)


def check(world: World) -> None:
    ledger = read_ledger(world.output)
    live = {path: ledger.files[path].sha256 for path in world.files}
    assert live == {name: content for name, (content, _) in world.files.items()}
    assert ledger.gone == ledger.files.keys() - world.files.keys()
    # The parts that are there are those that the ledger names, each of the content that it says.
    assert world.contents() == Counter(file.sha256 for file in ledger.files.values())
    for file in ledger.files.values():
        (part,) = file.parts
        output = OutputFolder.at(world.output)
        assert output.store.read(output.root / part).decode() == file.sha256
    assert changes(world.found(), ledger, world.hashes).is_noted is False
    assert is_complete(world.output) or not ledger.entries


def test_a_file_whose_partition_is_another_now_is_done_again() -> None:
    file = FoundFile("a", 1, 1, False, partition=(("day", "2"),))
    ledger = Ledger().with_entry(entry(files=(done("a", partition=(("day", "1"),)),)))
    found = changes([(file, "parquet")], ledger, lambda paths: dict.fromkeys(paths, "x"))
    assert [each.replaces for each in found.todo] == [ledger.files["a"]]


def test_files_as_they_were_are_not_read() -> None:
    file = FoundFile("a", 1, 1, False, partition=(("day", None),))
    ledger = Ledger().with_entry(entry(files=(done("a"),)))
    asked: list[str] = []
    found = changes([(file, "parquet")], ledger, lambda paths: asked.extend(paths) or {})
    assert not asked and not found.is_noted and found.num_unchanged == 1
    assert replace(found, num_unchanged=0) == Changes()


def test_many_files_and_nights_are_looked_through(tmp_path: Path) -> None:
    found = [(FoundFile(f"f{number:06d}", 1, 1, False), "parquet") for number in range(20_000)]
    everything = tuple(done(file.path, partition=()) for file, _ in found)
    append(tmp_path, entry(files=everything))
    for number in range(2, 40):
        append(tmp_path, entry(number, seen=({"path": "f000001", "mtime_ns": 1, "version": ""},)))
    ledger = read_ledger(tmp_path)
    changed = changes(found[:19_000], ledger, dict)
    assert len(changed.gone) == 1000 and changed.num_unchanged == 19_000
