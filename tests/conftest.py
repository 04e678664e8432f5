"""What every test stands on: no network, no telemetry, a Ray that neither asks for a token nor writes one, no GPU."""

import os

import pytest

# Before anything imports Ray, which reads its settings then. Tests of authentication start processes of their own.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("RAY_ADDRESS", None)
# Before anything imports Triton, whose own functions are defined one way or the other when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say what there is beside pytest's own."""
    parser.addoption("--all-on-ray", action="store_true", help="tests marked `without_ray` run on a cluster as well")
