import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.ledger import Entry, Ledger
from pipelines.profile import Bins, Profile, Sample, read_sample
from pipelines.profiles import last_profile, write_profile

ROWS = {
    "text": ["ab", "äöü", None, "abcd"],
    "other": ["x", "", "yy", "z"],
    "number": [1, 2, 3, 4],
    "g_label": ["World", None, None, "World"],
    "g_label_score": [0.5, 0.25, None, float("nan")],
    "g_error": [None, None, "too long", None],
}


def sample_of(folder: Path, **columns: list[object]) -> Sample:
    pq.write_table(pa.table({**ROWS, **columns}), folder / "part-00000.parquet")
    added = [name.removeprefix("g_") for name in (*ROWS, *columns) if name.startswith("g_") and name != "g_error"]
    return read_sample(str(folder), "g_", added, ["number", "other", "text"], 4)


def test_columns_are_counted_and_measured_without_failed_rows(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, g_generated_text=["abc", "", None, "ä"], g_num_prompt_tokens=[3, 4, None, 5])
    assert sample.counted == {"failed": {"done": 3, "failed": 1}, "label": {"World": 2, "no label": 1}}
    measured = {name: values.tolist() for name, values in sample.measured.items()}
    assert measured == {
        "label_score": [0.5, 0.25],
        "num_prompt_tokens": [3.0, 4.0, 5.0],
        "characters of generated_text": [3.0, 0.0, 1.0],
        "characters of the input": [3.0, 3.0, 2.0, 5.0],
    }


def test_lists_of_labels_are_counted_one_by_one(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, g_label=[["a", "b"], [], None, ["a"]])
    assert sample.counted["label"]["a"] == 2 and sample.counted["label"]["b"] == 1


def test_a_large_run_is_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.profile.MAX_SAMPLED_ROWS", 2)
    sample = sample_of(tmp_path)
    assert sample.counted["failed"] == {"done": 1, "failed": 1} and sample.rows == 4


def test_many_values_are_kept_as_the_commonest_and_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.profile.MAX_VALUES", 1)
    assert sample_of(tmp_path).counted["label"] == {"World": 2, "others": 1}


def test_bins_are_deciles_and_of_equal_numbers_three() -> None:
    bins = Bins.of(np.arange(100, dtype=np.float64))
    assert len(bins.edges) == 9 and bins.counts == (10,) * 10 and (bins.mean, bins.median) == (49.5, 49.5)
    assert Bins.of(np.full(5, 2.0)).counts == (0, 5, 0)


def test_a_profile_is_read_as_it_was_written() -> None:
    profile = Profile.of("r", Sample(rows=3, counted={"label": {"a": 3}}, measured={"x": np.array([1.0, 2.0, 4.0])}))
    assert Profile.from_json(json.loads(json.dumps(asdict(profile)))) == profile


def test_the_reference_is_the_last_run_with_enough_rows(tmp_path: Path) -> None:
    ledger = Ledger()
    for number, rows in enumerate((300, 500, 3), start=1):
        entry = Entry(number=number, run=f"r{number}", ended="", layout={}, settings={}, rows=rows)
        ledger = ledger.with_entry(entry)
        write_profile(str(tmp_path), Profile.of(f"r{number}", Sample(rows=rows)))
    found = last_profile(str(tmp_path), ledger, 200)
    assert found is not None and found.run == "r2"
    (tmp_path / "_gptj_batch" / "profiles" / "r2.json").write_text("damaged")
    found = last_profile(str(tmp_path), ledger, 200)
    assert found is not None and found.run == "r1"
    assert last_profile(str(tmp_path), ledger, 1000) is None
    assert last_profile(str(tmp_path), Ledger(), 1) is None
