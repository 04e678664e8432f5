"""`report.html`: what a run did and what its columns hold, on one page that needs nothing from elsewhere."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, StrictUndefined

from gptj_batch.records.output import OutputFolder
from gptj_batch.records.part_reader import read_column
from pipelines.drift import Drift
from pipelines.progress import duration
from pipelines.report import Report

MAX_VALUES = 20
MAX_SHARES = 8
MAX_VALUE_CHARS = 60

# No scripts, and a policy that would stop any: labels and error texts come from outside and are escaped besides.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.name }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1b1f24; }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
  table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2rem .6rem .2rem 0; }
  td.number { text-align: right; white-space: nowrap; width: 8rem; }
  .bar { background: #3b6ea8; height: .7rem; border-radius: 2px; min-width: 1px; }
  .state { color: {{ "#1a7f37" if report.exit_code == 0 else "#b42318" }}; }
  code { background: #f3f4f6; padding: 0 .2rem; }
</style>
</head>
<body>
<h1>{{ report.name }}</h1>
<p class="state">{{ "{:,}".format(report.done) }} of {{ "{:,}".format(report.rows) }} rows done,
{{ "{:,}".format(report.failed) }} failed</p>
<table>
{% for name, value in facts %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
{% if drift %}
<h2>Drift from run {{ drift.reference }}</h2>
<p>{{ drift.reason or "The index is the population stability index; 0.1 to 0.25 is often called a moderate change." }}
</p>
<table>
<tr><th></th><th>index</th><th>by chance</th><th>before</th><th>now</th></tr>
{% for shift in drift.shifts %}<tr><th>{{ shift.name }}</th><td>{{ "%.4f"|format(shift.psi) }}</td>
<td>{{ "%.4f"|format(shift.by_chance) }}</td>
{% for spread in (shift.before, shift.now) %}<td>
{%- for name, value in spread|few %}{{ name }} {{ "%.4g"|format(value) }}
{%- if not loop.last %}, {% endif %}{% endfor %}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endif %}
{% for column in columns %}
<h2>{{ column.name }}</h2>
{% if column.summary %}<p>{{ column.summary }}</p>{% endif %}
{% if column.bars %}<table>
{% for value, count, share in column.bars %}<tr><td>{{ value }}</td><td class="number">{{ "{:,}".format(count) }}</td>
<td style="width: 50%"><div class="bar" style="width: {{ "%.1f"|format(100 * share) }}%"></div></td></tr>
{% endfor %}</table>{% endif %}
{% endfor %}
</body>
</html>
"""


@dataclass(frozen=True, kw_only=True)
class ColumnFacts:
    """What one added column holds: the commonest values with their share of the commonest, or a line of figures."""

    name: str
    summary: str = ""
    bars: tuple[tuple[str, int, float], ...] = ()


def page_path(report: Report) -> PurePath:
    """Return where the page of a run lies."""
    return OutputFolder.at(report.output).private / "report.html"


def write_page(report: Report, folder_of_run: str | None = None, drift: Drift | None = None) -> None:
    """Write `report.html` about the published output. Raises OutputError.

    folder_of_run: where the parts are now, if not yet in the report's own output    drift: shown where there is one
    """
    folder = OutputFolder.at(folder_of_run or report.output)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["few"] = _few
    page = environment.from_string(PAGE)
    described = [facts for name in report.columns if (facts := _column_facts(folder, name)) is not None]
    shown = None if drift is None else drift.as_json()
    text = page.render(report=asdict(report), facts=_run_facts(report), columns=described, drift=shown)
    with folder.whole_file(folder.private / "report.html") as staged:
        staged.write_text(text, encoding="utf-8")
    folder.store.remove_if_empty(folder.staging)  # the run's last file is written


def _few(spread: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name[:MAX_VALUE_CHARS], value) for name, value in list(spread.items())[:MAX_SHARES]]


def _run_facts(report: Report) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [
        ("started", report.started),
        ("this run", f"{report.rows_this_run:,} rows in {duration(report.seconds)}"),
        ("tokens", f"{report.prompt_tokens_this_run:,} of prompts, {report.generated_tokens_this_run:,} generated"),
        ("throughput", f"{report.tokens_per_s:,.0f} tokens/s, start-up included"),
        ("prompts cut", f"{report.truncated_this_run:,}"),
        ("duplicates", f"{report.duplicates_this_run:,} computed with another row"),
        ("model", f"{report.model} ({report.model_identity[:12]})"),
        ("backend", ", ".join(f"{name} {value}" for name, value in report.backend.items()) or "no unit was left to do"),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
    ]
    if report.incremental:
        facts.insert(0, ("run", f"{report.incremental['run']}: {report.incremental['files']}"))
    return facts + [("skipped file", path) for path in report.skipped_files]


def _column_facts(folder: OutputFolder, name: str) -> ColumnFacts | None:
    """Describe a column of few texts, numbers or vectors, one part at a time; others, and free text, are left out.

    So are numbers that are not finite.
    """
    counts: Counter[str] = Counter()
    numbers: list[tuple[float, float, float, int]] = []
    what = ""
    for part in folder.parts():
        values = read_column(folder, part, name)
        kind = values.type
        if pa.types.is_string(kind):
            counts.update({e["values"]: e["counts"] for e in values.drop_null().value_counts().to_pylist()})
            if len(counts) > MAX_VALUES:
                return None
            continue
        if pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type):
            values, what = _lengths(values), f"vectors of {kind.list_size:,} numbers, their lengths "
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            values = values.filter(pc.is_finite(values))  # nulls go too
            if len(values):
                low_high = pc.min_max(values).as_py()
                numbers.append((low_high["min"], low_high["max"], pc.sum(values).as_py(), len(values)))
    if counts:
        most = max(counts.values())
        bars = tuple((value[:MAX_VALUE_CHARS], count, count / most) for value, count in counts.most_common())
        return ColumnFacts(name=name, bars=bars)
    if numbers:
        lows, highs, sums, rows = zip(*numbers, strict=True)
        mean = sum(sums) / sum(rows)
        return ColumnFacts(name=name, summary=f"{what}from {min(lows):,.6g} to {max(highs):,.6g}, mean {mean:,.6g}")
    return None


def _lengths(vectors: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the Euclidean length of every vector that is there; `flatten` leaves nulls out."""
    size = vectors.type.list_size
    numbers = (chunk.flatten().to_numpy().reshape(-1, size) for chunk in vectors.chunks)
    return pa.chunked_array([np.linalg.norm(of_chunk.astype(np.float64), axis=1) for of_chunk in numbers], pa.float64())
