"""The claim on an output, for as long as a call of a notebook function writes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptj_batch.records.beside import change_places, recover
from gptj_batch.records.lease import Fence, take_lease
from gptj_batch.records.publish import is_complete
from pipelines.destination import check_output, claim_output, placed
from pipelines.prepare import Run


@dataclass(frozen=True)
class Claim:
    """The run, placed where it writes; the units still to do; and what tells whether the output is still its own.

    fence: None where all was done and published before, and nothing is to be written
    """

    run: Run
    pending: NDArray[np.int32]
    fence: Fence | None

    @property
    def is_done(self) -> bool:
        """Say whether there is nothing to do."""
        return self.fence is None


@contextmanager
def claimed(run: Run) -> Iterator[Claim]:
    """Hold the lease on a run's output; one that is complete, and stays, is only read and needs none.

    Raises ConfigError where another configuration made what is there, OutputInUseError where another run that is alive
    has it.
    """
    output, nothing = run.job.output.path, np.zeros(0, dtype=np.int32)
    recover(output)
    check_output(run)
    if run.job.output.on_exists != "overwrite" and is_complete(output):
        claim_output(run)
        yield Claim(run, nothing, None)
        return
    with take_lease(output) as lease:
        run = placed(run)
        pending = claim_output(run)
        if run.is_beside and is_complete(run.folder):  # the run that made it was cut off before the last step
            change_places(output)
            yield Claim(run, nothing, None)
        else:
            yield Claim(run, pending, lease.fence)
