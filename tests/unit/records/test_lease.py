import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gptj_batch.errors import OutputInUseError
from gptj_batch.records.lease import Fence, Lease, take_lease
from gptj_batch.records.output import OutputFolder
from gptj_batch.records.progress import clean, contents, save_plan

SHORT_S = 0.6  # an expiry that a test can wait for


def leases(output: Path) -> list[str]:
    return sorted(path.name for path in OutputFolder.at(output).private.iterdir())


def change(output: Path, **values: object) -> None:
    """Make the newest lease another machine's, or another process'."""
    path = OutputFolder.at(output).private / leases(output)[-1]
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def held_elsewhere(output: Path) -> Lease:
    """A lease whose holder cannot be looked at, and does not touch it."""
    lease = take_lease(output, SHORT_S)
    change(output, machine="another", host="farawayhost", pid=4711)
    return lease


def holder(output: Path, then: str) -> "subprocess.Popen[str]":
    """A process that takes the lease, says so, and then does something."""
    code = f"""
        import sys, time
        from gptj_batch.records.lease import take_lease
        with take_lease({str(output)!r}, {SHORT_S}) as lease:
            print("held", flush=True)
            {then}
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_with_who_has_the_output(tmp_path: Path) -> None:
    with take_lease(tmp_path), pytest.raises(OutputInUseError, match="held by another run that is alive") as refused:
        take_lease(tmp_path)
    assert f"process {os.getpid()}, since 20" in str(refused.value)
    assert "last sign of life 0 s ago" in str(refused.value)


def test_a_lease_is_alive_though_the_folder_changes_places_while_the_time_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    fstat, stat = os.fstat, os.stat

    def moved() -> None:
        if any(".lease-" in path.name for path in (output / "_gptj_batch").iterdir()):
            shutil.copytree(output, elsewhere, ignore=shutil.ignore_patterns(".lease-*"))
            output.rename(tmp_path / "old")
            elsewhere.rename(output)
            monkeypatch.undo()

    monkeypatch.setattr(os, "fstat", lambda file: (moved(), fstat(file))[1])
    with take_lease(output) as lease:
        monkeypatch.setattr(Path, "stat", lambda path, **options: (moved(), stat(path, **options))[1])
        with pytest.raises(OutputInUseError, match="alive"):
            take_lease(output)
        lease.check()


def test_what_is_given_back_can_be_taken_again_and_nothing_is_left(tmp_path: Path) -> None:
    for _ in range(3):
        with take_lease(tmp_path) as lease:
            lease.check()
        assert leases(tmp_path) == []


def test_the_lease_of_a_process_that_was_killed_is_taken_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path, "time.sleep(600)")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with take_lease(tmp_path) as lease:
        assert lease.fence.epoch == 2
        assert leases(tmp_path) == ["lease-00000002.json"]


def test_a_process_that_is_dead_but_was_not_waited_for_holds_nothing(tmp_path: Path) -> None:
    process = holder(tmp_path, "time.sleep(600)")
    process.send_signal(signal.SIGKILL)
    time.sleep(0.2)
    with take_lease(tmp_path):
        pass
    process.wait()


def test_another_process_of_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    take_lease(tmp_path)
    change(tmp_path, started="1")
    with take_lease(tmp_path) as lease:
        assert lease.fence.epoch == 2


def test_a_holder_on_another_machine_is_waited_for(tmp_path: Path) -> None:
    held_elsewhere(tmp_path)
    with pytest.raises(OutputInUseError, match="host farawayhost, process 4711"):
        take_lease(tmp_path, SHORT_S)
    time.sleep(SHORT_S + 0.2)
    with take_lease(tmp_path, SHORT_S) as lease:
        assert lease.fence.epoch == 2


def test_a_lease_is_kept_alive_while_it_is_held(tmp_path: Path) -> None:
    with take_lease(tmp_path, SHORT_S) as lease:
        change(tmp_path, machine="another")
        time.sleep(2 * SHORT_S)
        with pytest.raises(OutputInUseError):
            take_lease(tmp_path, SHORT_S)
        lease.check()


def test_a_holder_that_slept_too_long_is_told_who_took_over(tmp_path: Path) -> None:
    asleep = held_elsewhere(tmp_path)
    time.sleep(SHORT_S + 0.2)
    taken_over = pytest.raises(OutputInUseError, match=f"taken over by a run on host .*, process {os.getpid()}")
    with take_lease(tmp_path, SHORT_S), taken_over:
        asleep.check()
    with pytest.raises(OutputInUseError, match="has ended since"):
        asleep.check()


def test_a_stopped_process_that_goes_on_leaves_the_taker_alone(tmp_path: Path) -> None:
    process = holder(tmp_path, "time.sleep(1.5)\n            lease.check()")
    process.send_signal(signal.SIGSTOP)
    time.sleep(SHORT_S + 0.3)
    with take_lease(tmp_path, SHORT_S) as lease:
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 1, "its check raised"
        lease.check()
    assert leases(tmp_path) == []


def test_the_same_epoch_of_a_later_run_is_not_ones_own(tmp_path: Path) -> None:
    zombie = held_elsewhere(tmp_path)
    (OutputFolder.at(tmp_path).private / "lease-00000001.json").unlink()
    with take_lease(tmp_path) as lease:
        assert lease.fence.epoch == zombie.fence.epoch == 1
        with pytest.raises(OutputInUseError):
            zombie.check()
        with zombie:
            pass  # leaving it must not remove what is another's
        lease.check()


def test_of_many_that_want_a_dead_ones_lease_one_gets_it(tmp_path: Path) -> None:
    take_lease(tmp_path)
    change(tmp_path, started="1")
    code = f"""
        import sys, time
        from gptj_batch.errors import OutputInUseError
        from gptj_batch.records.lease import take_lease
        time.sleep(max(0.0, {time.time() + 2} - time.time()))
        try:
            take_lease({str(tmp_path)!r}, 60.0)
        except OutputInUseError:
            sys.exit(4)
        time.sleep(5)
    """
    takers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)]) for _ in range(6)]
    assert sorted(taker.wait() for taker in takers) == [0, 4, 4, 4, 4, 4]


def test_a_fence_travels_as_plain_values(tmp_path: Path) -> None:
    with take_lease(tmp_path) as lease:
        Fence(lease.fence.output, lease.fence.epoch, lease.fence.token).check()


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*paths: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with take_lease(tmp_path) as lease:
        lease.check()
        with pytest.raises(OutputInUseError):
            take_lease(tmp_path)


def test_a_lease_that_cannot_be_read_is_alive_until_it_expires(tmp_path: Path) -> None:
    held_elsewhere(tmp_path)
    (OutputFolder.at(tmp_path).private / "lease-00000001.json").write_text("")
    with pytest.raises(OutputInUseError, match=r"see .*lease-00000001\.json"):
        take_lease(tmp_path, SHORT_S)
    time.sleep(SHORT_S + 0.2)
    with take_lease(tmp_path, SHORT_S):
        pass


def test_a_lease_is_no_output_and_survives_cleaning(tmp_path: Path) -> None:
    with take_lease(tmp_path) as lease:
        assert contents(tmp_path) == "nothing"
        (tmp_path / "notes.txt").touch()
        assert contents(tmp_path) == "foreign"
        (tmp_path / "notes.txt").unlink()
        save_plan(tmp_path, {})
        assert contents(tmp_path) == "ours"
        clean(tmp_path)
        lease.check()
        assert leases(tmp_path) == ["lease-00000001.json"]
    shutil.rmtree(tmp_path / "_gptj_batch")
