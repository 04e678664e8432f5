"""Drift: how far a run's rows are from those of the run before it, by the population stability index.

PSI = sum over the bins of (a - e) * ln(a / e), where e is a bin's share in the reference and a its share now (N.
Siddiqi, "Credit Risk Scorecards", Wiley 2006, chapter 9; it is Kullback and Leibler's divergence J(1, 2) of 1951, over
bins). Bins are the reference's: its deciles, or its values. A share of nothing is taken as 0.0001, so that the index
is finite. Without any drift, PSI is on average (bins - 1) * (1/n + 1/m) for n and m rows (B. Yurdakul, "Statistical
Properties of Population Stability Index", Western Michigan University 2018); that is reported beside it as what chance
makes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.profile import Profile, Sample, count_in_bins
from pipelines.settings import DriftSettings

LEAST_SHARE = 1e-4
OTHERS = "others"


def psi(reference: Sequence[int], now: Sequence[int]) -> float:
    """Return the population stability index of counts in the same bins; see the module for the formula.

    0 where either has no rows.
    """
    assert len(reference) == len(now), "the bins are the same"
    if not sum(reference) or not sum(now):
        return 0.0
    shares = zip(_shares(reference), _shares(now), strict=True)
    return math.fsum((a - e) * math.log(a / e) for e, a in shares)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [max(count / total, LEAST_SHARE) for count in counts]


@dataclass(frozen=True, kw_only=True)
class Shift:
    """One column's drift: its index, what chance makes, and for people how its rows were and are spread.

    before, now: shares in percent by value, or mean and median of numbers
    """

    name: str
    psi: float
    by_chance: float
    before: Mapping[str, float]
    now: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A run's drift from its reference."""

    run: str
    reference: str
    rows: int
    reference_rows: int
    shifts: tuple[Shift, ...]
    max_psi: float | None = None

    @property
    def largest(self) -> Shift | None:
        """Return the column that drifted most; None where there is none."""
        return max(self.shifts, key=lambda shift: shift.psi, default=None)

    @property
    def reason(self) -> str | None:
        """Return why the run is not within `drift.max_psi`; None where it is."""
        if self.max_psi is None:
            return None
        beyond = [f"{shift.name} {shift.psi:.3f}" for shift in self.shifts if shift.psi > self.max_psi]
        if not beyond:
            return None
        return (
            f"the rows are not as those of run {self.reference} were: population stability index of "
            f"{', '.join(beyond)}, more than drift.max_psi ({self.max_psi:g}) allows"
        )

    def line(self) -> str:
        """Return the drift in a line."""
        most = self.largest
        found = f"most in {most.name}, index {most.psi:.3f} (by chance {most.by_chance:.3f})" if most else "no column"
        return f"drift from run {self.reference}: {found}"

    def as_json(self) -> dict[str, Any]:
        """Return the drift for `drift.json`."""
        return {**asdict(self), "reason": self.reason}


def drift_from(reference: Profile, run: str, sample: Sample, settings: DriftSettings) -> Drift:
    """Compare what was read of a run with the profile of another one."""
    shifts = [
        _of_values(name, before, sample.counted[name])
        for name, before in reference.counted.items()
        if name in sample.counted
    ]
    for name, bins in reference.measured.items():
        values = sample.measured.get(name)
        if values is not None and len(values):
            counts = count_in_bins(values, bins.edges)
            spread = {"mean": float(values.mean()), "median": float(np.median(values))}
            shifts.append(_shift(name, bins.counts, counts, {"mean": bins.mean, "median": bins.median}, spread))
    return Drift(
        run=run,
        reference=reference.run,
        rows=sample.rows,
        reference_rows=reference.rows,
        shifts=tuple(sorted(shifts, key=lambda shift: -shift.psi)),
        max_psi=settings.max_psi,
    )


def _of_values(name: str, before: Mapping[str, int], now: Mapping[str, int]) -> Shift:
    """Compare counts by value; values that the reference does not have are one bin."""
    names = [value for value in before if value != OTHERS]
    others = [before.get(OTHERS, 0), sum(now.values()) - sum(now.get(value, 0) for value in names)]
    bins = [*names, *([OTHERS] if any(others) else [])]
    counts = [
        [*(of.get(value, 0) for value in names), *([rest] if any(others) else [])]
        for of, rest in zip((before, now), others, strict=True)
    ]
    shares = [
        {value: round(100 * count / max(sum(each), 1), 2) for value, count in zip(bins, each, strict=True)}
        for each in counts
    ]
    return _shift(name, counts[0], counts[1], *shares)


def _shift(
    name: str, before: Sequence[int], now: Sequence[int], shown_before: Mapping[str, float], shown: Mapping[str, float]
) -> Shift:
    chance = (len(before) - 1) * (1 / max(sum(before), 1) + 1 / max(sum(now), 1))
    return Shift(name=name, psi=psi(before, now), by_chance=chance, before=shown_before, now=shown)
