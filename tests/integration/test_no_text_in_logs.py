"""What records say is in the output and nowhere else."""

from pathlib import Path

import pytest

from integration.desk import GENERATE, Desk, text_with_bad_bytes
from integration.running import (
    CANARY,
    Outcome,
    environment,
    outcome,
    run_report,
    start_command,
)

pytestmark = pytest.mark.timeout(600)


def test_no_text_of_a_record_is_in_any_log_message_or_report(
    generated: tuple[Desk, Outcome], desk: Desk, tmp_path: Path
) -> None:
    # A command of its own, so that what native code prints is seen too: rows that fail in every stage they can.
    texts: list[bytes | None] = [f"{CANARY} {'~' * 100}".encode(), CANARY.encode() + b"\xff", None, CANARY.encode()]
    source = desk.write_rows({"text": text_with_bad_bytes(texts), "number": [1, 0, 1, 0]})
    job = desk.job(source, {**GENERATE, "prompt": "{{ text }} {{ 1 / number }}"})
    arguments = ["run", str(job), "--address", desk.cluster.address]
    ended = outcome(start_command(arguments, environment(tmp_path, RAY_AUTH_MODE="disabled"), tmp_path))
    assert ended.code == 3, ended.stderr
    assert run_report(desk.output())["failed"] == 4
    said = [generated[1].stdout, generated[1].stderr, ended.stdout, ended.stderr]
    assert not [text for text in said if CANARY in text]
    logs = [file for file in desk.cluster.folder.rglob("*") if file.is_file() and "logs" in file.parts]
    reports = [file for one in (desk, generated[0]) for file in (one.output() / "_gptj_batch").iterdir()]
    assert len(logs) > 10
    assert not [file for file in (*logs, *reports) if CANARY.encode() in file.read_bytes()]
