r"""A prompt template: a record in, text out, in a sandbox, with errors that name the column and never hold its text.

Worked examples can stand in a template as they are, or as a list that it goes through:
{% for e in [{"text": "...", "topic": "World"}] %}{{ e.text }}\nTopic: {{ e.topic }}\n{% endfor %}{{ text }}\nTopic:
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from difflib import get_close_matches
from types import TracebackType
from typing import Any
from uuid import UUID

from jinja2 import Template, TemplateSyntaxError, Undefined, meta, nodes, pass_context
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.runtime import Context

from gptj_batch.errors import ConfigError, RecordError, shorten
from gptj_batch.prompts.provenance import Provenance
from gptj_batch.prompts.sandbox import TEXT_FILTERS, ForbiddenError, Sandbox

MAX_PROMPT_CHARS = 4 * 1024 * 1024
MAX_COLUMNS_SHOWN = 20

_FILE = "<prompt template>"
_SHOW = "\0show"  # no template can write this name
_STATE = "\0state"
_PLAIN = (str, int, float, Decimal, date, time, timedelta, UUID)
_HINTS = {
    type(None): 'is null; leave it out with {{% if {0} %}}...{{% endif %}}, or write {{{{ {0} or "" }}}}',
    list: 'is a list; render its items, for example {{{{ {0} | join(", ") }}}}',
    tuple: 'is a list; render its items, for example {{{{ {0} | join(", ") }}}}',
    dict: "is a structure; render one of its fields, or all with {{{{ {0} | tojson }}}}",
    bytes: "is binary, not text; convert the column to text first",
}


@dataclass(frozen=True)
class Rendered:
    """A prompt, and which of its characters show the record's text, as (start, end) in their order.

    The others are the template's own.
    """

    text: str
    spans: tuple[tuple[int, int], ...]

    @property
    def own_text(self) -> str:
        """Return what is left without the record's text."""
        starts = [0, *(end for _, end in self.spans)]
        ends = [*(start for start, _ in self.spans), len(self.text)]
        return "".join(self.text[start:end] for start, end in zip(starts, ends, strict=True))


class PromptTemplate:
    """A Jinja template over the columns of a record.

    setting: the full name of the setting that holds the template, for messages

    Null is an error only where it is rendered, so `{% if subtitle %}...{% endif %}` works. Raises ConfigError for a
    template that is not valid. Can be pickled.
    """

    def __init__(self, source: str, setting: str = "task.prompt") -> None:
        self.source = source
        self.setting = setting
        sandbox = Sandbox()
        try:
            tree = sandbox.parse(source)
            self._check_tree(tree, sandbox)
            self.columns = frozenset(meta.find_undeclared_variables(tree))
            self._provenance = Provenance(tree, self.columns)
            self._label_outputs(tree)
            tree.set_environment(sandbox)
            sandbox.filters[_SHOW] = _show
            code = sandbox.compile(tree, None, _FILE)
        except TemplateSyntaxError as error:
            raise ConfigError(f"{setting}: line {error.lineno}: {shorten(error.message, 500)}") from error
        except (RecursionError, SyntaxError, MemoryError) as error:
            raise ConfigError(f"{setting}: the template is nested too deeply ({type(error).__name__})") from error
        self._template = Template.from_code(sandbox, code, sandbox.globals)

    def __reduce__(self) -> tuple[Any, ...]:
        return PromptTemplate, (self.source, self.setting)

    def check_columns(self, names: Collection[str]) -> None:
        """Raise ConfigError for a column of the template that is not among `names`, or one in single braces.

        `{text}` is how Python's format writes it, and here text like any other: every row would get the same prompt.
        """
        for column in sorted(self.columns):
            check_column(column, names, self.setting)
        meant = next((name for name in names if f"{{{name}}}" in self.source), None) if not self.columns else None
        if meant is not None:
            shown = shorten(meant, 40)
            raise ConfigError(
                f"{self.setting}: uses no column, and has {{{shown}}} in it; a column is written in two braces: "
                f"{{{{ {shown} }}}}"
            )

    def render(self, record: Mapping[str, Any]) -> str:
        """Return the record's prompt. Raises RecordError, whose message names the column and the rule."""
        return self.render_with_spans(record).text

    def render_with_spans(self, record: Mapping[str, Any]) -> Rendered:
        """Return the record's prompt, and where in it the record's text stands. Raises RecordError as `render` does.

        What a macro or a `set` block makes of a column is the record's as a whole; what a `filter` or `call` block or a
        recursive loop makes is the template's.
        """
        state = _State()
        context = self._template.new_context({**record, _STATE: state})
        try:
            pieces = list(map(state.taken, self._template.root_render_func(context)))
        except RecordError:
            raise
        except Exception as error:  # noqa: BLE001 - a template may fail in any way, and only this row with it
            raise RecordError(self._reason(error, record)) from None  # the cause may quote the record
        text = "".join(pieces)
        if len(text) > MAX_PROMPT_CHARS:
            raise _too_long()
        if not text.isascii():
            _check_unicode(text, record)
        return Rendered(text, tuple(state.spans))

    @property
    def own_text(self) -> str | None:
        """Return the text that is in every prompt; None where the template makes another of one record than another."""
        if self._provenance.hangs_on_record:
            return None
        try:
            return self.render_with_spans(dict.fromkeys(self.columns, "")).own_text
        except RecordError:  # a column that must be a number, or a structure
            return None

    def _check_tree(self, tree: nodes.Template, sandbox: Sandbox) -> None:
        for foreign in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise TemplateSyntaxError("a prompt cannot include, import or extend other templates", foreign.lineno)
        for called in tree.find_all(nodes.Filter):
            if called.name not in sandbox.filters:
                known = ", ".join(sorted(sandbox.filters))
                raise TemplateSyntaxError(f"no filter {called.name!r}; there are {known}", called.lineno)
        for test in tree.find_all(nodes.Test):
            if test.name not in sandbox.tests:
                raise TemplateSyntaxError(f"no test {test.name!r}", test.lineno)

    def _label_outputs(self, tree: nodes.Template) -> None:
        """Send all that becomes text through `_show`, with what it is called: a value alone would not say."""
        texts: list[nodes.Output | nodes.Concat] = [*tree.find_all(nodes.Output), *tree.find_all(nodes.Concat)]
        for node in texts:
            node.nodes = [
                part
                if isinstance(part, nodes.TemplateData)
                else self._shown(part, self._provenance.is_record_text(part))
                for part in node.nodes
            ]
        for called in list(tree.find_all(nodes.Filter)):
            if called.name in TEXT_FILTERS and called.node is not None:  # they would make "None" of a null
                called.node = self._shown(called.node)

    def _shown(self, node: nodes.Expr, is_record_text: bool = False) -> nodes.Expr:
        name = _dotted(node)
        if name is None:
            label = f"the expression in line {node.lineno}"
        elif name in self.columns:
            label = f'column "{name}"'
        else:
            label = f'"{name}"'
        arguments: list[nodes.Expr] = [nodes.Const(label), nodes.Const(name or "x"), nodes.Const(is_record_text)]
        return nodes.Filter(node, _SHOW, arguments, [], None, None, lineno=node.lineno)

    def _reason(self, error: Exception, record: Mapping[str, Any]) -> str:
        """Return what went wrong, without the error's own text: it may quote the record."""
        where = f"{self.setting}, line {self._line(error.__traceback__)}"
        if isinstance(error, ForbiddenError):
            return f"{where}: {error}"
        nulls = [f'"{name}"' for name in sorted(self.columns) if name in record and record[name] is None]
        null = f"; null in this record: {', '.join(nulls)}" if nulls else ""
        if isinstance(error, UndefinedError):
            return f"{where}: the template uses a column or field that is missing in this record{null}"
        if isinstance(error, SecurityError):
            return f"{where}: the template uses a method or attribute that prompts may not use"
        return f"{where}: {type(error).__name__}, as a value does not fit what the template does with it{null}"

    def _line(self, traceback: TracebackType | None) -> int:
        line = 0
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == _FILE:
                line = self._template.get_corresponding_lineno(traceback.tb_lineno)
            traceback = traceback.tb_next
        return line


def check_column(column: str, names: Collection[str], setting: str) -> None:
    """Raise ConfigError where a column that a setting names is not among `names`."""
    if column in names:
        return
    close = get_close_matches(column, names, n=1)
    hint = f' Did you mean "{shorten(close[0], 40)}"?' if close else ""
    known = ", ".join(f'"{shorten(name, 40)}"' for name in list(names)[:MAX_COLUMNS_SHOWN])
    more = f" and {len(names) - MAX_COLUMNS_SHOWN} more" if len(names) > MAX_COLUMNS_SHOWN else ""
    raise ConfigError(f'{setting}: the input has no column "{shorten(column, 40)}".{hint} It has {known}{more}')


class _State:
    """How far one prompt is: what it may still render, also inside a macro or a `set` block, and what it has."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []
        self._left = MAX_PROMPT_CHARS
        self._num_chars = 0
        self._record_text: str | None = None

    def show(self, text: str, is_record_text: bool) -> None:
        """Take a text that is about to be rendered; of the record's, the next piece of the prompt is this text."""
        self._left -= len(text)
        if self._left < 0:
            raise _too_long()
        if is_record_text:
            self._record_text = text

    def taken(self, piece: str) -> str:
        """Return the next piece of the prompt, having noted where it stands if it is the record's."""
        end = self._num_chars + len(piece)
        if piece is self._record_text and piece:
            self.spans.append((self._num_chars, end))
        self._record_text = None
        self._num_chars = end
        return piece


@pass_context
def _show(context: Context, value: Any, label: str, name: str, is_record_text: bool) -> str:
    """Return a rendered value as text; refuse what has no plain form."""
    text = value if type(value) is str else _text(value, label, name)
    context.parent[_STATE].show(text, is_record_text)
    return text


def _text(value: Any, label: str, name: str) -> str:
    if isinstance(value, _PLAIN):
        return str(value)
    if isinstance(value, Undefined):
        raise RecordError(f"{label} is missing in this record; the template renders it")
    hint = _HINTS.get(type(value))
    if hint is None:
        raise RecordError(f"{label} is a {type(value).__name__}, which has no plain text")
    raise RecordError(f"{label} {hint.format(name)}")


def _dotted(node: nodes.Node) -> str | None:
    """Return `a` or `a.b.c` for an expression that is no more than that."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr) and (base := _dotted(node.node)):
        return f"{base}.{node.attr}"
    return None


def _too_long() -> RecordError:
    return RecordError(
        f"the prompt has more than {MAX_PROMPT_CHARS} characters; cut the column in the template, as in "
        "{{ text[:100000] }}"
    )


def _check_unicode(text: str, record: Mapping[str, Any]) -> None:
    """Raise RecordError for lone surrogates, which no UTF-8 can hold."""
    values = {f'column "{shorten(name, 40)}"': value for name, value in record.items() if isinstance(value, str)}
    try:
        text.encode()
    except UnicodeEncodeError:
        for label, value in {**values, "the prompt": text}.items():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                byte = len(value[: error.start].encode())
                raise RecordError(f"{label} holds invalid UTF-8 at byte {byte} (a lone surrogate)") from None
