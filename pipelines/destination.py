"""Where a run writes: whether the output may be its own, where its parts are made, and which units are still to do."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptj_batch.errors import ConfigError
from gptj_batch.records.beside import begin_beside, can_build_beside, settle
from gptj_batch.records.progress import clean, contents, differences, load_plan, pending_units, save_plan
from gptj_batch.records.publish import published_form
from pipelines.ledger import is_incremental
from pipelines.prepare import Run


def check_output(run: Run) -> Literal["nothing", "ours"]:
    """Return what the output folder holds, without touching it.

    Raises ConfigError where `output.on_exists` or another owner of the folder rules it out.
    """
    path, found = run.job.output.path, contents(run.job.output.path)
    if found != "nothing" and run.job.output.on_exists == "fail":
        raise ConfigError(f"output.path: {path} is not empty, and output.on_exists is fail; choose another path")
    if found == "foreign":
        raise ConfigError(
            f"output.path: {path} holds files that gptj-batch did not make; choose another path, or empty the folder"
        )
    if is_incremental(path):
        raise ConfigError(
            f"output.path: {path} is kept by incremental runs; run this job with --incremental (input.incremental), or "
            "choose another path"
        )
    return found


def placed(run: Run) -> Run:
    """Return the run with the place where it writes: beside a complete output that is to be overwritten.

    Where that cannot be (the folder is a mount point, or the one above is not ours to write), the old output goes
    first. Raises OutputError.
    """
    path = run.job.output.path
    settle(path)
    overwrites = run.job.output.on_exists == "overwrite" and contents(path) == "ours"
    return replace(run, is_beside=overwrites and can_build_beside(path))


def claim_output(run: Run) -> NDArray[np.int32]:
    """Make the output folder this run's, as `output.on_exists` says, and return the units still to do.

    Raises ConfigError where another configuration, or somebody else, made what is there.
    """
    path, on_exists = run.job.output.path, run.job.output.on_exists
    found = check_output(run)
    fingerprint = run.fingerprint()
    if run.is_beside:
        _claim_beside(run, fingerprint)
    elif found == "ours" and on_exists == "overwrite":
        clean(path)
    earlier = load_plan(run.folder)
    if earlier is None:
        save_plan(run.folder, fingerprint)
    elif changed := differences(earlier, fingerprint) or _other_form(run):
        raise ConfigError(_other_configuration(path, changed))
    return pending_units(run.folder, run.plan)


def _claim_beside(run: Run, fingerprint: dict[str, Any]) -> None:
    """Go on with what an interrupted run of the same configuration left beside the old output, or begin anew."""
    if contents(run.folder) == "ours":
        earlier = load_plan(run.folder)
        if earlier is None or differences(earlier, fingerprint) or _other_form(run):
            clean(run.folder)
    begin_beside(run.job.output.path)


def _other_form(run: Run) -> list[str]:
    """Return how the parts of a finished output differ from what is asked for."""
    published = published_form(run.folder)
    return [] if published is None else differences({"output": published}, {"output": run.job.output.form.facts()})


def _other_configuration(path: str, changed: list[str]) -> str:
    shown = "\n  ".join(changed[:20])
    more = f"\n  and {len(changed) - 20} more" if len(changed) > 20 else ""
    return (
        f"output.path: {path} was made by another configuration:\n  {shown}{more}\n"
        "Set it back, choose another output.path, or start anew with output.on_exists=overwrite"
    )
