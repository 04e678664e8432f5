"""The GPU benchmark's script, as far as a CPU can show that it works."""

import json
import sys

import pytest
import torch

from jobs.bench import gpu_6b


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_that_nothing_was_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu_6b", "--out", str(tmp_path / "out.json")])
    assert gpu_6b.main() == 1
    assert "not measured: torch sees no GPU" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_tiny_model_goes_the_whole_way_and_leaves_no_figures(monkeypatch, capsys, tmp_path):
    options = ["--tiny", "--workloads", "6x3x5", "--rounds", "2", "--batch", "2", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["gpu_6b", *options])
    assert gpu_6b.main() == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["legs"]) == ["engine", "transformers, batch 2"]
    assert result["rows_equal_in_the_last_round"] == 5
    assert not (tmp_path / "out.json").exists()
