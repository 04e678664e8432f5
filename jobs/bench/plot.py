"""The plot: our rate over each peer's, beside the goals, one bar a comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = {"met": "#2a7f62", "missed": "#c8553d", "": "#8d99ae"}


def bars(reports: Sequence[dict[str, Any]]) -> list[tuple[str, float, float | None]]:
    """Return name, ratio and goal of every comparison, in the order of the table."""
    return [
        (f"{report['id']} / {ratio['to']}", ratio["ratio"], ratio["goal"])
        for report in reports
        for ratio in report["ratios"]
    ]


def draw(reports: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Write the plot; the ending of the file chooses the format. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = bars(reports)[::-1]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.32 * len(rows)), layout="constrained")
    places = range(len(rows))
    ratios = [ratio for _, ratio, _ in rows]
    drawn = axes.barh(places, ratios, color=[COLOURS[_verdict(ratio, goal)] for _, ratio, goal in rows])
    axes.bar_label(drawn, labels=[f"{ratio:.2f} x" for ratio in ratios], padding=3, fontsize=8)
    for place, (_, _, goal) in zip(places, rows, strict=True):
        if goal is not None:
            axes.plot([goal, goal], [place - 0.45, place + 0.45], color="black", linewidth=2)
    axes.set_yticks(places, [name for name, _, _ in rows], fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.margins(x=0.12)
    axes.set_xlabel("our rate / the other's, log scale; black: the goal")
    axes.set_title(title, fontsize=9)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _verdict(ratio: float, goal: float | None) -> str:
    if goal is None:
        return ""
    return "met" if ratio >= goal else "missed"
