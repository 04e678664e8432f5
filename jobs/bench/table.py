"""The table: what `make bench` prints at the end."""

import statistics
from typing import Any

HEADER = (
    f"{'':<9}{'leg':<28}{'rate':>10} {'unit':<9}{'batch':>6}{'rows':>6}{'load s':>8}{'GEMM GF/s':>11}"
    f"{'cores':>7}{'first is':>9}{'goal':>8}"
)


def lines(reports: list[dict[str, Any]]) -> list[str]:
    """Return the table's lines."""
    table = [HEADER]
    for report in reports:
        table.append(f"{report['id']:<9}{report['title']}")
        ratios = {ratio["to"]: ratio for ratio in report["ratios"]}
        table += [_leg_line(leg, report["unit"], ratios.get(leg["name"])) for leg in report["legs"]]
        table += [f"{'':<9}{leg['name']:<28}skipped: {leg['reason']}" for leg in report["skipped"]]
        table += [f"{'':<9}{'holds' if check['holds'] else 'FAILS'}: {check['what']}" for check in report["checks"]]
    return table


def _leg_line(leg: dict[str, Any], unit: str, ratio: dict[str, Any] | None) -> str:
    gemm, cores = statistics.median(leg["gemm_gflops"]), statistics.median(leg["cores_share"])
    line = (
        f"{'':<9}{leg['name']:<28}{leg['rate']:>10.1f} {unit:<9}{leg['options'].get('batch_size', ''):>6}"
        f"{leg['rows']:>6}{leg['loaded']['load_s']:>8.1f}{gemm:>11.0f}{cores:>7.0%}"
    )
    if ratio is not None:
        goal = "" if ratio["goal"] is None else f">= {ratio['goal']:g}"
        line += f"{ratio['ratio']:>8.2f}x{goal:>8}  {'' if ratio['goal'] is None else _verdict(ratio['met'])}"
    return (line + f"  {_notes(leg)}").rstrip()


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "missed"


def _notes(leg: dict[str, Any]) -> str:
    """Return the share of the roofline and how far the answers agree with ours."""
    notes = [f"{leg['roofline_share']:.0%} of the roofline"] if "roofline_share" in leg else []
    if leg.get("recomputed_tokens") is not None:
        notes.append(f"{leg['recomputed_tokens']} tokens computed twice")
    against = leg.get("against_first", {})
    if "equal_rows" in against:
        notes.append(f"{against['equal_rows']} of {against['rows']} rows the same")
    if "same_choice" in against:
        notes.append(f"{against['same_choice']:.1%} choose the same")
    if "max_difference" in against:
        notes.append(f"largest difference {against['max_difference']:g}")
    return ", ".join(notes)
