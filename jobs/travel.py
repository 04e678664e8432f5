"""A job on its way to a cluster: paths of this machine said in full, since the job runs in another folder there."""

from pathlib import Path

from pipelines.config import Job


def for_the_cluster(job: Job) -> Job:
    """Return the job with absolute paths: input, output, and the model's folder if it is one here.

    The cluster must see them under the same names: it is this machine, or the file system is shared.
    """
    here: str | tuple[str, ...] = job.input.path
    if job.input.format != "huggingface" or Path(str(here)).exists():  # else the name of a dataset
        here = absolute(here) if isinstance(here, str) else tuple(map(absolute, here))
    model = job.model.path
    if Path(model).expanduser().is_dir():
        model = absolute(model)
    return job.model_copy(
        update={
            "input": job.input.model_copy(update={"path": here}),
            "model": job.model.model_copy(update={"path": model}),
            "output": job.output.model_copy(update={"path": absolute(job.output.path)}),
        }
    )


def absolute(path: str) -> str:
    """Return a local path in full; a URI as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())
