import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.pipelines.finished import finish, output_of

from gptj_batch.errors import ConfigError
from pipelines.apart import check_apart, check_found_apart
from pipelines.config import Job
from pipelines.destination import claim_output
from pipelines.incremental import find
from pipelines.ledger import Ledger
from pipelines.prepare import prepare

MakeJob = Callable[..., Job]


@pytest.mark.parametrize(
    "path", ["out", "out/", "out/*.parquet", "out/part-00000.parquet", "out/**", "./in/../out", "~/out"]
)
def test_an_output_that_holds_the_input_is_refused_since_overwriting_would_remove_it(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    claim_output(first := prepare(make_job()))
    finish(first)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    again = make_job(input={"path": ["records", path]}, output={"on_exists": "overwrite"})
    with pytest.raises(ConfigError, match=rf"output\.path: .*out holds the input {re.escape(path)}; choose another"):
        prepare(again)
    assert output_of(first).parts()


def test_an_output_in_the_input_is_refused_unless_readers_leave_it_out(make_job: MakeJob, records: Path) -> None:
    with pytest.raises(ConfigError, match=r"lies in the input .*, whose next run would read it"):
        prepare(make_job(output={"path": str(records / "deep" / "out")}))
    for name in ("_out", ".out", "_a/out"):
        assert prepare(make_job(output={"path": str(records / name)}))
    by_glob = {"path": str(records / "*.parquet")}
    assert prepare(make_job(input=by_glob, output={"path": str(records / "out")}))


@pytest.mark.parametrize("pattern", ["*", "*/", "**", "**/*.parquet", "*/*.parquet", "*/**/part-*", "o?t/*", "[no]ut"])
def test_a_glob_that_would_find_the_output_is_refused_before_there_is_one(
    make_job: MakeJob, records: Path, pattern: str
) -> None:
    job = make_job(input={"path": f"{records}/{pattern}"}, output={"path": str(records / "out")})
    with pytest.raises(ConfigError, match=r"out lies in the input .*, whose next run would read it"):
        prepare(job)


@pytest.mark.parametrize(
    ("pattern", "out", "output", "refused"),
    [
        ("*.parquet", "out", {}, False),
        ("**/a.parquet", "out", {}, False),
        ("*/**/*.parquet", "_out", {}, False),
        ("*/*.parquet", "out/deep", {}, False),
        ("*/*/*.parquet", "out", {}, False),
        ("*/*/*.parquet", "out", {"partition_by": ["id"]}, True),
        ("**/*.parquet", "out", {"format": "jsonl"}, False),
        ("**/*.jsonl", "out", {"format": "jsonl"}, True),
    ],
)
def test_whether_a_glob_would_find_the_output_is_told_by_the_names_of_its_parts(
    make_job: MakeJob, records: Path, pattern: str, out: str, output: dict[str, Any], refused: bool
) -> None:
    for name in ("a.parquet", "deep/deep/a.parquet", "deep/b.parquet", "c/d.jsonl"):
        (records / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("jsonl"):
            (records / name).write_text('{"id": 1, "text": "a"}\n')
        elif name != "a.parquet":
            shutil.copy(records / "a.parquet", records / name)
    job = make_job(input={"path": f"{records}/{pattern}"}, output={"path": str(records / out), **output})
    if refused:
        with pytest.raises(ConfigError, match="lies in the input"):
            prepare(job)
    else:
        assert prepare(job)


def test_an_incremental_run_is_told_by_the_folders_that_its_parts_get(make_job: MakeJob, records: Path) -> None:
    def job(**output: Any) -> Job:
        source = {"path": f"{records}/*/*/part-*.parquet", "incremental": True}
        return make_job(input=source, output={"path": str(records / "out"), **output})

    with pytest.raises(ConfigError, match="lies in the input"):
        check_apart(job())
    check_apart(job(incremental="append"))


@pytest.mark.parametrize("pattern", ["", "/link", "/link/*", "/*.parquet"])
def test_a_file_that_lies_in_the_output_by_a_link_is_refused(
    make_job: MakeJob, records: Path, tmp_path: Path, pattern: str
) -> None:
    claim_output(first := prepare(make_job()))
    finish(first)
    part = Path(output_of(first).parts()[0])
    if pattern == "/*.parquet":
        (records / "link.parquet").symlink_to(part)
    else:
        (records / "a.parquet").unlink()
        (records / "link").symlink_to(part.parent)
    with pytest.raises(
        ConfigError, match=r"^(input\.path: .*link.* lies in the output|output\.path: .* holds the input)"
    ):
        prepare(make_job(input={"path": f"{records}{pattern}"}))
    with pytest.raises(ConfigError, match=r"lies in the output|holds the input"):
        check_apart(job := make_job(input={"path": f"{records}{pattern}", "incremental": True}))
        find(job, Ledger())


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("s3://b/data/**/*.parquet", "lies in"),
        ("s3://b/*/", "lies in"),
        ("s3://b/data?region=us-east-1", "lies in"),
        ("s3://b/data/*/*.parquet?region=us-east-1", "lies in"),
        ("s3://b/data/out/*.parquet", "holds"),
        ("s3://b/data/*.parquet", None),
        ("s3://b/data/*/*/*.parquet", None),
        ("s3://b/data/outer", None),
        ("s3://other/data", None),
        ("/data/*", None),
    ],
)
def test_a_glob_and_an_output_in_a_bucket_are_apart(make_job: MakeJob, path: str, refused: str | None) -> None:
    job = make_job(input={"path": path}, output={"path": "s3://b/data/out"})
    if refused:
        with pytest.raises(ConfigError, match=refused):
            check_apart(job)
    else:
        check_apart(job)
    with pytest.raises(ConfigError, match="lies in the output"):
        check_found_apart(job, ["s3://b/data/a.parquet", f"{job.output.path}/run=1/part-00000.parquet?region=x"])
    check_found_apart(job, ["s3://b/data/a.parquet", f"{job.output.path}-2/part-00000.parquet"])


def test_names_that_only_begin_alike_are_apart(make_job: MakeJob, records: Path) -> None:
    assert prepare(make_job(output={"path": f"{records}-out"}))
    assert prepare(make_job(output={"path": str(records)[:-1]}))


def test_an_output_by_another_name_is_the_same_output(make_job: MakeJob, records: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(records)
    with pytest.raises(ConfigError, match="holds the input"):
        prepare(make_job(output={"path": str(tmp_path / "link")}))
