import argparse
import io
from pathlib import Path
from typing import Any

import pytest

from gptj_batch import __version__
from gptj_batch.errors import BackendError, CheckpointError, ConfigError, InputError, OutputError
from jobs import cli
from jobs.cli import main
from jobs.failures import Stopped

JOB = """\
name: x
input: {path: none/*.parquet}
task: {kind: generate, prompt: "{{ text }}"}
model: {path: none/model}
output: {path: out}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    return "job.yaml"


def let_run(monkeypatch: pytest.MonkeyPatch, outcome: int | BaseException) -> list[argparse.Namespace]:
    """Let the command `run` end like this; return the list of what it was asked."""
    asked: list[argparse.Namespace] = []

    def run(options: argparse.Namespace) -> int:
        asked.append(options)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(cli, "_run", run)
    return asked


# Arguments


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["rnu"],
        ["run"],
        ["run", "a.yaml", "--limt", "3"],
        ["run", "a.yaml", "--limit", "x"],
        ["convert", "a"],
        ["demo", "x"],
    ],
)
def test_arguments_that_are_none_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: gptj-batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["convert", "-h"], ["demo", "-h"], ["version", "-h"]]
)
def test_help_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: gptj-batch")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "job.yaml", "a.b=1", "c.d={{ x }}", "--limit", "3", "--address", "1.2.3.4:6379"],
        ["run", "--limit", "3", "--address", "1.2.3.4:6379", "job.yaml", "a.b=1", "c.d={{ x }}"],
    ],
)
def test_options_stand_before_or_behind(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    asked = let_run(monkeypatch, 0)
    assert main(arguments) == 0
    (options,) = asked
    assert (options.config, options.overrides) == ("job.yaml", ["a.b=1", "c.d={{ x }}"])
    assert (options.limit, options.address, options.debug) == (3, "1.2.3.4:6379", False)


def test_overrides_may_stand_behind_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = let_run(monkeypatch, 0)
    main(["run", "job.yaml", "--limit", "3", "a.b=1"])
    assert asked[0].overrides == ["a.b=1"]


# Ends


@pytest.mark.parametrize("code", [0, 3])
def test_the_code_of_a_run_is_the_commands(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    let_run(monkeypatch, code)
    assert main(["run", "job.yaml"]) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("why"), 2),
        (InputError("why"), 2),
        (CheckpointError("why"), 2),
        (OutputError("why"), 1),
        (BackendError("why"), 1),
    ],
)
def test_an_error_of_ours_is_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    let_run(monkeypatch, error)
    assert main(["run", "job.yaml"]) == code
    captured = capsys.readouterr()
    assert (captured.err, captured.out) == ("gptj-batch: why\n", "")


def test_debug_shows_where_an_error_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (ConfigError("why"), ZeroDivisionError("why")):
        let_run(monkeypatch, error)
        main(["run", "job.yaml", "--debug"])
        assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ZeroDivisionError("division\nof text"), "gptj-batch: unexpected ZeroDivisionError: division (--debug"),
        (MemoryError(), "gptj-batch: unexpected MemoryError: no details (--debug"),
        (ValueError("x" * 1000), "gptj-batch: unexpected ValueError: " + "x" * 300 + " (--debug"),
    ],
)
def test_a_bug_is_one_line_and_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, text: str
) -> None:
    let_run(monkeypatch, error)
    assert main(["run", "job.yaml"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(text) and said.count("\n") == 1


@pytest.mark.parametrize(
    ("end", "code"), [(Stopped.by_signal(2), 130), (Stopped.by_signal(15), 143), (KeyboardInterrupt(), 130)]
)
def test_being_stopped_is_not_a_failure_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: BaseException, code: int
) -> None:
    let_run(monkeypatch, end)
    assert main(["run", "job.yaml"]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if isinstance(end, Stopped):
        assert said == f"\ngptj-batch: stopped by {end}; run the same command again to go on\n"


def test_a_reader_that_has_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    let_run(monkeypatch, BrokenPipeError())
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert main(["run", "job.yaml"]) == 0


# What is wrong is found before anything starts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "job file none.yaml cannot be read: No such file or directory"),
        (["job.yaml"], 'input.path: nothing matches "none/*.parquet"'),
        (
            ["job.yaml", "--limit", "0"],
            'override "input.limit=0": input.limit: must be greater than or equal to 1, got 0',
        ),
        (["job.yaml", "nonsense"], 'override "nonsense" must have the form setting.name=value'),
        (["job.yaml", "task.temprature=1"], "did you mean task.temperature?"),
        (["job.yaml", "backend.kind=vllm", "model.dtype=int8"], "model.dtype: int8 is the native engine's own"),
    ],
)
def test_a_run_that_cannot_be_ends_with_2_and_the_reason(
    job: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gptj-batch: ") and message in captured.err
    assert captured.out == "" and not Path("out").exists()


def test_every_problem_of_a_file_has_its_line(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(job).write_text(JOB.replace("out}", "out, prefx: g}") + "errors: {max_failed_rows: -1}\n")
    assert main(["run", job]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("gptj-batch: ").split(": ")[0] for line in lines] == ["job.yaml:5:21", "job.yaml:6:10"]


def test_the_limit_of_the_command_line_wins(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = []

    def run_job(job: Any, address: str | None, limits: Any, rescore: Any) -> int:
        jobs.append((job.input.limit, address))
        return 0

    monkeypatch.setattr("jobs.run.run_job", run_job)
    assert main(["run", job, "input.limit=9", "--limit", "5", "--address", "auto"]) == 0
    assert jobs == [(5, "auto")]


def test_python_jobs_run_is_the_same_command(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.run import main as run_main

    assert run_main([job]) == 2
    assert 'input.path: nothing matches "none/*.parquet"' in capsys.readouterr().err


def test_version_names_the_packages_and_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"gptj-batch {__version__}"
    assert {line.split()[0] for line in lines[1:]} >= {"torch", "ray", "pyarrow", "vllm", "python", "devices"}
