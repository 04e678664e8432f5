"""What the notebook functions refuse before Ray is started."""

import pyarrow as pa
import pytest

from gptj_batch.errors import ConfigError
from pipelines.classify import classify

NO_VNNI = "dtype int8 needs another CPU"
TABLE = pa.table({"text": ["a text"]})


def test_a_dtype_that_this_machine_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptj_batch.engine.prepare.why_no_int8", lambda: NO_VNNI)
    monkeypatch.setattr("pipelines.notebook.callers_table", lambda _: pytest.fail("it went on"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=rf"^classify\(\): dtype: {NO_VNNI}$"):
        classify(TABLE, prompt="{{ text }}\nTopic:", labels=["a", "b"], dtype="int8")


def test_another_cluster_is_not_judged_by_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class WentOnError(Exception):
        pass

    def go_on(_: object) -> None:
        raise WentOnError

    monkeypatch.setattr("gptj_batch.engine.prepare.why_no_int8", lambda: NO_VNNI)
    monkeypatch.setattr("pipelines.notebook.callers_table", go_on)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(WentOnError):
        classify(TABLE, prompt="{{ text }}\nTopic:", labels=["a", "b"], dtype="int8")
