"""How a run ends when it does not end well: which exit code, and one paragraph that says why."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gptj_batch.errors import (
    CheckpointError,
    ConfigError,
    GPTJBatchError,
    InputError,
    OutputInUseError,
    TooManyFailedError,
)

# In the order in which the tree in errors.py has them; an OutputError, a BackendError and a bug are all 1.
EXIT_USER_MUST_ACT, EXIT_TOO_MANY_FAILED, EXIT_IN_USE, EXIT_OUT_OF_TIME = 2, 3, 4, 75
_CODES: tuple[tuple[type[GPTJBatchError], int], ...] = (
    (ConfigError, EXIT_USER_MUST_ACT),
    (InputError, EXIT_USER_MUST_ACT),
    (CheckpointError, EXIT_USER_MUST_ACT),
    (OutputInUseError, EXIT_IN_USE),
    (TooManyFailedError, EXIT_TOO_MANY_FAILED),
)


class Stopped(KeyboardInterrupt):
    """The run was asked to end: by the user, by `ray job stop`, or by a limit of its time."""

    def __init__(self, by: str, code: int) -> None:
        self.exit_code = code
        super().__init__(by)

    @classmethod
    def by_signal(cls, number: int) -> "Stopped":
        """Return the end that a signal asks for."""
        return cls(signal.Signals(number).name, 128 + number)


def exit_code(error: GPTJBatchError) -> int:
    """Return the exit code that the contract gives an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)


def ending(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the reason of a run that an error ends; of an unexpected one only its kind is told.

    An error that is not ours might quote a record.
    """
    if isinstance(error, GPTJBatchError):
        return exit_code(error), str(error)
    if isinstance(error, Stopped):
        return error.exit_code, f"stopped by {error}"
    return 1, f"unexpected {type(error).__name__}; --debug shows where"


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Stopped`, in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped.by_signal(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
