"""Waiting: the groups that wait, in the order in which they are to begin."""

from bisect import insort
from collections import deque
from collections.abc import Iterator

from gptj_batch.engine.sequence import Group

WINDOW_SIZE = 4096
"""How many groups are put in order at a time; all of them begin before the next window is opened."""


class Waiting:
    """Keep those that wait: a window, longest output first, and behind it the rest in order of arrival.

    What is long must not begin last, or it runs on alone at the end with the batch all but empty. Nothing starves,
    since a window is emptied before the next one is filled. What comes back (preempted, or held back for a while) goes
    to the place it had.
    """

    def __init__(self) -> None:
        self._window: list[Group] = []  # the first to begin stands last
        self._arrivals: deque[Group] = deque()
        self._num_ranked = 0
        self.max_new_tokens = 0  # that all of them together may still generate

    def __len__(self) -> int:
        return len(self._window) + len(self._arrivals)

    def __iter__(self) -> Iterator[Group]:
        yield from reversed(self._window)
        yield from self._arrivals

    def add(self, group: Group) -> None:
        """Let a new group wait."""
        self.max_new_tokens += group.max_new_tokens
        self._arrivals.append(group)

    def first(self) -> Group | None:
        """Return the group that is to begin next, without taking it out."""
        if not self._window and self._arrivals:
            self._open_window()
        return self._window[-1] if self._window else None

    def take_first(self) -> Group:
        """Take out the group that `first` returned."""
        group = self._window.pop()
        self.max_new_tokens -= group.max_new_tokens
        return group

    def put_back(self, group: Group) -> None:
        """Let a group wait again, at the place it had."""
        self.max_new_tokens += group.max_new_tokens
        insort(self._window, group, key=_last_first)

    def remove(self, group: Group) -> None:
        """Take out a group, wherever it waits."""
        self.max_new_tokens -= group.max_new_tokens
        (self._window if group.rank >= 0 else self._arrivals).remove(group)

    def _open_window(self) -> None:
        arrived = [self._arrivals.popleft() for _ in range(min(WINDOW_SIZE, len(self._arrivals)))]
        arrived.sort(key=lambda group: -group.sequences[0].request.sampling.max_new_tokens)
        for group in arrived:
            group.rank = self._num_ranked
            self._num_ranked += 1
        self._window = arrived[::-1]


def _last_first(group: Group) -> int:
    return -group.rank
