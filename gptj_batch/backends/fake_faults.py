"""Faults of the fake backend: ways to misbehave that a test asks for, to see what becomes of the run.

They stand in the `config.json` of the model folder, under the key `fake_faults`; no model that anybody publishes has
it, and no other backend looks at it:

    {"fake_faults": {"kill_token": 5, "hang_token": 6, "memory_token": 7, "dead_token": 8, "max_requests": 64,
                     "request_s": 0.01, "starts_folder": "/tmp/starts"}}
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from gptj_batch.backends.fake import FakeBackend
from gptj_batch.errors import BackendError
from gptj_batch.requests import AnyRequest
from gptj_batch.results import AnyResult

KEY = "fake_faults"
_HANG_S = 10**6


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, each where a prompt holds the token of that name.

    kill_token: the process is killed    hang_token: the call never ends    memory_token: MemoryError
    dead_token: the engine is dead (BackendError)
    max_requests: a call with more raises MemoryError    request_s: how long a request takes
    starts_folder: every backend that is started leaves a file there
    """

    kill_token: int | None = None
    hang_token: int | None = None
    memory_token: int | None = None
    dead_token: int | None = None
    max_requests: int | None = None
    request_s: float = 0.0
    starts_folder: str | None = None

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self | None:
        """Return the faults that a model's configuration asks for; None for nearly all."""
        return cls(**config[KEY]) if KEY in config else None


class FaultyBackend(FakeBackend):
    """A fake that does what `Faults` say."""

    def __init__(self, faults: Faults, *sizes: int) -> None:
        super().__init__(*sizes)
        self._faults = faults
        if faults.starts_folder is not None:
            (Path(faults.starts_folder) / f"{os.getpid()}-{uuid4().hex}").touch()

    def run(self, requests: Sequence[AnyRequest]) -> list[AnyResult]:
        """Misbehave, or answer every request; see `Backend.run`."""
        faults = self._faults
        tokens = {token for request in requests for token in request.prompt_token_ids}
        time.sleep(faults.request_s * len(requests))
        if faults.kill_token in tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        if faults.hang_token in tokens:
            time.sleep(_HANG_S)
        if faults.dead_token in tokens:
            raise BackendError("the engine stopped: as it was told; start a new one")
        if faults.memory_token in tokens or len(requests) > (faults.max_requests or len(requests)):
            raise MemoryError
        return super().run(requests)
