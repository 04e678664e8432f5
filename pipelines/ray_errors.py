"""What Ray made of an error of ours on its way here, undone."""

import re

from gptj_batch import errors
from gptj_batch.errors import BackendError, GPTJBatchError

_KINDS: dict[str, type[GPTJBatchError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, GPTJBatchError)
}
_OURS_IN_TEXT = re.compile(
    r"gptj_batch\.errors\.(\w+): (.+?)(?:\n\s*\n|\Z|\n(?=\S+Error|\S+Exception|The above))", re.DOTALL
)


def as_ours(error: BaseException) -> GPTJBatchError | None:
    """Return the error of ours that Ray carried here, or None.

    Ray keeps the error object of a task as a cause, but of an actor that failed to start only its printed form.
    """
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        if isinstance(inner, GPTJBatchError):
            kind = next(k for k in type(inner).__mro__ if k.__module__ == errors.__name__)
            # Ray derives a class from ours whose text is a whole traceback; `cause` is what was raised.
            cause = getattr(inner, "cause", inner)
            message = str(cause.args[0]) if isinstance(cause, GPTJBatchError) else str(inner).strip().splitlines()[-1]
            return _KINDS[kind.__name__](message)
        seen.add(id(inner))
        inner = getattr(inner, "cause", None) or inner.__cause__ or inner.__context__
    found = _OURS_IN_TEXT.findall(str(error))
    if not found:
        return None
    name, message = found[-1]
    return _KINDS.get(name, BackendError)(message.strip())
