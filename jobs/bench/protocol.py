"""The line between the suite and an engine under test: a process of its own, one JSON object a line each way.

The suite sends `{"op": "load", ...}`, then any number of `{"op": "run", ...}`; closing the pipe ends the worker. Only
one worker is ever asked something at a time, so that the others idle. Standard library only: vLLM's worker runs in an
environment that has nothing of ours installed.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

Message = dict[str, Any]
Answer = Callable[[Message], Message]

ROOT = Path(__file__).parents[2]
END_GRACE_S = 20.0


class WorkerError(Exception):
    """A worker could not do what it was asked, or is gone."""


class Worker:
    """A running engine, seen from the suite."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start the process; what it prints besides its answers goes to the end of `log`."""
        self._log = log
        with log.open("a") as file:
            self._process = subprocess.Popen(  # noqa: S603 - our own workers
                list(command),
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def ask(self, message: Message) -> Message:
        """Send a message and wait for its answer. Raises WorkerError, saying what went wrong over there."""
        assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(self._last_words()) from error
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        answer: Message = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process: ask by closing its pipe, then insist."""
        assert self._process.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=END_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        code = self._process.wait(timeout=END_GRACE_S)
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"the worker ended with exit code {code}; {self._log} ends with: {lines[-1] if lines else 'nothing'}"


def serve(operations: Mapping[str, Answer]) -> None:
    """Answer messages from stdin until it is closed. The caller's process is a worker from here on."""
    answers = _own_stdout()
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = operations[message.pop("op")](message)
        except Exception as error:  # noqa: BLE001 - a leg that fails is reported; the other legs go on
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {_first_line(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _own_stdout() -> TextIO:
    """Return the pipe to the suite, and send whatever libraries print to stderr instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no details"
