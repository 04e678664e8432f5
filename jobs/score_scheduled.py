"""What every scheduler starts: an incremental run, `gptj-batch run CONFIG.yaml --incremental` under another name.

    python jobs/score_scheduled.py CONFIG.yaml a.b=c

It may be started twice, late, or after a run that failed: of two at the same time one ends with 4 and does nothing, a
missed time is made up for by the next, an interrupted run is gone on with, and with nothing new it ends within seconds,
with 0, or with 3 while the last run's rows are such that it ended with 3. It tells how far the rows drifted from those
of the run before, and ends with 3 where that is more than `drift.max_psi`. All other exit codes are those of
`gptj-batch run`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Started as a file: the folder above it is where the packages are, installed or not.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gptj-batch run --incremental` with these arguments."""
    from jobs.cli import main as cli_main

    return cli_main(["run", "--incremental", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
