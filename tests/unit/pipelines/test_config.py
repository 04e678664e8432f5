from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj_batch.errors import ConfigError
from gptj_batch.tasks.classify import ClassifySettings
from pipelines.config import OF_OTHER_TASKS, Job, check_job, load_job
from pipelines.job_file import apply_overrides, parse_job
from pipelines.settings import ErrorSettings

# The contract's example, as it stands there, with a task filled in.
CONTRACT = """\
name: label-news
input:
  path: data/*.parquet         # file, folder, glob or list; local, s3://, gs://, or a datasets name with format: huggingface
  format: auto                 # parquet | arrow | jsonl | csv | huggingface | auto (by ending)
  columns: null                # read and keep only these; null = all
  key: null                    # column that names a row in messages; null = file and row number
  limit: null
task:
  kind: classify               # generate | classify | extract | score | embed; the rest of this block is the task's own
  method: prompt
  prompt: "{{ text }}\\nTopic:"
  labels: [World, Sports]
  likelihood: sum
  calibrate: none
model:
  path: EleutherAI/gpt-j-6B    # folder in Hugging Face layout, hub name, or "demo"
  revision: null
  dtype: auto                  # auto | float16 | bfloat16 | float32   (auto: float16 on CUDA, bfloat16 on a CPU that has it, else float32)
backend:
  kind: auto                   # auto | native | vllm | fake   (auto: vllm where it is installed, has a GPU and can do the task; else native)
  max_step_tokens: null        # null = chosen for the device; likewise the next
  max_running: null
  kv_cache_gb: null
  prefix_caching: true
replicas:
  min: 1
  max: null                    # null = what the cluster's GPUs (or, without any, its CPUs) allow
  gpus_each: null              # null = 1 where the cluster has GPUs, else 0
  cpus_each: null
output:
  path: out/label-news
  format: parquet              # parquet | arrow | jsonl
  on_exists: resume            # resume | overwrite | fail
  prefix: ""                   # put before every added column
  partition_by: []
  compression: zstd
  target_file_mb: 128          # parts are merged to about this size when the run completes
errors:
  max_failed_rows: 0.01        # a share below 1.0, or a count from 1 up
  bad_files: fail              # fail | skip: an input file that cannot be read (always named)
"""  # noqa: E501
SHORT = """\
name: label-news
input: {path: data/*.parquet}
task: {kind: classify, method: prompt, prompt: "{{ text }}\\nTopic:", labels: [World, Sports], likelihood: sum}
output: {path: out/label-news}
"""
GENERATE = """\
name: x
input: {path: a.parquet}
task: {kind: generate, prompt: "{{ text }}"}
output: {path: out}
"""
# The contract's settings of `generate`, all of them, with values that ask for nothing this version has not.
EVERY_GENERATE = """\
name: x
input: {path: a.parquet}
task:
  kind: generate
  prompt: "Summarize: {{ text }}\\n"
  max_new_tokens: 32
  min_new_tokens: 1
  temperature: 0.7
  top_k: 40
  top_p: 0.9
  min_p: 0.0
  repetition_penalty: 1.1
  stop: ["\\n\\n"]
  num_samples: 2
  seed: 1
  num_beams: 1
  length_penalty: 1.0
  early_stopping: false
  logprobs: true
  choices: null
  regex: null
  json_schema: null
  truncate: left
output: {path: out}
"""
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)


def job_of(text: str, *overrides: str) -> Job:
    file = parse_job(text, "job.yaml")
    apply_overrides(file, overrides)
    return check_job(file)


def test_an_empty_prefix_may_be_given_on_a_command_line() -> None:
    assert job_of(GENERATE, "output.prefix=x_", "output.prefix=").output.prefix == ""


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        job_of(text, *overrides)
    return str(caught.value)


def test_the_contracts_example_is_taken_as_it_stands() -> None:
    job = job_of(CONTRACT)
    assert (job.name, job.input.path, job.model.path) == ("label-news", "data/*.parquet", "EleutherAI/gpt-j-6B")
    assert isinstance(job.task, ClassifySettings) and job.task.labels == ("World", "Sports")


def test_what_the_example_says_is_what_a_short_file_means() -> None:
    assert job_of(CONTRACT) == job_of(SHORT)


def test_every_setting_of_generate_in_the_contract_is_known() -> None:
    task = job_of(EVERY_GENERATE).task
    assert task.kind == "generate" and task.num_samples == 2 and task.stop == ("\n\n",)


@pytest.mark.parametrize("text", [CONTRACT, SHORT, GENERATE, EVERY_GENERATE])
def test_the_resolved_job_is_a_job_file_of_the_same_job(text: str) -> None:
    job = job_of(text)
    assert job_of(job.to_yaml()) == job
    assert job_of(job_of(job.to_yaml()).to_yaml()).to_yaml() == job.to_yaml()


@settings(max_examples=25)
@given(
    TEXT,
    st.dictionaries(TEXT, TEXT, min_size=2, max_size=4) | st.lists(TEXT, min_size=2, max_size=4, unique=True),
    st.lists(TEXT, min_size=1, max_size=2),
    st.sampled_from(["1e3", "010", "no", "null", "1.", "a.b"]),
    st.floats(0, 0.99) | st.integers(1, 9),
)
def test_whatever_texts_a_job_holds_it_is_resolved_to_the_same(
    prompt: str, labels: Any, paths: list[str], name: str, failed: float
) -> None:
    values = {
        "name": name,
        "input": {"path": paths, "key": prompt, "columns": paths},
        "task": {"kind": "classify", "prompt": prompt, "labels": labels},
        "output": {"path": prompt, "prefix": "_" + prompt},
        "errors": {"max_failed_rows": failed},
    }
    try:
        job = Job.model_validate(values)
    except ValueError:
        return
    assert job_of(job.to_yaml()) == job


# Settings that this version does not have


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("task.num_beams=4", "num_beams", 4),
        ("task.length_penalty=-0.5", "length_penalty", -0.5),
        ("task.early_stopping=true", "early_stopping", True),
        ("task.early_stopping=never", "early_stopping", "never"),
        ("task.choices=[a, b]", "choices", ("a", "b")),
        ("task.regex='[a-z]+'", "regex", "[a-z]+"),
        ("task.settings_column=options", "settings_column", "options"),
        ("task.deduplicate=true", "deduplicate", True),
        ("task.json_schema={type: object, required: [a]}", "json_schema", {"type": "object", "required": ["a"]}),
        ("""task.json_schema='{"type": "object"}'""", "json_schema", '{"type": "object"}'),
    ],
)
def test_how_text_is_generated_survives_being_written_and_read(override: str, name: str, value: Any) -> None:
    job = job_of(GENERATE, override)
    assert getattr(job.task, name) == value
    assert job_of(job.to_yaml()) == job


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.top_k=0", "task.top_k: must be greater than or equal to 1, got 0"),
        ("task.text={{ text }}", "it belongs to `classify` with method head, to `score` and to `embed`"),
        ("task.multi_label_threshold=0.5", "it belongs to `classify` with method head"),
        ("task.choices=[a, b]", "it belongs to `generate`; `classify` has labels"),
        ("task.regex=a+", "it belongs to `generate`"),
        ("task.num_beams=4", "it belongs to `generate`"),
        ("task.calibrate=context_free", "task.calibrate: must be 'none' or 'content_free', got 'context_free'"),
        ("task.abstain_below=2", "task.abstain_below: must be less than or equal to 1, got 2"),
        ("task.abstain_bellow=0.5", "task.abstain_bellow: no such setting; did you mean task.abstain_below?"),
        ("task.deduplicate=1", "task.deduplicate: must be true or false, got 1"),
    ],
)
def test_what_classify_by_prompt_does_not_have_says_so(override: str, message: str) -> None:
    assert message in refusal(SHORT, override)


HEAD = SHORT.replace("method: prompt, prompt:", "method: head, text:").replace(
    ", labels: [World, Sports], likelihood: sum", ""
)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.labels=[a, b]", "it belongs to `classify` with method prompt; a trained head brings its own labels"),
        ("task.prompt=x", "it belongs to `generate`, and to `classify` and `extract` with method prompt"),
        ("task.likelihood=mean", "it belongs to `classify` with method prompt"),
        ("task.calibrate=content_free", "it belongs to `classify` with method prompt"),
        ("task.multi_label_threshhold=0.1", "no such setting; did you mean task.multi_label_threshold?"),
        ("task.multi_label_threshold=2", "must be less than or equal to 1, got 2"),
        ("task.top_k=0", "must be greater than or equal to 1, got 0"),
        ("task.method=hed", "task.method: must be prompt or head, got 'hed'"),
    ],
)
def test_what_classify_by_head_does_not_take_says_so(override: str, message: str) -> None:
    assert message in refusal(HEAD, override)


EXTRACT = 'name: x\ninput: {path: a}\ntask: {kind: extract, question: "Who?", context: x}\noutput: {path: out}\n'


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.method=heads", "task.method: must be head or prompt, got 'heads'"),
        ("task.prompt=x", "it belongs to `generate`, and to `classify` and `extract` with method prompt"),
        ("task.max_answers=3", "it belongs to `extract` with method prompt; by head, top_k is as many answers"),
        ("task.scoring=hf", "task.scoring: must be 'global_softmax' or 'pipeline', got 'hf'"),
        ("task.window_tokens=0", "must be greater than or equal to 1, got 0"),
        ("task.stride=5", "task.stride: no such setting; did you mean task.stride_tokens?"),
        ("task.max_answer_tokens=0", "must be greater than or equal to 1, got 0"),
        ("task.question=", "task.question: must be a text, got None"),
    ],
)
def test_what_extract_does_not_take_says_so(override: str, message: str) -> None:
    assert message in refusal(EXTRACT, override)


SCORE = 'name: x\ninput: {path: a}\ntask: {kind: score, text: "{{ a }}", context: "{{ q }}"}\noutput: {path: out}\n'
EMBED = 'name: x\ninput: {path: a}\ntask: {kind: embed, text: "{{ a }}", layer: -2}\noutput: {path: out}\n'


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (SCORE, "task.kind=scores", "must be generate, classify, extract, score or embed, got 'scores'; did you mean"),
        (SCORE, "task.stride=5", "task.stride: no such setting; did you mean task.stride_tokens?"),
        (SCORE, "task.stride_tokens=0", "must be greater than or equal to 1, got 0"),
        (SCORE, "task.truncate=right", "task.truncate: must be 'left' or 'error', got 'right'"),
        (SCORE, "task.context=[q]", "task.context: must be a text, got a list"),
        (SCORE, "task.prompt=x", "it belongs to `generate`, and to `classify` and `extract` with method prompt"),
        (SCORE, "task.pooling=mean", "task.pooling: no such setting; there are kind, text, context, stride_tokens"),
        (EMBED, "task.pooling=max", "task.pooling: must be 'mean' or 'last', got 'max'"),
        (EMBED, "task.pool=last", "task.pool: no such setting; did you mean task.pooling?"),
        (EMBED, "task.layer=0.5", "task.layer: must be a whole number, got 0.5"),
        (EMBED, "task.normalize=1", "task.normalize: must be true or false, got 1"),
        (EMBED, "task.text=''", "task.text: must not be empty"),
        (EMBED, "task.top_k=3", "it belongs to `classify`, to `extract` with method head and to `generate`"),
    ],
)
def test_what_score_and_embed_do_not_take_says_so(text: str, override: str, message: str) -> None:
    assert message in refusal(text, override)


EXTRACT_PROMPT = (
    "name: x\ninput: {path: a}\n"
    'task: {kind: extract, method: prompt, prompt: "{{ c }} A:", context: "{{ c }}", max_answers: 2}\n'
    "output: {path: out}\n"
)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.question=Who?", "it belongs to `extract` with method head; with method prompt it is part of the prompt"),
        ("task.top_k=2", "with method head and to `generate`; by prompt, max_answers is as many"),
        ("task.stride_tokens=3", "task.stride_tokens: no such setting"),
        ("task.max_answer=3", "task.max_answer: no such setting; did you mean task.max_answers?"),
        ("task.max_answers=0", "must be greater than or equal to 1, got 0"),
        ("task.separator=' '", "separator (' ') must be more than spaces, where max_answers (2) is above 1"),
        ("task.truncate=middle", "task.truncate: must be 'left', 'right' or 'error', got 'middle'"),
        ("task.context=", "task.context: must be a text, got None"),
        ("task.method=[prompt]", "task.method: must be head or prompt, got ['prompt']"),
        (
            "task.method=head",
            "task.prompt: it belongs to `generate`, and to `classify` and `extract` with method prompt",
        ),
    ],
)
def test_what_extract_by_prompt_does_not_take_says_so(override: str, message: str) -> None:
    assert message in refusal(EXTRACT_PROMPT, override)


def test_jobs_of_every_kind_survive_being_written_and_read() -> None:
    pipeline = EXTRACT.replace("kind: extract", "kind: extract, scoring: pipeline")
    for text in (HEAD, EXTRACT, pipeline, EXTRACT_PROMPT, SCORE, EMBED):
        job = job_of(text)
        assert job_of(job.to_yaml()) == job


def test_all_of_it_is_said_at_once() -> None:
    lines = refusal(GENERATE, "task.calibrate=content_free", "task.labels=[a]", "task.text=a").splitlines()
    assert len(lines) == 3 and all(line.endswith("; leave it out") for line in lines)


@pytest.mark.parametrize("setting", OF_OTHER_TASKS)
def test_what_asks_for_nothing_is_let_through_and_is_no_setting(setting: str) -> None:
    block, name = setting.split(".")
    text = {"prompt": EXTRACT, "labels": EXTRACT, "likelihood": EXTRACT, "calibrate": EXTRACT, "top_k": EMBED}
    for value in OF_OTHER_TASKS[setting][0]:
        values = parse_job(text.get(name, SHORT), "job.yaml")
        values.values.setdefault(block, {})[name] = value
        assert name not in check_job(values).model_dump().get(block, {})


def test_top_k_belongs_to_generate() -> None:
    assert job_of(GENERATE, "task.top_k=40").task.model_dump()["top_k"] == 40


# Rules between settings, and of single ones


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=A B", "name: must be 1 to 63 of a-z"),
        ("name=", "name: must be a text, got None"),
        ("name=-x", "name: must be 1 to 63"),
        (f"name={'x' * 64}", "name: must be 1 to 63"),
        ("input.path=[]", "input.path: must name at least one file, folder or glob"),
        ("input.path=['']", "input.path: must name at least one file"),
        ("input.path=", "input.path: must be a text or a list, got None"),
        ("input.limit=0", "input.limit: must be greater than or equal to 1, got 0"),
        ("input.format=xml", "input.format: must be 'auto', 'parquet'"),
        (
            "model.dtype=int4",
            "model.dtype: must be 'auto', 'float16', 'bfloat16', 'float32' or 'int8', got 'int4'",
        ),
        ("model.path=''", "model.path: must not be empty"),
        ("backend.kv_cache_gb=0", "backend.kv_cache_gb: must be greater than 0, got 0"),
        ("backend.prefix_caching=maybe", "backend.prefix_caching: must be true or false"),
        ("backend.max_running=1.5", "backend.max_running: must be a whole number, got 1.5"),
        ("backend.kind=tpu", "backend.kind: must be 'auto', 'native', 'vllm' or 'fake', got 'tpu'"),
        ("replicas.min=0", "replicas.min: must be greater than or equal to 1, got 0"),
        ("replicas.cpus_each=0", "replicas.cpus_each: must be greater than 0, got 0"),
        ("replicas.gpus_each=1.5", "replicas.gpus_each: must be a share of one GPU or a whole number of them"),
        ("output.path=''", "output.path: must not be empty"),
        ("output.compression=zip", "output.compression: must be 'zstd'"),
        ("output.format=csv", "output.format: must be 'parquet', 'arrow' or 'jsonl', got 'csv'"),
        ("output={path: x, format: arrow, compression: gzip}", "arrow is compressed with zstd, lz4 or none, got gzip"),
        ("output={path: x, format: jsonl, compression: lz4}", "jsonl is compressed with none, zstd or gzip, got lz4"),
        ("output.partition_by=[a, a]", "output.partition_by: must name columns, each once"),
        ("output.partition_by=['']", "output.partition_by: must name columns, each once"),
        ("output.partition_by=a", "output.partition_by: must be a list"),
        ("output.row_group_rows=0", "output.row_group_rows: must be greater than or equal to 1"),
        ("output.target_file_mb=0", "output.target_file_mb: must be greater than or equal to 1"),
        ("output.prefix=__gptj_batch_x", "output.prefix: __gptj_batch_ is what columns between the stages begin with"),
        ("errors.max_failed_rows=-1", "errors.max_failed_rows: must be greater than or equal to 0"),
        ("errors.max_failed_rows=1.5", "errors.max_failed_rows: must be a share below 1.0 or a whole number of rows"),
        ("errors.max_failed_rows=many", "errors.max_failed_rows: must be a number, got 'many'"),
        ("errors.bad_files=ignore", "errors.bad_files: must be 'fail' or 'skip'"),
        ("task.prompt=''", "task.prompt: must not be empty"),
    ],
)
def test_what_cannot_work_is_refused_with_the_rule_and_what_was_found(override: str, message: str) -> None:
    assert message in refusal(GENERATE, override)


@pytest.mark.parametrize(
    ("overrides", "compression", "ending"),
    [
        ([], "zstd", ".parquet"),
        (["output.format=arrow"], "zstd", ".arrow"),
        (["output.format=jsonl"], "none", ".jsonl"),
        (["output.format=jsonl", "output.compression=null"], "none", ".jsonl"),
        (["output.format=jsonl", "output.compression=zstd"], "zstd", ".jsonl.zst"),
        (["output.compression=gzip", "output.format=jsonl"], "gzip", ".jsonl.gz"),
    ],
)
def test_json_lines_are_compressed_only_where_that_is_asked_for(
    overrides: list[str], compression: str, ending: str
) -> None:
    job = job_of(GENERATE, *overrides)
    assert (job.output.compression, job.output.form.ending) == (compression, ending)
    assert job_of(job.to_yaml()) == job


def test_partitions_survive_being_written_and_read() -> None:
    job = job_of(GENERATE, "output.partition_by=[lang, label]", "output.row_group_rows=1000")
    assert job.output.form.partition_by == ("lang", "label") and job_of(job.to_yaml()) == job
    assert job_of(GENERATE, "output.partition_by=null") == job_of(GENERATE)


def test_the_fewest_replicas_are_not_more_than_the_most() -> None:
    message = refusal(GENERATE + "replicas:\n  min: 3\n  max: 2\n")
    assert message == "job.yaml:5:1: replicas: replicas.min (3) is above replicas.max (2)"
    assert job_of(GENERATE, "replicas.min=2", "replicas.max=2").replicas.max == 2


@pytest.mark.parametrize("share", [0, 0.25, 1, 2, 4.0])
def test_gpus_are_shares_of_one_or_whole_ones(share: float) -> None:
    assert job_of(GENERATE, f"replicas.gpus_each={share}").replicas.gpus_each == share


@pytest.mark.parametrize(
    ("limit", "failed", "rows", "allowed"),
    [
        (0.0, 0, 10, True), (0.0, 1, 10, False), (0.01, 1, 100, True), (0.01, 2, 100, False), (0.01, 1, 99, False),
        (0.29, 29, 100, True), (0.57, 57, 100, True), (0.29, 30, 100, False), (0.999, 1000, 1000, False),
        (1, 1, 1, True), (1, 2, 1000, False), (5.0, 5, 5, True), (0.5, 0, 0, True), (3, 0, 0, True),
    ],
)  # fmt: skip
def test_a_share_or_a_number_of_rows_may_fail(limit: float, failed: int, rows: int, allowed: bool) -> None:
    assert ErrorSettings(max_failed_rows=limit).allows(failed, rows) is allowed


@given(st.integers(0, 99), st.integers(1, 10_000))
def test_exactly_the_share_that_is_written_is_allowed(percent: int, hundreds: int) -> None:
    settings = ErrorSettings(max_failed_rows=percent / 100)
    assert settings.allows(percent * hundreds, 100 * hundreds)
    assert not settings.allows(percent * hundreds + 1, 100 * hundreds)


# Files


def test_a_job_is_loaded_from_its_file_and_overridden(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(GENERATE)
    job = load_job(file, ["task.seed=7", "input.path=[a, b]", "replicas={min: 2, max: 3}", "model.path=demo"])
    assert (job.task.model_dump()["seed"], job.input.path, job.replicas.max) == (7, ("a", "b"), 3)
    assert job.model.path == "demo"


def test_an_override_of_one_setting_leaves_the_others_of_its_block() -> None:
    job = job_of(SHORT, "task.labels=[a, b, c]")
    assert isinstance(job.task, ClassifySettings)
    assert job.task.labels == ("a", "b", "c") and job.task.prompt == "{{ text }}\nTopic:"


def test_the_values_of_a_file_are_not_changed_by_checking_them() -> None:
    file = parse_job(EVERY_GENERATE, "job.yaml")
    before = parse_job(EVERY_GENERATE, "job.yaml").values
    check_job(file)
    assert file.values == before


@pytest.mark.parametrize("config", sorted((Path(__file__).parents[3] / "jobs" / "configs").glob("*.yaml")), ids=str)
def test_the_example_jobs_are_jobs(config: Path) -> None:
    job = load_job(config)
    assert job_of(job.to_yaml()) == job
