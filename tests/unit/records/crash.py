"""A process that is killed between two steps: a child that ends before its n-th change to the disk."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

# "ctypes.dlsym" is the exchange of two folders, which has no event of its own.
_CHANGES = {
    "ctypes.dlsym",
    "open",
    "os.rename",
    "os.link",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "shutil.rmtree",
    "shutil.copyfile",
}
_KILLED, _FAILED = 9, 1


def crashes(action: Callable[[int], object]) -> Iterator[int]:
    """Run `action(n)` killed before its n-th change, for every n, and yield n after each; then run it through."""
    for number in itertools.count(1):
        if not killed_before_change(number, partial(action, number)):
            assert number > 4, "the changes were not seen"
            return
        yield number


def killed_before_change(number: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that ends, without any clean-up, before change `number`; False where it got through."""
    child = os.fork()
    if child == 0:
        _run_and_exit(number, action)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, _KILLED), "the action failed of itself"
    return code == _KILLED


def _run_and_exit(number: int, action: Callable[[], object]) -> None:
    changes = itertools.count(1)

    def hook(event: str, _: tuple[object, ...]) -> None:
        if event in _CHANGES and next(changes) == number:
            os._exit(_KILLED)

    try:
        sys.addaudithook(hook)
        action()
    except BaseException:
        os._exit(_FAILED)
    os._exit(0)
