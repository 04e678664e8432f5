import pytest

from integration.tiny_model import TinyModel
from jobs.bench.memory_flat import at_shares, measure, peak

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow, pytest.mark.extended]


def test_driver_and_replica_hold_no_more_at_the_end_of_a_file_than_at_its_first_quarter(tiny: TinyModel) -> None:
    samples = measure(20_000, "fake", str(tiny.folder))
    quarter, end = at_shares(samples)["25%"], at_shares(samples)["100%"]
    assert end.share > 0.9
    assert end.driver_mb - quarter.driver_mb < 50
    assert end.replica_mb - quarter.replica_mb < 50
    assert peak(samples)["driver_mb"] - quarter.driver_mb < 150, "publishing holds a row group, not the output"
