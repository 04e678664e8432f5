import json
from pathlib import Path

import pytest

from gptj_batch.errors import ConfigError
from jobs.report import remake_report


def test_a_folder_that_no_run_wrote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_text("")
    with pytest.raises(ConfigError, match="is no output of gptj-batch"):
        remake_report(str(tmp_path))


def test_a_run_that_was_cut_off_without_a_word_is_told(tmp_path: Path) -> None:
    (tmp_path / "_gptj_batch").mkdir()
    (tmp_path / "_gptj_batch" / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match="run the job again"):
        remake_report(str(tmp_path))


def test_a_run_that_did_not_finish_ends_with_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "_gptj_batch").mkdir()
    failure = {"units": 5, "units_done": 2, "exit_code": 143, "reason": "stopped by SIGTERM"}
    (tmp_path / "_gptj_batch" / "run.json").write_text(json.dumps(failure))
    assert remake_report(str(tmp_path)) == 143
    assert "2 of 5 units are done; stopped by SIGTERM" in capsys.readouterr().out
