from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.drift import Drift, drift_from, psi
from pipelines.profile import Profile, Sample
from pipelines.settings import DriftSettings

COUNTS = st.lists(st.integers(0, 1000), min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("reference", "now", "by_hand"),
    [
        ([50, 50], [50, 50], 0.0),
        # (0.6 - 0.5) ln(0.6 / 0.5) + (0.4 - 0.5) ln(0.4 / 0.5) = 0.1 * 0.182322 + 0.1 * 0.223144
        ([50, 50], [6, 4], 0.0405465),
        # (0.1 - 0.2) ln(1/2) + (0.3 - 0.3) ln 1 + (0.6 - 0.5) ln(6/5) = 0.0693147 + 0 + 0.0182322
        ([20, 30, 50], [100, 300, 600], 0.0875469),
        # a share of nothing is 0.0001: (1 - 0.5) ln 2 + (0.0001 - 0.5) ln(0.0001 / 0.5) = 0.346574 + 0.4999 * 8.517193
        ([1, 1], [5, 0], 4.604318),
        ([0, 0], [5, 0], 0.0),
    ],
)
def test_the_index_is_what_one_computes_by_hand(reference: list[int], now: list[int], by_hand: float) -> None:
    assert psi(reference, now) == pytest.approx(by_hand, abs=1e-6)


@given(COUNTS, st.data())
def test_the_index_is_never_negative_and_the_same_both_ways(one: list[int], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.integers(0, 1000), min_size=len(one), max_size=len(one)))
    assert psi(one, other) >= 0.0
    assert psi(one, other) == pytest.approx(psi(other, one))


def sample(labels: dict[str, int], scores: list[float]) -> Sample:
    numbers = np.array(scores, dtype=np.float64)
    return Sample(rows=sum(labels.values()), counted={"label": labels}, measured={"label_score": numbers})


@pytest.fixture
def compare() -> Callable[..., Drift]:
    def compare(before: Sample, now: Sample, max_psi: float | None = None) -> Drift:
        return drift_from(Profile.of("r1", before), "r2", now, DriftSettings(max_psi=max_psi))

    return compare


def test_labels_and_numbers_are_compared_in_the_references_bins(compare: Callable[..., Drift]) -> None:
    before = sample({"a": 20, "b": 30, "c": 50}, [n / 100 for n in range(100)])
    drift = compare(before, sample({"a": 100, "b": 300, "c": 600}, [0.05] * 1000))
    shifts = {shift.name: shift for shift in drift.shifts}
    assert shifts["label"].psi == pytest.approx(0.0875469, abs=1e-6)
    assert (shifts["label"].before, shifts["label"].now["c"]) == ({"a": 20.0, "b": 30.0, "c": 50.0}, 60.0)
    # all rows in the lowest of ten bins of a tenth each: 0.9 ln 10 + 9 * (0.0001 - 0.1) ln(0.001)
    assert shifts["label_score"].psi == pytest.approx(0.9 * 2.302585 + 9 * 0.0999 * 6.907755, abs=1e-5)
    assert drift.largest == shifts["label_score"]
    assert shifts["label_score"].by_chance == pytest.approx(9 * (1 / 100 + 1 / 1000))


def test_labels_that_the_reference_does_not_have_are_one_bin(compare: Callable[..., Drift]) -> None:
    drift = compare(sample({"a": 50, "b": 50}, []), sample({"a": 50, "c": 30, "d": 20}, []))
    (shift,) = drift.shifts
    assert shift.now == {"a": 50.0, "b": 0.0, "others": 50.0}
    assert shift.psi == pytest.approx(2 * 0.4999 * 8.517193, abs=1e-5)


def test_no_drift_is_about_what_chance_makes() -> None:
    random = np.random.default_rng(1)
    found = []
    for _ in range(50):
        before, now = (Sample(rows=500, measured={"x": random.normal(size=500)}) for _ in range(2))
        (shift,) = drift_from(Profile.of("r1", before), "r2", now, DriftSettings()).shifts
        found.append(shift.psi / shift.by_chance)
    assert 0.7 < np.mean(found) < 1.3


@pytest.mark.parametrize("value", [1.0, 3.0])
def test_drift_away_from_a_constant_is_seen_in_both_directions(compare: Callable[..., Drift], value: float) -> None:
    drift = compare(sample({}, [2.0] * 50), sample({}, [value] * 50))
    assert max(shift.psi for shift in drift.shifts) > 5
    same = compare(sample({}, [2.0] * 50), sample({}, [2.0] * 50))
    assert max(shift.psi for shift in same.shifts) == 0


def test_only_a_limit_makes_a_reason_which_names_the_columns(compare: Callable[..., Drift]) -> None:
    before, now = sample({"a": 50, "b": 50}, []), sample({"a": 100, "b": 0}, [])
    assert compare(before, now).reason is None
    assert compare(before, now, max_psi=9.0).reason is None
    reason = compare(before, now, max_psi=0.2).reason
    assert reason is not None and "label 4.604" in reason and "drift.max_psi (0.2)" in reason
    assert "drift from run r1: most in label, index 4.604" in compare(before, now).line()
