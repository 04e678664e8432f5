"""Kill everything in the middle of a run over 4,000 AG News articles, run it again, compare with an undisturbed run.

    python -m jobs.killed_news [--rows 4000] [--kills 2]

The command, its Ray and all of Ray's processes end by SIGKILL, once so many rows are done. The articles lie in
`../shared`, beside the project. The model is the demo's, computed by the engine;
rows are compared with all they hold.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.bench.news import ARTICLES
from jobs.bench.surroundings import surroundings
from jobs.soak import started
from pipelines.prepare import unit_rows

RESULT: Final = Path(__file__).parent / "bench" / "results" / "killed_news.json"
KEY, FILES = "row", 4


def write_input(folder: Path, num_rows: int) -> Path:
    """Write the first articles, numbered, as four files."""
    articles = pq.read_table(ARTICLES).slice(0, num_rows)
    articles = articles.append_column(KEY, pa.array(range(articles.num_rows), pa.int64()))
    folder.mkdir()
    share = -(-articles.num_rows // FILES)
    for number, start in enumerate(range(0, articles.num_rows, share)):
        pq.write_table(articles.slice(start, share), folder / f"{number}.parquet")
    return folder


def write_job(folder: Path, name: str) -> Path:
    """Write the job whose output has this name, and return its file."""
    job = {
        "name": "killed-news",
        "input": {"path": str(folder / "input"), "key": KEY},
        "task": {
            "kind": "classify",
            "prompt": "{{ title }}. {{ text }}\nTopic:",
            "labels": ["World", "Sports", "Business", "Sci/Tech"],
            "truncate": "left",
        },
        "model": {"path": "demo", "dtype": "float32"},
        "backend": {"kind": "native"},
        "output": {"path": str(folder / name), "prefix": "gptj_"},
        "errors": {"max_failed_rows": 0},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(job), encoding="utf-8")
    return file


def num_units(output: Path) -> int:
    """Return how many units of rows are done and not merged into parts yet."""
    return len(list((output / "_gptj_batch" / "units").glob("unit-*")))


def kill_everything(root: int) -> int:
    """Kill a process and all below it, and return how many that were."""
    try:
        process = psutil.Process(root)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    return len(family)


def disturbed(job: Path, output: Path, moments: Sequence[int]) -> list[dict[str, int]]:
    """Run a job, killed once so many units are there, for each of `moments`; then to its end."""
    kills: list[dict[str, int]] = []
    for moment in moments:
        with started(job) as process:
            while process.poll() is None and num_units(output) < moment:
                time.sleep(0.02)
            done = num_units(output)
            killed = kill_everything(process.pid)
            process.wait()
        kills.append({"units_done": done, "processes_killed": killed})
        print(json.dumps(kills[-1]), flush=True)
    with started(job) as process:
        if code := process.wait():
            raise RuntimeError(f"the last run ended with {code}; see {job.with_suffix('.log')}")
    return kills


def compare(found: pa.Table, wanted: pa.Table) -> dict[str, int]:
    """Return how many rows are lost, doubled and different, and how many agree to the last bit."""
    found_keys, wanted_keys = found[KEY].to_pylist(), wanted[KEY].to_pylist()
    lost, doubled = len(set(wanted_keys) - set(found_keys)), len(found_keys) - len(set(found_keys))
    rows = {row[KEY]: row for row in found.to_pylist()}
    same = sum(rows.get(row[KEY]) == row for row in wanted.to_pylist())
    return {"rows": len(wanted_keys), "lost": lost, "doubled": doubled, "same": same}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it, print and keep what came of it; 1 where any row was lost, doubled or different."""
    parser = argparse.ArgumentParser(description="Kill a whole run in its middle; compare what a rerun makes of it.")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULT, help="where the figures go")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="gptj-batch-news-"))
    write_input(folder / "input", options.rows)
    facts: dict[str, Any] = {**surroundings(2)}
    begun = time.monotonic()
    with started(write_job(folder, "undisturbed")) as process:
        if process.wait():
            print(f"the undisturbed run failed; see {folder}/undisturbed.log")
            return 1
    facts["undisturbed_s"] = round(time.monotonic() - begun, 1)
    all_units = FILES * -(-(options.rows // FILES) // unit_rows(options.rows))
    moments = [max(1, (1 + number) * all_units // (1 + options.kills)) for number in range(options.kills)]
    kills = disturbed(write_job(folder, "killed"), folder / "killed", moments)
    facts |= {"units": all_units, "kills": kills}
    facts |= compare(pq.read_table(folder / "killed"), pq.read_table(folder / "undisturbed"))
    print(json.dumps(facts, indent=2))
    options.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if facts["same"] < facts["rows"] or facts["lost"] or facts["doubled"]:
        print(f"what went wrong is kept in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
