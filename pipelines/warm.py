"""What a notebook asks between its calls: a summary of a result, which replicas are warm, and to let them go."""

import sys
from typing import Any


def summary(result: Any, prefix: str = "") -> Any:
    """Return what the added columns of a result hold: labels, lengths, scores and failures, never a record's text.

        display(summary(labelled))

    result: what a function of this package returned, or any table of the same kind that has its columns; a lazy Ray
        Dataset is executed for it, so `materialize()` it first
    prefix: what the columns' names begin with, where the result is not one that was returned here

    Rates are there where the result was made by a call that ran at once. Raises ConfigError where no column is known.
    """
    from pipelines.result_summary import summarize

    return summarize(result, prefix)


def warm_replicas() -> list[dict[str, Any]]:
    """Return facts of every replica that is kept: its model, head, device and dtype, process and node."""
    return _session().replicas() if _has_session() else []


def shutdown() -> None:
    """Let all replicas go, and the local Ray that was started for them; the end of the process does the same.

    Ray Datasets of that Ray are gone then. In a cluster that was there before, they start new replicas when consumed.
    """
    if _has_session():
        _session().shutdown()


def _has_session() -> bool:
    """Tell whether a call was made; without one there is nothing to ask, and nothing is loaded to ask it."""
    return "pipelines.session" in sys.modules


def _session() -> Any:
    from pipelines.session import session

    return session()
