"""The notebook functions on a real cluster: every kind of data, lazily, on replicas that stay, no text in any log."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import pipelines
from gptj_batch.demo import demo_records
from gptj_batch.errors import CheckpointError, ConfigError, OutputInUseError
from gptj_batch.records.lease import take_lease
from integration.clusters import RunningCluster, connect
from integration.running import CANARY, environment, run_report
from integration.tiny_model import TinyModel
from pipelines import classify, extract, generate, shutdown, summary, warm_replicas

ROOT = Path(__file__).parents[2]
LABELS = ["World", "Sports", "Business"]
TOPIC = "{{ text }}\nTopic:"
CLASSIFIED = ["label", "label_score", "label_scores", "error"]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def cluster(one_node: RunningCluster) -> Iterator[RunningCluster]:
    """One cluster for all, whose CPUs are free again for the tests behind these."""
    connect(one_node)
    yield one_node
    shutdown()


def frame(rows: int = 70) -> pd.DataFrame:
    """More rows than one unit has."""
    texts = [f"{CANARY} {row}: The team won {row % 7} matches." for row in range(rows)]
    index = pd.Index([f"r{row}" for row in range(rows)], name="place")
    made = pd.DataFrame({"n": np.arange(rows, dtype="int16"), "text": texts}, index=index)
    made["kind"] = pd.Categorical(["a", "b"] * rows)[:rows]
    made["odd"] = [{1, 2}] * rows  # Arrow has no form for it
    made.attrs["from"] = "test"
    return made


def by_fake(data: Any, **settings: Any) -> Any:
    return classify(data, prompt=TOPIC, labels=LABELS, model="demo", backend="fake", progress=False, **settings)


def pids() -> set[int]:
    return {replica["pid"] for replica in warm_replicas()}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def ended(gone: set[int], within_s: float = 30) -> bool:
    until = time.monotonic() + within_s
    while any(map(is_alive, gone)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(is_alive, gone))


# Kinds


def test_a_dataframe_comes_back_as_it_was_with_the_columns_behind_its_own() -> None:
    before = frame()
    after = by_fake(before)
    assert list(after.columns) == [*before.columns, *CLASSIFIED]
    pd.testing.assert_frame_equal(after[before.columns], before)
    assert after.attrs == before.attrs and after is not before
    assert list(before.columns) == ["n", "text", "kind", "odd"], "the caller's own is not touched"
    assert set(after.label) <= set(LABELS) and after.error.isna().all()
    assert set(after.label_scores.iloc[0]) == set(LABELS)


def test_what_is_computed_is_what_the_model_computes(tiny: TinyModel) -> None:
    rows = frame(4)
    done = classify(rows, prompt=TOPIC, labels=LABELS, model=str(tiny.folder), dtype="float32", progress=False)
    for text, scores in zip(rows.text, done.label_scores, strict=True):
        wanted = tiny.label_probabilities(f"{text}\nTopic:", [f" {label}" for label in LABELS])
        assert list(scores.values()) == pytest.approx(wanted, abs=1e-5)


def test_a_table_keeps_its_metadata_and_has_the_same_answers() -> None:
    rows = frame().drop(columns="odd")
    table = pa.Table.from_pandas(rows)
    after = by_fake(table)
    assert after.column_names == [*table.column_names, *CLASSIFIED]
    assert after.schema.metadata == table.schema.metadata
    assert after.select(table.column_names).equals(table)
    assert after.column("label").to_pylist() == by_fake(rows).label.tolist()


def test_a_dataset_keeps_features_order_and_format() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "topic": datasets.ClassLabel(names=["x", "y"])})
    rows = {"text": [f"text {row}" for row in range(40)], "topic": [0, 1] * 20}
    before = datasets.Dataset.from_dict(rows, features=features).shuffle(seed=1).with_format("numpy")
    after = by_fake(before)
    assert after.column_names == ["text", "topic", *CLASSIFIED]
    assert after.features["topic"] == features["topic"]
    assert after.format["type"] == "numpy"
    assert list(after["text"]) == list(before["text"])
    scores = after.with_format(None)[0]["label_scores"]
    assert set(scores) == set(LABELS) and sum(scores.values()) == pytest.approx(1)


def test_a_polars_frame_comes_back_as_one() -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    before = polars.DataFrame({"n": [1, 2, 3], "text": ["a", "b", "c"]})
    after = by_fake(before)
    assert after.columns == ["n", "text", *CLASSIFIED]
    assert after.select(["n", "text"]).equals(before)
    assert set(after["label_scores"][0]) == set(LABELS)


def test_a_ray_dataset_is_done_when_it_is_consumed_in_order_and_unchanged(tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    def note(batch: pa.Table) -> pa.Table:
        mark.touch()
        return batch

    rows = frame().drop(columns="odd").reset_index()
    source = ray.data.from_pandas(rows).repartition(7).map_batches(note, batch_format="pyarrow")
    shutdown()
    result = by_fake(source)
    assert isinstance(result, ray.data.Dataset)
    assert not mark.exists() and not warm_replicas(), "nothing is executed, and no model loaded"

    done = result.to_pandas()

    assert mark.exists()
    assert done.n.tolist() == list(range(70))
    assert list(done.columns) == [*rows.columns, *CLASSIFIED]
    assert done.label.tolist() == by_fake(rows).label.tolist()
    assert not source.context.execution_options.preserve_order, "the caller's own settings of Ray Data stay"
    assert not ray.data.DataContext.get_current().execution_options.preserve_order


def test_a_path_gives_a_ray_dataset_of_its_records(tmp_path: Path) -> None:
    rows = frame().drop(columns=["odd", "kind"])
    for name, part in (("a", rows[:30]), ("b", rows[30:])):
        part.reset_index(drop=True).to_parquet(tmp_path / f"{name}.parquet")
    target = ray.data.DataContext.get_current().target_max_block_size
    result = by_fake(tmp_path, columns=["n", "text"])
    assert isinstance(result, ray.data.Dataset)
    done = result.to_pandas()
    assert list(done.columns) == ["n", "text", *CLASSIFIED]
    assert done.n.tolist() == list(range(70))
    assert done.label.tolist() == by_fake(rows).label.tolist()
    assert ray.data.DataContext.get_current().target_max_block_size == target


def test_data_without_rows_has_the_columns_all_the_same(tmp_path: Path) -> None:
    after = by_fake(frame()[:0])
    assert list(after.columns)[-4:] == CLASSIFIED and len(after) == 0
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    assert by_fake(tmp_path).columns() == ["text", *CLASSIFIED]


def test_a_prompt_that_reads_no_column_is_asked_for_every_row() -> None:
    after = generate(
        pd.DataFrame({"n": [1, 2, 3]}), prompt="Once", max_new_tokens=2, model="demo", backend="fake", progress=False
    )
    assert after.num_generated_tokens.tolist() == [2, 2, 2]
    assert str(after.num_prompt_tokens.dtype) in ("Int32", "Int64")


# Rows


def test_a_row_that_fails_has_its_reason_and_its_neighbours_their_labels(capsys: pytest.CaptureFixture[str]) -> None:
    rows = frame(6).astype({"text": object})
    rows.loc["r2", "text"] = None
    rows.loc["r4", "text"] = f"{CANARY} \ud800"
    after = by_fake(rows)
    assert after.error.notna().tolist() == [False, False, True, False, True, False]
    assert after.label.isna().tolist() == after.error.notna().tolist()
    said = capsys.readouterr()
    assert "classify(): 2 of 6 rows failed; see the column `error`:" in said.err
    assert CANARY not in said.err + said.out


def test_a_sample_depends_on_its_rows_key_and_on_no_other_row(tiny: TinyModel) -> None:
    rows = frame(40)
    settings: dict[str, Any] = {"prompt": "{{ text }}", "max_new_tokens": 4, "temperature": 1.0, "seed": 3, "key": "n"}
    settings |= {"model": str(tiny.folder), "dtype": "float32", "progress": False}
    whole = generate(rows, **settings)
    part = generate(rows[7:9], **settings)
    lazily = generate(ray.data.from_pandas(rows.drop(columns="odd")).repartition(3), **settings).to_pandas()
    assert part.generated_text.tolist() == whole.generated_text[7:9].tolist()
    assert lazily.generated_text.tolist() == whole.generated_text.tolist()
    assert whole.generated_text.nunique() > 10


def test_no_text_of_a_record_is_in_any_log(cluster: RunningCluster, capfd: pytest.CaptureFixture[str]) -> None:
    rows = pd.DataFrame({"text": [CANARY, None, CANARY * 9], "n": [0, 1, 0]})
    settings = {"model": "demo", "max_new_tokens": 4, "prompt": "{{ text }} {{ 1 / n }}"}
    generate(rows, **settings)
    generate(ray.data.from_pandas(rows), **settings).materialize()
    said = capfd.readouterr()
    assert "3 of 3 rows failed" in said.err
    assert CANARY not in said.out + said.err
    logs = [file for file in cluster.folder.rglob("*") if file.is_file() and "logs" in file.parts]
    assert len(logs) > 10
    assert not [file for file in logs if CANARY.encode() in file.read_bytes()]


# Replicas


def test_the_next_call_asks_the_same_replica_and_another_task_of_the_same_head_too() -> None:
    by_fake(frame(3))
    first = pids()
    by_fake(frame(50), prefix="x_")
    generate(frame(2), prompt="{{ text }}", max_new_tokens=2, model="demo", backend="fake", progress=False)
    assert pids() == first and len(first) == 1


def test_a_lazy_dataset_that_is_consumed_again_loads_no_model_again() -> None:
    result = by_fake(ray.data.from_pandas(frame(50).drop(columns="odd")))
    taken = result.take(2)
    first = pids()
    assert result.take(2) == taken
    assert pids() == first and len(first) == 1


def test_a_model_that_has_no_room_beside_a_resting_one_takes_its_place() -> None:
    by_fake(frame(3))
    first = pids()
    answers = extract(frame(3), question="Who?", context="{{ text }}", model="demo", backend="fake", progress=False)
    for text, answer, start, end in zip(
        answers.text, answers.answer_text, answers.answer_start, answers.answer_end, strict=True
    ):
        assert text[start:end] == answer
    assert {replica["head"] for replica in warm_replicas()} == {"question-answering"}
    assert ended(first)


def test_other_settings_of_the_replica_are_another_replica() -> None:
    by_fake(frame(3))
    first = pids()
    classify(
        frame(3),
        prompt=TOPIC,
        labels=LABELS,
        model="demo",
        backend={"kind": "fake", "prefix_caching": False},
        progress=False,
    )
    assert not pids() & first


def test_shutdown_ends_the_replicas_and_the_next_call_starts_new_ones() -> None:
    lazily = by_fake(ray.data.from_pandas(frame(4).drop(columns="odd")))
    by_fake(frame(3))
    gone = pids()
    shutdown()
    assert not warm_replicas() and ended(gone)
    assert ray.is_initialized(), "a Ray that was there before stays"
    assert len(lazily.take_all()) == 4
    assert by_fake(frame(3)).error.isna().all()
    assert pids() and not pids() & gone


def test_a_replica_that_is_killed_between_two_calls_is_there_again() -> None:
    by_fake(frame(3))
    (pid,) = pids()
    os.kill(pid, signal.SIGKILL)
    assert ended({pid})
    assert by_fake(frame(40)).error.isna().all()


def test_a_replica_that_is_killed_within_a_call_is_started_again_and_nothing_is_lost(tiny: TinyModel) -> None:
    settings: dict[str, Any] = {"prompt": "{{ text }}", "max_new_tokens": 20, "model": str(tiny.folder)}
    settings |= {"dtype": "float32", "progress": False}
    undisturbed = generate(frame(300), **settings)
    (pid,) = pids()
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    disturbed = generate(frame(300), **settings)
    killer.join()
    assert ended({pid})
    assert disturbed.error.isna().all()
    assert disturbed.generated_text.tolist() == undisturbed.generated_text.tolist()


@contextmanager
def interrupted() -> Iterator[None]:
    """Press Ctrl-C until it works: Python drops an interrupt that comes within a callback, such as a finalizer.

    Tests that a shell started in the background ignore Ctrl-C, as all that such a shell starts; a notebook does not.
    """
    works = threading.Event()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        while not works.wait(1.0):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        works.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_a_call_that_is_interrupted_leaves_the_replica_for_the_next_one(tiny: TinyModel) -> None:
    settings: dict[str, Any] = {"prompt": "{{ text }}", "max_new_tokens": 30, "model": str(tiny.folder)}
    settings |= {"dtype": "float32", "progress": False}
    generate(frame(2), **settings)
    before = pids()
    with interrupted(), pytest.raises(KeyboardInterrupt):
        generate(frame(3000), **settings)
    assert generate(frame(3), **settings).error.isna().all()
    assert pids() == before


def test_a_model_that_cannot_be_loaded_is_said_once(tiny: TinyModel, tmp_path: Path) -> None:
    for file in tiny.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"weights|safetensors") as raised:
        classify(frame(3), prompt=TOPIC, labels=LABELS, model=str(tmp_path), progress=False)
    assert str(raised.value).startswith("classify(): ")
    assert not [replica for replica in warm_replicas() if replica["model"] == str(tmp_path)]


# Output


def test_a_result_that_is_written_is_an_output_like_a_jobs_and_read_the_next_time(tmp_path: Path) -> None:
    rows, output = frame().drop(columns="odd"), tmp_path / "out"
    first = by_fake(rows, output=output)
    assert (output / "_SUCCESS").exists()
    report = run_report(output)
    assert (report["rows"], report["failed"]) == (70, 0)
    stored = pd.read_parquet(output)
    pd.testing.assert_frame_equal(stored[rows.columns], rows)
    assert stored.label.tolist() == first.label.tolist() == by_fake(rows).label.tolist()

    shutdown()
    again = by_fake(rows, output=output)
    assert not warm_replicas(), "nothing was computed"
    pd.testing.assert_frame_equal(again, first)

    with pytest.raises(ConfigError, match=r"on_exists=overwrite"):
        by_fake(rows[1:], output=output)
    assert len(by_fake(rows[1:], output=output, on_exists="overwrite")) == 69
    assert len(pd.read_parquet(output)) == 69


@pytest.mark.parametrize("form", [{"partition_by": ["label"]}, {"format": "jsonl"}])
def test_a_result_may_be_written_in_any_form_and_is_the_same(tmp_path: Path, form: dict[str, Any]) -> None:
    rows, output = frame().drop(columns="odd"), tmp_path / "out"
    settings = {"output": {"path": output, **form}}
    written = by_fake(rows, **settings)
    pd.testing.assert_frame_equal(written, by_fake(rows))
    report = run_report(output)
    assert (report["rows"], report["failed"]) == (70, 0) and (output / "_SUCCESS").exists()
    if "partition_by" in form:
        assert {folder.name for folder in output.glob("label=*")} == {f"label={label}" for label in set(written.label)}
    else:
        assert pd.read_json(output / "part-00000.jsonl", lines=True).label.tolist() == written.label.tolist()
    with pytest.raises(ConfigError, match=r"is complete, and its .* cannot be put beside .* on_exists=overwrite"):
        by_fake(rows, **settings)
    by_fake(rows, **settings, on_exists="overwrite")
    dataset = ray.data.from_arrow(pa.Table.from_pandas(rows, preserve_index=False))
    assert by_fake(dataset, output={"path": tmp_path / "other", **form}).count() == 70


def test_a_result_that_is_there_shows_no_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = frame(3).drop(columns="odd")
    settings: dict[str, Any] = {"prompt": TOPIC, "labels": LABELS, "model": "demo", "backend": "fake"}
    classify(rows, output=tmp_path / "out", **settings)
    assert "classify: 3 rows in" in capsys.readouterr().err
    classify(rows, output=tmp_path / "out", **settings)
    assert capsys.readouterr().err == ""


def test_an_output_that_another_run_is_writing_is_left_to_it(tmp_path: Path) -> None:
    rows, output = frame(3).drop(columns="odd"), tmp_path / "out"
    rows.reset_index(drop=True).to_parquet(tmp_path / "in.parquet")
    with take_lease(output):
        for data in (rows, tmp_path / "in.parquet", ray.data.from_pandas(rows)):
            with pytest.raises(OutputInUseError, match=r"^classify\(\): output: .* is held by another run"):
                by_fake(data, output=output)
    assert len(by_fake(rows, output=output)) == 3
    assert len(by_fake(rows[1:], output=output, on_exists="overwrite")) == 2
    assert len(pd.read_parquet(output)) == 2 and not list((output / "_gptj_batch").glob("lease-*"))


def test_a_path_with_an_output_is_a_job_whose_records_come_back(tmp_path: Path) -> None:
    rows, source, output = (
        frame().drop(columns=["odd", "kind"]).reset_index(drop=True),
        tmp_path / "in",
        tmp_path / "out",
    )
    source.mkdir()
    rows.to_parquet(source / "a.parquet")
    result = by_fake(source, output=output)
    assert isinstance(result, ray.data.Dataset)
    assert run_report(output)["rows"] == 70 and (output / "_SUCCESS").exists()
    done = result.to_pandas()
    assert done.n.tolist() == list(range(70)) and done.label.tolist() == by_fake(rows).label.tolist()
    assert by_fake(source, output=output).count() == 70


def test_a_ray_dataset_with_an_output_is_written_at_once(tmp_path: Path) -> None:
    rows = frame().drop(columns="odd").reset_index(drop=True)
    result = by_fake(ray.data.from_pandas(rows).repartition(5), output=tmp_path / "out")
    assert run_report(tmp_path / "out")["rows"] == 70
    assert result.to_pandas().n.tolist() == list(range(70))
    assert pd.read_parquet(tmp_path / "out").label.tolist() == by_fake(rows).label.tolist()


# What is said


def test_a_ray_dataset_whose_columns_are_not_known_yet_says_what_is_wrong_when_it_is_consumed() -> None:
    source = ray.data.range(3).map_batches(lambda batch: {"other": batch["id"]})
    result = by_fake(source)
    with pytest.raises(Exception, match='no column "text"'):
        result.take(1)


def test_a_summary_has_counts_and_rates_and_no_text() -> None:
    rows = frame(20)
    rows.loc["r3", "text"] = None
    done = summary(by_fake(rows, prefix="g_"))
    assert (done.rows, done.failed) == (20, 1)
    assert sum(done.counted["label"].values()) == 19
    assert "rows/s" in done.facts["throughput"]
    page = done._repr_html_()
    assert "World" in page and "g_label" not in page
    assert CANARY not in page + str(done)


def test_a_summary_of_a_lazy_dataset_counts_what_it_gives() -> None:
    done = summary(by_fake(ray.data.from_pandas(frame(20).drop(columns="odd"))))
    assert (done.rows, done.failed) == (20, 0) and sum(done.counted["label"].values()) == 20


# Processes

SCRIPT = """
import pandas
from pipelines import classify, warm_replicas
rows = pandas.DataFrame({"text": ["a", "b"]})
done = classify(rows, prompt="{{ text }}", labels=["x", "y"], model="demo", backend="fake")
assert done.error.isna().all()
import ray
print(warm_replicas()[0]["pid"], ray.get_runtime_context().gcs_address)
"""


def run_script(home: Path, **settings: str) -> tuple[int, str]:
    """Run it as a user whose process simply ends; return the replica's process and Ray's address."""
    env = environment(home, PYTHONPATH=str(ROOT), **settings)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "classify: 2 rows in" in done.stderr
    pid, address = done.stdout.split()
    return int(pid), address


def test_without_a_cluster_a_local_one_is_started_and_ends_with_the_process(tmp_path: Path) -> None:
    pid, _ = run_script(tmp_path)
    assert ended({pid})
    assert not (tmp_path / ".ray").exists(), "no token is left in the home folder"


def test_the_cluster_of_ray_address_is_used_and_its_replicas_end_with_the_process(
    cluster: RunningCluster, tmp_path: Path
) -> None:
    shutdown()
    pid, address = run_script(tmp_path, RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled")
    assert address == cluster.address
    assert ended({pid})


def test_the_demo_model_labels_the_demo_records_well() -> None:
    labels = ["World", "Sports", "Business", "Sci/Tech", "Billing", "Shipping", "Account", "Hardware"]
    rows = pd.read_parquet(demo_records())
    done = classify(rows, prompt=TOPIC, labels=labels, model="demo", progress=False)
    assert (done.label == done.topic).mean() > 0.95
    assert pipelines.summary(done).rows == len(rows)
