"""The arguments that every notebook function takes besides its task's settings: how it is run, and on what."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

DATA = """
    data: a Ray Dataset, a pandas or polars DataFrame, a pyarrow Table, a `datasets.Dataset`, or a path (file, folder or
        glob), which gives a Ray Dataset. The result is of the same kind: the same rows in the same order, with the
        columns added. A Ray Dataset is executed when it is consumed, and again whenever it is.

    The task's settings:
"""

HOW_IT_IS_RUN = """
    How it is run:

    model: a folder in Hugging Face layout, a hub name, or "demo"    revision: of a hub name
    dtype: auto, float16, bfloat16, float32 or int8
    backend: auto, native, vllm or fake, or a dictionary of the settings that a job has in `backend`
    replicas: how many copies of the model, or a dictionary of those in `replicas`; None is what there is room for
    output: a folder; the result is also written there as a job writes it, a call that was cut off goes on from there,
        and one that was finished is read; or a dictionary of the settings that a job has in `output`, such as
        {"path": "out", "partition_by": ["label"]}    on_exists: resume, overwrite or fail
    prefix: put before the name of every added column    key: the column that names a row, and that sampling draws from
    columns, format: of a path, which columns are read and kept, and as what
    progress: whether to show it

    Raises ConfigError for an argument that is wrong or unknown, CheckpointError for a model that cannot be used,
    InputError for a path that cannot be read. A row that fails has its reason in `error`, and stops no other.
    """


def _signature(
    data: Any,
    *,
    model: str = "EleutherAI/gpt-j-6B",
    revision: str | None = None,
    dtype: str = "auto",
    backend: str | dict[str, Any] = "auto",
    replicas: int | dict[str, Any] | None = None,
    output: Any = None,
    on_exists: str = "resume",
    prefix: str = "",
    key: str | None = None,
    columns: list[str] | None = None,
    format: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Any:
    """Have the signature that notebooks show and complete; the defaults are those of a job."""


def with_run_arguments(function: Function) -> Function:
    """Give a notebook function the signature and the documentation that all of them share.

    Its own docstring ends with its task's settings; what is about the data goes before them, how it is run behind.
    """
    if function.__doc__:  # python -OO takes it away
        summary, example, settings = function.__doc__.split("\n\n", 2)
        function.__doc__ = f"{summary}\n\n{example}\n{DATA}\n{settings.rstrip()}\n{HOW_IT_IS_RUN}"
    function.__signature__ = inspect.signature(_signature)  # type: ignore[attr-defined]
    return function
