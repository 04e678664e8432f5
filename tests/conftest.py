"""What every test stands on: no network, no telemetry, a Ray that neither asks for a token nor writes one, no GPU."""

import os

# Before anything imports Ray, which reads its settings then. Tests of authentication start processes of their own.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("RAY_ADDRESS", None)
# Before anything imports Triton, whose own functions are defined one way or the other when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
