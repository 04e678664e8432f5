"""The task `generate`: continue a prompt.

Adds `generated_text` (a list where num_samples > 1), `finish_reason`, `num_prompt_tokens`, `num_generated_tokens` and,
with `logprobs`, `generated_logprobs`; with several samples the last three but the prompt's count are lists too.

With `choices`, `regex` or `json_schema`, every text whose finish_reason is "stop" is what these describe. One whose
reason is "length" was cut by max_new_tokens in the middle: it only begins so. JSON is written as Python's json.dumps
writes it, properties in the schema's order. The log-probabilities are the model's own, not those among allowed tokens.

With `settings_column`, a row may have settings of its own (`gptj_batch.tasks.row_settings`).
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from gptj_batch.constraints.grammar import GrammarCompiler
from gptj_batch.errors import ConfigError
from gptj_batch.model_folder import Head
from gptj_batch.prompts.template import PromptTemplate, check_column
from gptj_batch.prompts.tokenizer import Tokenizer
from gptj_batch.prompts.truncation import TruncationSide
from gptj_batch.requests import MAX_LENGTH_PENALTY, AnyRequest, Constraint, Request, SamplingParams
from gptj_batch.results import AnyResult, Generated
from gptj_batch.tasks.base import Settings, column
from gptj_batch.tasks.prompted import PromptEncoder
from gptj_batch.tasks.row_settings import OwnSettingsEncoder, RowSettings
from gptj_batch.tasks.stop_strings import StopStrings, StopStringsByTexts


class GenerateSettings(Settings):
    """The block `task` of a job of kind `generate`."""

    head: ClassVar[Head] = "causal-lm"
    kind: Literal["generate"]
    prompt: str = Field(min_length=1)
    """Template over the record's columns, e.g. "Summarize: {{ text }}"."""
    max_new_tokens: int = Field(default=64, ge=1)
    """The most tokens to generate; they must fit into the context behind the prompt."""
    min_new_tokens: int = Field(default=0, ge=0)
    """No end of text and no stop before so many tokens."""
    temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """0 is greedy decoding."""
    top_k: int = Field(default=0, ge=0)
    """Sample among the k likeliest tokens; 0 is off."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample among the likeliest tokens that hold this share of the probability; 1.0 is off."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Drop tokens less likely than this share of the likeliest one's probability; 0.0 is off."""
    repetition_penalty: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """Above 1.0, tokens that were seen become less likely."""
    stop: tuple[str, ...] = ()
    """Generation ends where one of these texts appears; the text is cut before it."""
    num_samples: int = Field(default=1, ge=1, le=1024)
    """Continuations of each record."""
    seed: int = 0
    """Sampling draws from the seed, the record's key and the sample's number, and from nothing else."""
    num_beams: int = Field(default=1, ge=1, le=256)
    """Above 1, beam search: the likeliest continuation among so many kept at a time."""
    length_penalty: float = Field(default=1.0, ge=-MAX_LENGTH_PENALTY, le=MAX_LENGTH_PENALTY)
    """Beams compare by log-probability / number of tokens ** length_penalty: above 0, longer texts gain."""
    early_stopping: Literal[True, False, "never"] = False
    """Whether beam search ends with the num_beams-th finished beam; false ends it when none is likely to do better,
    never only when none could."""
    logprobs: bool = False
    """Add the log-probability of every generated token."""
    choices: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The text is exactly one of these."""
    regex: str | None = Field(default=None, min_length=1)
    """The whole text matches this pattern, in the syntax of Rust's regex: no look-around, no back-references."""
    json_schema: dict[str, Any] | str | None = None
    """The text is JSON that this schema allows; the schema is an object, or JSON itself."""
    settings_column: str | None = Field(default=None, min_length=1)
    """The column with a row's own max_new_tokens, min_new_tokens, temperature, top_k, top_p, min_p,
    repetition_penalty, stop and seed: a struct, or a JSON object as text, of those that differ from the job's."""
    truncate: TruncationSide = "error"
    """A prompt that does not fit: cut the record's text at its left or right end, or make it the row's error."""
    deduplicate: bool = False
    """Compute rows that have the same prompt and settings and are decoded greedily once, within what a replica
    remembers; samples, which draw from the row's key, are always computed."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty text would stop every generation at once; remove it")
        return value

    @field_validator("choices", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and ("" in value or len(set(value)) < len(value)):
            raise ValueError("a choice must not be empty, nor stand there twice")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) is above max_new_tokens ({self.max_new_tokens})")
        if self.num_beams > 1 and self.num_samples > 1:
            raise ValueError(
                f"num_samples ({self.num_samples}) and num_beams ({self.num_beams}) are both above 1: beam search "
                "draws no samples; set one of them to 1"
            )
        if self.num_beams > 1 and self.temperature > 0.0:
            raise ValueError(
                f"num_beams ({self.num_beams}) above 1 needs temperature 0, got {self.temperature}: beam search draws "
                "nothing; set temperature to 0, or num_beams to 1 to sample"
            )
        if self.num_samples > 1 and self.temperature == 0.0:
            raise ValueError("num_samples above 1 needs a temperature above 0: greedy samples are all the same")
        if len(self.constraints) > 1:
            raise ValueError(f"{' and '.join(self.constraints)} are both set; a text is held to one of them")
        if self.constraints and self.num_beams > 1:
            raise ValueError(
                f"num_beams ({self.num_beams}) above 1 cannot be held to {self.constraints[0]}; set num_beams to 1"
            )
        if self.constraints and self.stop:
            raise ValueError(f"stop would cut the text that {self.constraints[0]} describes; remove one of the two")
        return self

    @property
    def constraints(self) -> list[str]:
        """Return which of the settings that constrain the text are set; one at most, once they are checked."""
        return [name for name in ("choices", "regex", "json_schema") if getattr(self, name) is not None]


class GenerateTask:
    """See the module."""

    def __init__(self, settings: GenerateSettings) -> None:
        self.settings = settings
        self._template = PromptTemplate(settings.prompt, "task.prompt")
        self.head: Head = settings.head
        self._own_column = frozenset([settings.settings_column] if settings.settings_column is not None else [])
        self.reads = self._template.columns | self._own_column
        # What a row says of its own settings; else the encoding of a prompt leaves nothing to remember.
        self.notes_type = pa.string() if self._own_column else pa.null()

    @property
    def deduplicate(self) -> bool:
        """Say whether rows with the same prompt and settings are computed once."""
        return self.settings.deduplicate

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigError where the prompt or `settings_column` names a column that is not among `names`."""
        self._template.check_columns(names)
        for name in self._own_column:
            check_column(name, names, "task.settings_column")

    @property
    def adds(self) -> pa.Schema:
        """Return the columns that the task adds."""
        fields = [
            pa.field("generated_text", self._per_sample(pa.string())),
            pa.field("finish_reason", self._per_sample(pa.string())),
            pa.field("num_prompt_tokens", pa.int32()),
            pa.field("num_generated_tokens", self._per_sample(pa.int32())),
        ]
        if self.settings.logprobs:
            fields.append(pa.field("generated_logprobs", self._per_sample(pa.list_(pa.float32()))))
        return pa.schema(fields)

    def _per_sample(self, type_: pa.DataType) -> pa.DataType:
        return type_ if self.settings.num_samples == 1 else pa.list_(type_)

    @property
    def raw_type(self) -> pa.DataType:
        """Return the packed form: the token ids of every sample."""
        sample = pa.struct(
            [
                ("token_ids", pa.list_(pa.int32())),
                ("finish_reason", pa.string()),
                ("num_prompt_tokens", pa.int32()),
                ("logprobs", pa.list_(pa.float32())),
            ]
        )
        return pa.list_(sample)

    def prompt(self, record: Mapping[str, Any]) -> str:
        """Render the prompt. Raises RecordError."""
        return self._template.render(record)

    def encoder(self, tokenizer: Tokenizer, max_context_tokens: int) -> PromptEncoder | OwnSettingsEncoder:
        """Return the encoder of prompts. Raises ConfigError where what stands behind them leaves no room."""
        settings = self.settings
        prompts = PromptEncoder(
            self._template, settings.truncate, tokenizer, max_context_tokens, settings.max_new_tokens
        )
        if settings.settings_column is None:
            return prompts
        longest_choice = _longest_choice(settings.choices, tokenizer) if settings.choices else 0
        rows = RowSettings(settings, settings.settings_column)
        return OwnSettingsEncoder(rows, prompts, longest_choice, max_context_tokens - 1)

    def request_maker(self, tokenizer: Tokenizer) -> "GenerateRequestMaker":
        """Return the maker of requests. Raises ConfigError for a constraint that cannot be enforced."""
        return GenerateRequestMaker(self.settings, tokenizer)

    def pack(self, results: Sequence[AnyResult]) -> list[dict[str, Any]]:
        """Return one row's samples."""
        samples = [result for result in results if isinstance(result, Generated)]
        return [
            {
                "token_ids": sample.token_ids,
                "finish_reason": sample.finish_reason,
                "num_prompt_tokens": sample.num_prompt_tokens,
                "logprobs": sample.logprobs,
            }
            for sample in samples
        ]

    def columns(self, raw: Sequence[Any], notes: Sequence[Any], tokenizer: Tokenizer) -> list[pa.Array]:
        """Return the added columns."""
        stop_of = self._stop_by_notes(tokenizer)
        choices = self.settings.choices or ()
        texts = [
            None if row is None else [_text(sample, tokenizer, stop_of(note), choices) for sample in row]
            for row, note in zip(raw, notes, strict=True)
        ]
        reasons = [None if row is None else [sample["finish_reason"] for sample in row] for row in raw]
        counts = [None if row is None else [len(sample["token_ids"]) for sample in row] for row in raw]
        prompts = [None if row is None else [row[0]["num_prompt_tokens"]] for row in raw]
        logprobs = [None if row is None else [sample["logprobs"] for sample in row] for row in raw]
        single = self.settings.num_samples == 1
        by_name = {
            "generated_text": _unwrapped(texts, single),
            "finish_reason": _unwrapped(reasons, single),
            "num_prompt_tokens": _unwrapped(prompts, True),
            "num_generated_tokens": _unwrapped(counts, single),
            "generated_logprobs": _unwrapped(logprobs, single),
        }
        return [column(by_name[field.name], field) for field in self.adds]

    def _stop_by_notes(self, tokenizer: Tokenizer) -> Callable[[str | None], StopStrings | None]:
        """Return what gives the stop condition of a row, from its notes."""
        of_row, stops = _by_notes(self.settings), StopStringsByTexts(tokenizer)
        return lambda note: stops(of_row(note).stop)


class GenerateRequestMaker:
    """Turns token ids into one request a sample; `notes` are the row's own settings."""

    def __init__(self, settings: GenerateSettings, tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._of_row = _by_notes(settings)
        self._stops = StopStringsByTexts(tokenizer)
        if settings.stop or settings.settings_column is not None:
            tokenizer.token_bytes(0)  # raises here, not row by row, where tokens have no bytes
        self._constraint = _constraint(settings, tokenizer) if settings.constraints else None

    @property
    def reserved_tokens(self) -> int:
        """Return how many tokens may be generated."""
        return self._settings.max_new_tokens

    def requests(self, key: str, prompt_token_ids: Sequence[int], notes: Any = None) -> list[AnyRequest]:
        """Return one request a sample."""
        settings = self._of_row(notes)
        return [
            Request(
                key=f"{key}#{sample}",
                prompt_token_ids=prompt_token_ids,
                sampling=_sampling(settings, key, sample),
                stop=self._stops(settings.stop),
                constraint=self._constraint,
            )
            for sample in range(settings.num_samples)
        ]


def _sampling(settings: GenerateSettings, key: str, sample: int) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        seed=row_seed(settings.seed, key, sample),
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        logprobs=settings.logprobs,
    )


def _by_notes(settings: GenerateSettings) -> Callable[[str | None], GenerateSettings]:
    """Return what gives the settings of a row, from its notes; without notes they are the job's."""
    if settings.settings_column is None:
        return lambda note: settings
    rows = RowSettings(settings, settings.settings_column)
    return lambda note: settings if note is None else rows.merged(note)


def _constraint(settings: GenerateSettings, tokenizer: Tokenizer) -> Constraint:
    """Return what the settings hold a text to. Raises ConfigError naming the setting."""
    grammar = GrammarCompiler(tokenizer)
    if settings.json_schema is not None:
        return grammar.json_schema(settings.json_schema, "task.json_schema")
    if settings.regex is not None:
        return grammar.regex(settings.regex, "task.regex")
    choices = settings.choices or ()
    longest = _longest_choice(choices, tokenizer)
    if longest > settings.max_new_tokens:
        raise ConfigError(
            f"task.max_new_tokens: {settings.max_new_tokens} are too few for the longest of task.choices, which has "
            f"{longest} tokens; raise it"
        )
    return grammar.choices(choices, "task.choices")


def _longest_choice(choices: Collection[str], tokenizer: Tokenizer) -> int:
    """Return the tokens of the longest choice, with the space that it may have before it."""
    return max(map(len, tokenizer.encode_batch([" " + text for text in choices])))


def _text(
    sample: Mapping[str, Any], tokenizer: Tokenizer, stop: StopStrings | None, choices: Collection[str] = ()
) -> str:
    """Return a sample's text, without the token or before the text that ended it, or a choice as it was given."""
    text = tokenizer.decode(sample["token_ids"], skip_special_tokens=True)
    if choices and text not in choices:
        return text.removeprefix(" ")  # the one that a choice may have before it
    if stop is None or sample["finish_reason"] != "stop":
        return text
    # Only the stop that ended it is cut: before min_new_tokens there may be others.
    return text[: len(text) - len(stop.ending(sample["token_ids"]).decode(errors="replace"))]


def row_seed(seed: int, key: str, sample: int) -> int:
    """Return the seed of one sample of one row: 63 bits that depend on nothing but these three."""
    digest = hashlib.blake2b(f"{seed}\x00{key}\x00{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _unwrapped(rows: Sequence[list[Any] | None], single: bool) -> list[Any]:
    return [row[0] if row is not None and single else row for row in rows]
