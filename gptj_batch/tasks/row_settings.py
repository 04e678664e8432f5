"""RowSettings: what a column says of how its own row is generated, in place of the job's settings."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gptj_batch.errors import RecordError, shorten
from gptj_batch.tasks.base import Encoded, Settings
from gptj_batch.tasks.prompted import PromptEncoder, Record, rendered

if TYPE_CHECKING:
    from gptj_batch.tasks.generate import GenerateSettings

KEYS = (
    "max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed",
)  # fmt: skip
WHOLE_NUMBERS = ("max_new_tokens", "min_new_tokens", "top_k", "seed")
MAX_REMEMBERED = 1024
_NAME = re.compile(r"[A-Za-z_]\w{0,39}", re.ASCII)


class RowSettings:
    """Read a column of structs, or of JSON objects as text, whose fields are some of KEYS.

    A field that is null, like a whole value that is, leaves the job's setting as it is. What the fields and the job's
    other settings make together must be what a job could say.
    """

    def __init__(self, settings: "GenerateSettings", column: str) -> None:
        self._settings = settings
        self._column = column
        self._merged: dict[str, GenerateSettings] = {}  # by the packed form; rows mostly say one of a few things

    def read(self, value: Any) -> str:
        """Return a row's value in its packed form. Raises RecordError naming the field and the rule, never a value."""
        changes = {name: _whole(name, found) for name, found in self._fields(value).items() if found is not None}
        if unknown := [name for name in changes if name not in KEYS]:
            raise self.error(f"{_unknown(unknown[0])}; a row may set {', '.join(KEYS)}")
        try:
            merged = type(self._settings).model_validate({**_plain(self._settings), **changes})
        except ValidationError as error:
            raise self.error(_rule(error)) from None  # the cause quotes the value
        return json.dumps({name: getattr(merged, name) for name in changes}, sort_keys=True)

    def merged(self, packed: str) -> "GenerateSettings":
        """Return the settings of a row, from what `read` made of its value."""
        merged = self._merged.get(packed)
        if merged is None:
            changes = json.loads(packed)
            changes |= {name: tuple(value) for name, value in changes.items() if isinstance(value, list)}
            merged = self._settings.model_copy(update=changes)
            if len(self._merged) >= MAX_REMEMBERED:
                self._merged.clear()
            self._merged[packed] = merged
        return merged

    @property
    def column(self) -> str:
        """Return the name of the column."""
        return self._column

    def _fields(self, value: Any) -> Mapping[str, Any]:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise self.error('the text is not JSON; write an object such as {"temperature": 0.7}') from None
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(f"must be a struct or a JSON object, got a {type(value).__name__}")
        return value

    def error(self, rule: str) -> RecordError:
        """Return the error of a row whose settings break a rule."""
        return RecordError(f'column "{shorten(self._column, 40)}" (task.settings_column): {rule}')


class OwnSettingsEncoder:
    """Encode the prompts of rows that may have settings of their own, and leave these as the row's notes.

    min_new_tokens, max_new_tokens: between what a row's max_new_tokens must lie
    """

    def __init__(self, rows: RowSettings, prompts: PromptEncoder, min_new_tokens: int, max_new_tokens: int) -> None:
        self._rows = rows
        self._prompts = prompts
        self._min_new_tokens = min_new_tokens
        self._max_new_tokens = max_new_tokens

    def __call__(self, records: Sequence[Record]) -> list[Encoded | RecordError]:
        """Return each record's tokens, or why there are none; see PromptEncoder."""
        notes = [rendered(record, self._note) for record in records]
        reserved = [0 if isinstance(note, RecordError) else self._rows.merged(note).max_new_tokens for note in notes]
        good = [note if isinstance(note, RecordError) else record for record, note in zip(records, notes, strict=True)]
        return [
            replace(row, notes=note) if isinstance(row, Encoded) else row
            for row, note in zip(self._prompts.encode(good, reserved), notes, strict=True)
        ]

    def _note(self, record: Mapping[str, Any]) -> str:
        """Return a row's own settings. Raises RecordError where they cannot be honoured."""
        note = self._rows.read(record[self._rows.column])
        num_new = self._rows.merged(note).max_new_tokens
        if num_new > self._max_new_tokens:
            raise self._rows.error(
                f"max_new_tokens must be at most {self._max_new_tokens}, the model's context less one token of prompt"
            )
        if num_new < self._min_new_tokens:
            raise self._rows.error(
                f"max_new_tokens must be at least {self._min_new_tokens}, the tokens of the longest of task.choices"
            )
        return note


def _plain(settings: Settings) -> dict[str, Any]:
    """Return the settings as they can be validated again."""
    return {name: getattr(settings, name) for name in type(settings).model_fields}


def _whole(name: str, value: Any) -> Any:
    """Return a whole number as an int: pandas makes floats of a column's whole numbers where one is missing."""
    return int(value) if name in WHOLE_NUMBERS and isinstance(value, float) and value.is_integer() else value


def _unknown(name: str) -> str:
    if not _NAME.fullmatch(name):  # whatever it is, it may be the record's text
        return f"no setting has a name like that of {len(name)} characters"
    near = get_close_matches(name, KEYS, n=1)
    return f'no setting "{name}" of a row' + (f"; did you mean {near[0]}?" if near else "")


def _rule(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_input=False)[0]
    if details["type"] == "value_error":
        rule = str(details["ctx"]["error"])
    else:
        rule = details["msg"].replace("Input should", "must", 1)
    return " ".join([str(details["loc"][0]), rule]) if details["loc"] else rule
