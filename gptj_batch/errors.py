"""The exception tree.

GPTJBatchError
├── ConfigError        the user must change a setting or the command           (retryable: no)
├── InputError         an input file cannot be read as it is                   (retryable: no)
├── RecordError        one row is bad; the others are fine                     (retryable: no)
├── CheckpointError    weights, tokenizer and config disagree, or are missing  (retryable: no)
├── OutputError        a result cannot be stored, or the output is not ours    (retryable: no)
├── OutputInUseError   another run that is alive has the output                (retryable: no)
├── TooManyFailedError nearly every row fails, so the run was stopped          (retryable: no)
└── BackendError       the engine failed on good input                         (retryable: yes)

A message names the setting, file, row or column, the rule, the value found and the next thing to do.
It never holds record text.
"""


class GPTJBatchError(Exception):
    """Base of every error this package raises on purpose."""

    retryable = False


class ConfigError(GPTJBatchError):
    """A setting, or a combination of settings, that cannot work."""


class InputError(GPTJBatchError):
    """An input file that is missing, truncated, or does not fit the others."""


class RecordError(GPTJBatchError):
    """One row that cannot be processed; its message becomes that row's `error`."""


class CheckpointError(GPTJBatchError):
    """A model folder whose config, tokenizer and tensors do not fit together."""


class OutputError(GPTJBatchError):
    """A result that cannot be stored; it stops the run."""


class OutputInUseError(GPTJBatchError):
    """An output that another run, which is alive, has; it is left alone."""


class TooManyFailedError(GPTJBatchError):
    """So many rows fail that the run was stopped; what is finished is kept."""


class BackendError(GPTJBatchError):
    """The engine failed on input that is good."""

    retryable = True


def shorten(value: object, limit_chars: int = 80) -> str:
    """Return `value` as text for a message, cut to `limit_chars` characters."""
    text = str(value)
    return text if len(text) <= limit_chars else text[: limit_chars - 1] + "…"
