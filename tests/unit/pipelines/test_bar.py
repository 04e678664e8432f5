"""The progress of a notebook function where there is no notebook, and where there is one."""

import io
import sys
from types import SimpleNamespace

import pytest

from pipelines.bar import Bar, Line, Silent, in_jupyter, progress_of

COUNTS = {"rows": 30, "failed": 2, "truncated": 0, "duplicates": 0, "prompt_tokens": 100, "generated_tokens": 20}


def test_a_line_ends_with_the_whole_calls_rates() -> None:
    stream = io.StringIO()
    line = Line("classify", 60, stream)
    line.add(COUNTS)
    line.add(COUNTS)
    line.finish()
    (last,) = stream.getvalue().splitlines()
    assert last.startswith("classify: 60 rows in 0 s | ") and "rows/s" in last and last.endswith("tokens/s, 4 failed")
    assert line.counts.tokens == 240 and line.seconds > 0


def test_a_line_goes_on_where_nobody_knows_how_many_rows_there_will_be() -> None:
    stream = io.StringIO()
    line = Line("classify", None, stream)
    line.add(COUNTS)
    line.finish()
    assert "30 rows" in stream.getvalue()


def test_who_wants_quiet_sees_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress_of("classify", 3, is_wanted=False)
    shown.add(COUNTS)
    shown.finish()
    assert isinstance(shown, Silent) and shown.counts.rows == 30
    assert capsys.readouterr() == ("", "")


def test_a_bar_has_rows_tokens_and_failures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.bar.find_spec", lambda name: None)
    bar = Bar("classify", 60)
    bar.add(COUNTS)
    bar.add(COUNTS)
    bar.finish()
    said = capsys.readouterr()
    assert "classify" in said.err and "60/60" in said.err
    assert said.out.startswith("classify: 60 rows in 0 s") and said.out.endswith("tokens/s, 4 failed\n")


def test_only_a_kernel_is_jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_jupyter()
    for shell, expected in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)):
        fake = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", fake)  # type: ignore[arg-type]
        assert in_jupyter() is expected
