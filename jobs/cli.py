"""The command `gptj-batch`."""

import argparse
import contextlib
import faulthandler
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptj_batch import __version__
from gptj_batch.errors import GPTJBatchError

if TYPE_CHECKING:
    from pipelines.config import Job


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; what is meant for the user is one paragraph on stderr."""
    if sys.__stderr__ and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)  # native code that crashes says where, on the driver too
    parser = _parser()
    options, left_over = parser.parse_known_args(arguments)
    if left_over:
        # argparse takes positional arguments in one run only; overrides may stand behind options too
        if not hasattr(options, "overrides") or any(word.startswith("-") for word in left_over):
            parser.error(f"unrecognized arguments: {' '.join(left_over)}")
        options.overrides += left_over
    from jobs.failures import Stopped, exit_code

    try:
        return int(options.command(options))
    except GPTJBatchError as error:
        if options.debug:
            traceback.print_exc()
        print(f"gptj-batch: {error}", file=sys.stderr)
        return exit_code(error)
    except Stopped as stopped:
        print(f"\ngptj-batch: stopped by {stopped}; run the same command again to go on", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # whoever read our output has enough of it
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0
    except Exception as error:  # noqa: BLE001 - the last border: a bug, or a cluster that broke
        if options.debug:
            traceback.print_exc()
        first_line = (str(error).strip().splitlines() or ["no details"])[0][:300]
        print(
            f"gptj-batch: unexpected {type(error).__name__}: {first_line} (--debug shows where); run the same command "
            "again to go on",
            file=sys.stderr,
        )
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gptj-batch", description="Run GPT-J over whole datasets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _add(commands, "run", _run, "run a job here, or on the cluster that RAY_ADDRESS or --address names")
    _add_job(run)
    _add_incremental(run)
    run.add_argument(
        "--rescore", choices=("all", "new"), help="with other settings: every file again, or new ones only"
    )

    retry = _add(commands, "retry", _retry, "do again the rows of a finished output that failed, in place")
    retry.add_argument("output", metavar="OUTPUT_DIR")
    retry.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that change no result")
    for command in (run, retry):
        command.add_argument("--deadline", metavar="2h30m", help="stop then, or at an ISO time; a rerun goes on")
        command.add_argument("--max-gpu-hours", type=float, metavar="H", help="stop after these hours of GPUs")
        command.add_argument("--address", help="a Ray cluster; without it and RAY_ADDRESS a local one is started")

    verify = _add(commands, "verify", _verify, "run the same rows through two engines and compare; recount an output")
    verify.add_argument("config", metavar="CONFIG.yaml|OUTPUT_DIR")
    verify.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that win over the file")
    verify.add_argument("--backends", default="native,vllm", metavar="A,B", help="which two (native,vllm)")
    verify.add_argument("--rows", type=int, default=50, metavar="N", help="the first N rows (50)")
    verify.add_argument("--tolerance", type=float, default=None, metavar="X", help="of numbers; by the dtype")
    verify.add_argument("--min-agreement", type=float, default=1.0, metavar="SHARE", help="of rows, else exit code 3")

    demo = _add(commands, "demo", _demo, "label and continue a small corpus with the model in the package")
    demo.add_argument("--output", default="out/demo", metavar="DIR", help="where the results go (out/demo)")

    convert = _add(commands, "convert", _convert, "rewrite a GPT-J checkpoint of any layout as safetensors shards")
    convert.add_argument("source", metavar="SRC")
    convert.add_argument("target", metavar="DST")
    convert.add_argument("--dtype", default=None, metavar="float16", help="default: as it is")
    convert.add_argument("--revision", default=None, help="of a hub name")

    from jobs.cluster_commands import add_cluster_commands

    plan = _add(commands, "plan", _plan, "say what a job will read, need and take; starts no model")
    _add_job(plan)
    plan.add_argument("--measure", action="store_true", help="start the model and time some rows")
    plan.add_argument("--json", action="store_true", help="print it for machines")

    report = _add(commands, "report", _report, "make a run's report again, and print it")
    report.add_argument("output", metavar="OUTPUT_DIR")

    add_cluster_commands(commands, _add, _add_job, _add_incremental)
    _add(commands, "version", _version, "print versions and devices")
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, command: object, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser.set_defaults(command=command)
    return parser


def _add_job(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG.yaml")
    command.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that win over the file")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N rows (input.limit)")


def _add_incremental(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--incremental", action="store_true", help="only files that are new or changed (input.incremental)"
    )


def job_of(options: argparse.Namespace) -> "Job":
    """Return the job that a command's arguments name. Raises ConfigError."""
    from pipelines.config import load_job

    overrides = list(options.overrides)
    if options.limit is not None:
        overrides.append(f"input.limit={options.limit}")
    if getattr(options, "incremental", False):
        overrides.append("input.incremental=true")
    return load_job(options.config, overrides)


def _run(options: argparse.Namespace) -> int:
    from jobs.limits import TimeLimits
    from jobs.run import run_job

    limits = TimeLimits.of_options(options.deadline, options.max_gpu_hours)
    return run_job(job_of(options), options.address, limits, options.rescore)


def _plan(options: argparse.Namespace) -> int:
    from jobs.plan import run_plan

    return run_plan(job_of(options), measure=options.measure, as_json=options.json)


def _report(options: argparse.Namespace) -> int:
    from jobs.report import remake_report

    return remake_report(options.output)


def _verify(options: argparse.Namespace) -> int:
    if Path(options.config).is_dir() or options.config.startswith(("s3://", "gs://")):
        from jobs.recount import recount

        return recount(options.config)
    from jobs.verify import verify
    from pipelines.config import load_job

    kinds = options.backends.split(",")
    job = load_job(options.config, options.overrides)
    return verify(job, kinds, options.rows, options.tolerance, options.min_agreement)


def _retry(options: argparse.Namespace) -> int:
    from jobs.limits import TimeLimits
    from jobs.retry import retry

    limits = TimeLimits.of_options(options.deadline, options.max_gpu_hours)
    return retry(options.output, options.overrides, options.address, limits)


def _demo(options: argparse.Namespace) -> int:
    from jobs.demo import run_demo

    return run_demo(options.output)


def _convert(options: argparse.Namespace) -> int:
    from jobs.convert import convert

    return convert(options.source, options.target, options.dtype, options.revision)


def _version(options: argparse.Namespace) -> int:
    from jobs.versions import facts

    print(f"gptj-batch {__version__}")
    for name, value in facts().items():
        print(f"{name} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
