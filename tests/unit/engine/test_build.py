"""Building the kernels: in a home of the test's own, and with compilers that are scripts where a real one won't do."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptj_batch.engine.cpu_kernels import build
from gptj_batch.engine.cpu_kernels.build import KernelsUnavailable

from .kernels_here import needs_kernels

Compiler = Callable[[str], Path]
ELEMENT = "float"
SMALL_SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Build a source of one line, which takes a tenth of the time, into an empty home."""
    source = tmp_path / "small.cpp"
    source.write_text(SMALL_SOURCE)
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Make the only compiler on the path a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(script: str) -> Path:
        file = folder / "g++"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    return make


def libraries(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "gptj_batch").glob("*"))


@needs_kernels
def test_what_was_built_is_kept_and_found_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build._load(ELEMENT).answer() == 42
    (library,) = libraries(home)
    assert library.name.startswith("kernels-") and library.suffix == ".so"

    def never(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(build, "_build", never)
    begin = time.monotonic()
    assert build._load(ELEMENT).answer() == 42
    assert time.monotonic() - begin < 2.0
    assert libraries(home) == [library]


@needs_kernels
def test_only_this_user_may_write_to_what_is_loaded(home: Path) -> None:
    build._load(ELEMENT)
    (library,) = libraries(home)
    assert library.parent.stat().st_mode & 0o022 == 0


@needs_kernels
def test_a_folder_that_others_may_write_to_is_not_used(home: Path) -> None:
    folder = home / ".cache" / "gptj_batch"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert build._load(ELEMENT).answer() == 42
    assert libraries(home) == []


@needs_kernels
def test_without_a_home_it_is_built_elsewhere_and_nothing_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "temporary"))
    assert build._load(ELEMENT).answer() == 42
    assert list((tmp_path / "temporary").iterdir()) == []


def test_without_a_compiler_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailable, match=r"no C\+\+ compiler \(g\+\+, .*\) was found; install g\+\+"):
        build._load(ELEMENT)


def test_a_compiler_that_fails_is_quoted_with_its_first_line(compiler: Compiler, home: Path) -> None:
    compiler('echo "small.cpp:1: error: no such luck" >&2; echo "more" >&2; exit 1')
    with pytest.raises(KernelsUnavailable, match=r"could not build small.cpp: small.cpp:1: error: no such luck$"):
        build._load(ELEMENT)
    assert libraries(home) == [], "nothing half finished is left"


def test_a_compiler_that_fails_without_a_word_is_named(compiler: Compiler) -> None:
    file = compiler("exit 1")
    with pytest.raises(KernelsUnavailable, match=rf"{file} could not build small.cpp: no message$".replace("+", r"\+")):
        build._load(ELEMENT)


def test_a_compiler_that_does_not_end_is_given_up(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    compiler('test "$1" = --version || exec /bin/sleep 30')
    monkeypatch.setattr(build, "MAX_BUILD_S", 0.2)
    with pytest.raises(KernelsUnavailable, match=r"could not be run \(TimeoutExpired\)"):
        build._load(ELEMENT)
    assert libraries(home) == []


def test_a_compiler_that_cannot_be_run_is_given_up(compiler: Compiler) -> None:
    compiler("").write_text("#!/no/such/shell\n")
    with pytest.raises(KernelsUnavailable, match=r"could not be run \(FileNotFoundError\)"):
        build._load(ELEMENT)


def test_a_library_that_cannot_be_loaded_says_which_file_to_remove(compiler: Compiler, home: Path) -> None:
    compiler('test "$1" = --version && exit; for last; do :; done; echo "no library" > "$last"')
    with pytest.raises(KernelsUnavailable, match=r"cannot be loaded: .*; remove it, so that it is built again"):
        build._load(ELEMENT)
    (library,) = libraries(home)
    with pytest.raises(KernelsUnavailable, match=library.name):
        build._load(ELEMENT)


def test_a_disk_on_which_nothing_can_be_written_is_no_crash(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler("exit 0")

    def no_space(**_: object) -> tuple[int, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.tempfile, "mkstemp", no_space)
    with pytest.raises(KernelsUnavailable, match="No space left on device"):
        build._load(ELEMENT)


def test_a_machine_without_a_folder_for_temporary_files_is_no_crash(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler("exit 0")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))

    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "no such folder"))
    with pytest.raises(KernelsUnavailable, match=r"nowhere to keep what .* builds: .*No such file"):
        build._load(ELEMENT)


def test_a_failure_is_remembered_and_raised_again(compiler: Compiler, tmp_path: Path) -> None:
    compiler(f'echo >> {tmp_path}/calls; test "$1" = --version || exit 1')
    build._load_once.cache_clear()
    try:
        for _ in range(3):
            with pytest.raises(KernelsUnavailable):
                build.load_library(torch.float32)
        assert len((tmp_path / "calls").read_text().splitlines()) == 2, "one for the version, one to build"
    finally:
        build._load_once.cache_clear()


def test_the_name_changes_with_source_flags_compiler_and_cpu(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = compiler("echo version 1")
    names = [build._fingerprint([str(file), *build.FLAGS])]
    assert build._fingerprint([str(file), *build.FLAGS]) == names[0]
    build.SOURCE.write_text("// changed\n")
    names.append(build._fingerprint([str(file), *build.FLAGS]))
    monkeypatch.setattr(build, "FLAGS", ("-O0",))
    names.append(build._fingerprint([str(file), *build.FLAGS]))
    compiler("echo version 2")
    names.append(build._fingerprint([str(file), *build.FLAGS]))
    monkeypatch.setattr(build, "_cpu_features", lambda: "flags: mmx")
    names.append(build._fingerprint([str(file), *build.FLAGS]))
    assert len(set(names)) == 5


@needs_kernels
def test_two_processes_may_build_at_once(home: Path) -> None:
    program = (
        "import sys, pathlib; from gptj_batch.engine.cpu_kernels import build;"
        "build.SOURCE = pathlib.Path(sys.argv[1]); assert build._load('float').answer() == 42"
    )
    command = [sys.executable, "-c", program, str(build.SOURCE)]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[3]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(libraries(home)) == 1
