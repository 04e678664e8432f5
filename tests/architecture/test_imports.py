"""What no import contract can say: what is loaded at run time, what no file may do, which names users rely on."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("gptj_batch", "pipelines", "jobs")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "vllm", "transformers", "ray", "datasets", "pandas"}
WATCHED = sorted(HEAVY | {"pyarrow", "tokenizers", "pydantic", "jinja2"})


def name_of(source: Path) -> str:
    return source.relative_to(ROOT).as_posix()


@cache
def trees() -> list[tuple[str, ast.Module]]:
    return [(name_of(source), ast.parse(source.read_text(encoding="utf-8"))) for source in SOURCES]


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; of `from a import b` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression that is no more than that, else its last name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def loaded_after(*statements: str) -> list[set[str]]:
    """Which of the watched modules a fresh interpreter has loaded after each statement."""
    tell = f"print(*[name for name in {WATCHED} if name in sys.modules])"
    script = "\n".join(["import sys", *(f"{statement}\n{tell}" for statement in statements)])
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_there_are_sources_to_look_at() -> None:
    assert len(SOURCES) > 60


def test_the_command_and_the_library_load_nothing_heavy_before_they_need_it() -> None:
    statements = [
        "import gptj_batch, pipelines",
        "import jobs.cli; jobs.cli._parser()",
        "import pipelines.config, pipelines.prepare, pipelines.report_page, pipelines.no_rows",
        "import gptj_batch.tasks.registry, gptj_batch.stages.write, gptj_batch.stages.infer",
        "import gptj_batch.backends.factory as factory; factory.make_backend('fake', model_path='nowhere')",
        "import pipelines; [getattr(pipelines, name) for name in pipelines.__all__]; pipelines.shutdown()",
        "import pipelines.arguments, pipelines.tables, pipelines.summary_page",
        "import jobs.failures, jobs.convert, jobs.versions, jobs.cluster, jobs.demo, jobs.run",
    ]
    for statement, loaded in zip(statements, loaded_after(*statements), strict=True):
        assert loaded & HEAVY == set(), statement
    assert not loaded_after(statements[0])[0], "not even pyarrow: the engine is used without it"


def test_the_engine_loads_torch_and_nothing_of_the_data_side() -> None:
    (loaded,) = loaded_after("import gptj_batch.engine, gptj_batch.model, gptj_batch.backends.native")
    assert loaded == {"torch"}


def test_only_jobs_and_the_connection_to_ray_read_the_environment() -> None:
    readers = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and dotted(node) in ("os.environ", "os.getenv", "os.environb", "os.putenv", "os.unsetenv")
    }
    readers |= {name for name, tree in trees() if {"os.environ", "os.getenv", "os.environb"} & set(imported(tree))}
    # vLLM takes from the environment what the processes that it starts must know, and from nowhere else. A notebook has
    # no job above it that could read RAY_ADDRESS, or set what Ray reads when it is imported. obstore reads credentials
    # itself, when a client is made; whether they are still the same is looked at before the client is used again.
    expected = {"gptj_batch/backends/vllm_process.py", "gptj_batch/records/bucket_store.py", "pipelines/cluster.py"}
    assert {name for name in readers if not name.startswith("jobs/")} == expected


def test_nothing_unpickles() -> None:
    pickles = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    found = {(name, module) for name, tree in trees() for module in imported(tree) if module.split(".")[0] in pickles}
    assert found == set()


def test_nothing_evaluates_text() -> None:
    found = {
        (name, call)
        for name, tree in trees()
        for call, _ in calls(tree)
        if call in ("eval", "exec", "__import__", "os.system")
    }
    assert found == set()


def test_nothing_trusts_remote_code() -> None:
    named = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if (isinstance(node, ast.keyword) and node.arg == "trust_remote_code")
        or (isinstance(node, ast.Constant) and node.value == "trust_remote_code")
    }
    assert named == {"gptj_batch/backends/vllm_settings.py"}, "which refuses it as an argument of vLLM's engine"


def test_torch_loads_weights_only() -> None:
    loads = [(name, node) for name, tree in trees() for call, node in calls(tree) if call == "torch.load"]
    assert loads, "old checkpoints are read with it"
    for name, node in loads:
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        only = given.get("weights_only")
        assert isinstance(only, ast.Constant) and only.value is True, name
    assert not [name for name, tree in trees() if "torch.load" in set(imported(tree))], "called by its full name"


def test_yaml_is_read_by_safe_loaders() -> None:
    unsafe = {"yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"}
    found = {
        (name, dotted(node))
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node) in unsafe
    }
    assert found == set()
    for name, tree in trees():
        for call, node in calls(tree):
            if call == "yaml.load":
                assert any(keyword.arg == "Loader" for keyword in node.keywords), name


def test_transformers_is_a_peer_of_benchmarks_and_nothing_else() -> None:
    users = {name for name, tree in trees() for module in imported(tree) if module.split(".")[0] == "transformers"}
    assert {name for name in users if not name.startswith("jobs/bench/")} == set()


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    found = {
        name_of(source)
        for source in SOURCES
        for part in source.relative_to(ROOT).with_suffix("").parts
        if part in drawers
    }
    assert found == set()


def test_every_file_says_first_what_it_owns() -> None:
    assert [name for name, tree in trees() if not ast.get_docstring(tree)] == []


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("gptj_batch", ["Request", "SamplingParams"]),
        ("gptj_batch.engine", ["Engine", "EngineConfig"]),
        (
            "gptj_batch.model",
            [
                "GPTJConfig",
                "GPTJModel",
                "GPTJForCausalLM",
                "GPTJForSequenceClassification",
                "GPTJForQuestionAnswering",
            ],
        ),
        ("jobs.cli", ["main"]),
        ("jobs.run", ["main"]),
    ],
)
def test_names_that_users_rely_on_are_there(module: str, names: list[str]) -> None:
    loaded = importlib.import_module(module)
    assert [name for name in names if not hasattr(loaded, name)] == []
    public = getattr(loaded, "__all__", names)
    assert set(names) <= set(public)
