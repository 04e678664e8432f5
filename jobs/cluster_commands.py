"""The commands about submitted jobs: `gptj-batch submit`, `status`, `logs`, `stop` and `list`."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.submitted import Jobs

Add = Callable[[Any, str, object, str], argparse.ArgumentParser]


def add_cluster_commands(commands: Any, add: Add, *of_jobs: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the commands to the parser's; `add` makes one, `of_jobs` give it a job file, overrides and so on."""
    submit = add(commands, "submit", _submit, "send a job, with this package, to a cluster, and print its id")
    for add_arguments in of_jobs:
        add_arguments(submit)
    submit.add_argument("--wait", action="store_true", help="follow it to its end, and end with its exit code")
    submit.add_argument("--submission-id", metavar="ID", help="its name there; a second job of that name is refused")
    submit.add_argument("--python", default="python", metavar="PATH", help="the interpreter on the cluster (python)")
    status = add(commands, "status", _status, "say how a submitted job stands")
    logs = add(commands, "logs", _logs, "print what a submitted job has said")
    logs.add_argument("--follow", action="store_true", help="until it ends")
    stop = add(commands, "stop", _stop, "stop a submitted job; submitted again it goes on where it ended")
    for command in (status, logs, stop):
        command.add_argument("id", metavar="ID")
    for command in (submit, status, logs, stop, add(commands, "list", _list, "list the submitted jobs")):
        command.add_argument("--address", help="the cluster's dashboard, e.g. http://head:8265")
        command.add_argument("--insecure", action="store_true", help="without a token, to another machine, over http")


def _jobs(options: argparse.Namespace) -> "Jobs":
    from jobs.submitted import Jobs

    return Jobs(options.address, insecure=options.insecure)


def _submit(options: argparse.Namespace) -> int:
    from jobs.cli import job_of

    job = job_of(options)
    cluster = _jobs(options)
    submission_id = cluster.submit(job, options.submission_id, options.python)
    print(submission_id, flush=True)
    if not options.wait:
        return 0
    try:
        return cluster.wait(submission_id)
    except KeyboardInterrupt:
        print(
            f"\ngptj-batch: {submission_id} goes on; `gptj-batch logs {submission_id} --follow` watches it, "
            f"`gptj-batch stop {submission_id}` stops it",
            file=sys.stderr,
        )
        return 130


def _status(options: argparse.Namespace) -> int:
    from jobs.submitted import description

    print("\n".join(description(_jobs(options).details(options.id))))
    return 0


def _logs(options: argparse.Namespace) -> int:
    cluster = _jobs(options)
    if options.follow:
        cluster.follow(options.id)
    else:
        print(cluster.logs(options.id), end="")
    return 0


def _stop(options: argparse.Namespace) -> int:
    was_running = _jobs(options).stop(options.id)
    print(f"{options.id}: {'told to stop' if was_running else 'had ended already'}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from jobs.submitted import row

    for details in _jobs(options).all():
        print(row(details))
    return 0
