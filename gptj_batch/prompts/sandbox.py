"""The sandbox: what a template may use. A template is the user's; the values in it are anybody's.

Jinja's own sandbox keeps a template from Python's internals and from changing values. This one also takes away whatever
makes much out of little by a number that may come from a row (padding, formatting, repetition), what is random, and
what reads other templates.
"""

import json
from collections.abc import Callable
from typing import Any

from jinja2 import StrictUndefined, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_REPEATED_ITEMS = 100_000  # of "=" * 40 and the like
MAX_RANGE_ITEMS = 10_000
MAX_POWER_BITS = 4096
MAX_ROUND_DIGITS = 30
MAX_INDENT_CHARS = 16

# Not among them: center, indent, format, batch, slice, xmlattr and urlize (they grow by a number), random (rows must
# not depend on chance), attr, pprint, and what escapes HTML (a prompt is plain text).
TEXT_FILTERS = (
    "capitalize", "lower", "replace", "string", "striptags", "title", "trim", "truncate", "upper", "urlencode",
    "wordcount", "wordwrap",
)  # fmt: skip
_OTHER_FILTERS = (
    "abs", "count", "d", "default", "dictsort", "filesizeformat", "first", "float", "groupby", "int", "items",
    "last", "length", "list", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort",
    "sum", "unique",
)  # fmt: skip
_GROWING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "to_bytes"})


class ForbiddenError(SecurityError):
    """Something that a prompt may not do; the message never holds a value."""


class Sandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment for prompts: plain text, no null by accident, nothing that grows without bound."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, loader=None)
        builtin: dict[str, Callable[..., Any]] = dict(self.filters)
        self.filters = {name: builtin[name] for name in TEXT_FILTERS + _OTHER_FILTERS}
        self.filters |= {"join": _join(builtin["join"]), "round": _round(builtin["round"]), "tojson": _tojson}
        self.globals = {"range": _range}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Refuse what Jinja refuses, and the methods that allocate by a number."""
        if isinstance(obj, (str, bytes, int)) and attr in _GROWING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Offer no `str.format`, which pads to any width; Jinja would wrap it before asking `is_safe_attribute`."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` unless its result could be of any size."""
        if operator == "*":
            _check_repetition(left, right)
            _check_repetition(right, left)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MAX_POWER_BITS:
                raise ForbiddenError(f"** gives numbers of at most {MAX_POWER_BITS} bits")
        elif operator == "%" and isinstance(left, (str, bytes)):
            raise ForbiddenError("% does not format text here; write the values between the texts")
        return super().call_binop(context, operator, left, right)


def _check_repetition(items: Any, times: Any) -> None:
    if hasattr(items, "__len__") and isinstance(times, int) and len(items) * times > MAX_REPEATED_ITEMS:
        raise ForbiddenError(f"* repeats to at most {MAX_REPEATED_ITEMS} items")


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_RANGE_ITEMS:
        raise ForbiddenError(f"range gives at most {MAX_RANGE_ITEMS} numbers")
    return numbers


def _join(builtin: Callable[..., Any]) -> Callable[..., Any]:
    @pass_eval_context
    def join(eval_context: EvalContext, value: Any, d: str = "", attribute: str | int | None = None) -> Any:
        """Join as Jinja does, which would make "None" of a null."""
        items = list(value)
        if attribute is None and any(item is None for item in items):
            raise ForbiddenError("join: an item is null; leave nulls out, as in {{ items | select | join }}")
        return builtin(eval_context, items, d, attribute)

    return join


def _round(builtin: Callable[..., Any]) -> Callable[..., Any]:
    def round_(value: Any, precision: int = 0, method: str = "common") -> Any:
        """Round as Jinja does; a precision of a billion would compute a number of as many digits."""
        if abs(precision) > MAX_ROUND_DIGITS:
            raise ForbiddenError(f"round takes at most {MAX_ROUND_DIGITS} digits")
        return builtin(value, precision, method)

    return round_


def _tojson(value: Any, indent: int | None = None) -> str:
    """Return plain JSON; Jinja's own escapes it for HTML."""
    if indent is not None and indent > MAX_INDENT_CHARS:
        raise ForbiddenError(f"tojson indents by at most {MAX_INDENT_CHARS}")
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)
