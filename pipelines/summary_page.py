"""A summary as a piece of HTML for a notebook's output: no scripts, no style that reaches beyond it."""

from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

if TYPE_CHECKING:
    from pipelines.result_summary import Summary

MAX_VALUES = 20
MAX_VALUE_CHARS = 60

# Labels and reasons come from outside and are escaped; colours are the notebook's own, so that a dark theme stays dark.
PAGE = """<div style="max-width: 46rem">
<p style="margin: .2rem 0"><b>{{ "{:,}".format(summary.rows) }} rows: {{ "{:,}".format(summary.done) }} done,
{{ "{:,}".format(summary.failed) }} failed</b></p>
{%- if summary.facts %}
<table style="margin: .2rem 0">
{%- for name, value in summary.facts.items() %}
<tr><td style="text-align: left; opacity: .7">{{ name }}</td><td style="text-align: left">{{ value }}</td></tr>
{%- endfor %}
</table>
{%- endif %}
{%- if summary.errors %}
<table style="margin: .2rem 0">
<tr><th style="text-align: left">why rows failed</th><th style="text-align: right">rows</th></tr>
{%- for reason, count in summary.errors.items() %}
<tr><td style="text-align: left">{{ reason }}</td><td style="text-align: right">{{ "{:,}".format(count) }}</td></tr>
{%- endfor %}
</table>
{%- endif %}
{%- for name, bars, hidden in counted %}
<table style="margin: .6rem 0; width: 100%">
<tr><th style="text-align: left; width: 10rem">{{ name }}</th><th style="text-align: right; width: 4rem">rows</th>
<th></th></tr>
{%- for value, count, share in bars %}
<tr><td style="text-align: left">{{ value }}</td><td style="text-align: right">{{ "{:,}".format(count) }}</td>
<td><div style="background: #3b6ea8; height: .7rem; border-radius: 2px; width: {{ "%.1f"|format(100 * share) }}%"></div>
</td></tr>
{%- endfor %}
{%- if hidden %}
<tr><td style="text-align: left" colspan="3">and {{ hidden }} more</td></tr>
{%- endif %}
</table>
{%- endfor %}
{%- if summary.measured %}
<table style="margin: .6rem 0">
<tr><th></th>{% for head in ("least", "median", "mean", "most") %}<th style="text-align: right">{{ head }}</th>
{%- endfor %}</tr>
{%- for one in summary.measured %}
<tr><td style="text-align: left">{{ one.name }}</td>
{%- for value in (one.least, one.median, one.mean, one.most) %}
<td style="text-align: right">{{ "%.4g"|format(value) }}</td>{% endfor %}</tr>
{%- endfor %}
</table>
{%- endif %}
</div>"""


def summary_page(summary: "Summary") -> str:
    """Return the HTML of a summary."""
    counted = []
    for name, values in summary.counted.items():
        most = max(values.values(), default=1) or 1
        shown = list(values.items())[:MAX_VALUES]
        bars = [(value[:MAX_VALUE_CHARS], count, count / most) for value, count in shown]
        counted.append((name, bars, len(values) - len(shown)))
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    return page.render(summary=summary, counted=counted)
