"""Cold start: a process starts, loads the demo model and has a first token; ours and transformers take turns.

    python -m jobs.bench.cold_start [--rounds 10]

The clock runs from before the process is made until the token is read from its pipe; how long it then takes to end is
not in it. `first start ever` is ours with an empty cache of compiled kernels, as on a machine where nothing ever ran;
the import of torch alone stands beside it, for it is in all of them. The operating system has the files in memory after
a first round, which does not count.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from gptj_batch.demo import demo_folder
from jobs.bench.surroundings import surroundings, write_results

PROMPT: Final = "The council met on Tuesday and"
DTYPE: Final = "float32"
GOAL_S: Final = 3.0

TORCH: Final = "import torch; print(flush=True)"
OURS: Final = f"""
from gptj_batch import Request, SamplingParams
from gptj_batch.engine import Engine
from gptj_batch.prompts.tokenizer import Tokenizer
ids = Tokenizer.from_folder({{folder!r}}).encode_batch([{PROMPT!r}])[0]
request = Request(key="0", prompt_token_ids=ids, sampling=SamplingParams(max_new_tokens=1, min_new_tokens=1))
print(Engine.from_pretrained({{folder!r}}, dtype={DTYPE!r}).run([request])[0].token_ids[0], flush=True)
"""
TRANSFORMERS: Final = f"""
import torch, transformers
ids = transformers.AutoTokenizer.from_pretrained({{folder!r}})({PROMPT!r}, return_tensors="pt").input_ids
model = transformers.GPTJForCausalLM.from_pretrained({{folder!r}}, dtype=torch.{DTYPE}).eval()
with torch.inference_mode():
    new = model.generate(ids, max_new_tokens=1, min_new_tokens=1, do_sample=False, pad_token_id=0)
print(int(new[0, -1]), flush=True)
"""
LEGS: Final = {"ours": OURS, "transformers": TRANSFORMERS, "import torch alone": TORCH, "ours, first start ever": OURS}


def seconds(leg: str, home: Path) -> tuple[float, str]:
    """Return how long one process took, and what it printed; raises CalledProcessError where it failed."""
    if leg.endswith("first start ever"):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
    program = LEGS[leg].format(folder=str(demo_folder("causal-lm")))
    environment = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    began = time.perf_counter()
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        first = process.stdout.readline().strip() if process.stdout else ""
        taken = time.perf_counter() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, leg)
    return taken, first


def measure(rounds: int, home: Path) -> dict[str, list[float]]:
    """Return the seconds of every round; raises RuntimeError where ours and transformers' first tokens differ."""
    taken: dict[str, list[float]] = {leg: [] for leg in LEGS}
    for number in range(rounds + 1):
        tokens = {}
        for leg, of_leg in taken.items():
            second, tokens[leg] = seconds(leg, home)
            if number > 0:
                of_leg.append(round(second, 3))
        if len(set(tokens.values()) - {""}) != 1:
            raise RuntimeError(f"the first tokens differ: {tokens}")
    return taken


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="gptj-cold-") as folder:
        taken = measure(rounds, Path(folder) / "home")
    median = {leg: round(statistics.median(of_leg), 2) for leg, of_leg in taken.items()}
    for leg, middle in median.items():
        print(f"{leg:<24}{middle:>7.2f} s   ({min(taken[leg]):.2f} to {max(taken[leg]):.2f})")
    print(f"goal for ours: {GOAL_S:g} s, {'met' if median['ours'] <= GOAL_S else 'missed'}")
    report: dict[str, Any] = {
        **surroundings(2),
        "model": "demo",
        "dtype": DTYPE,
        "rounds": rounds,
        "goal_s": GOAL_S,
        "median_s": median,
        "ratio_to_transformers": round(median["transformers"] / median["ours"], 2),
        "seconds": taken,
    }
    file = write_results(report, "cold_start")
    print(f"written to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
