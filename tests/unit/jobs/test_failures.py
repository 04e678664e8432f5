import pickle
import signal

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError, UserCodeException, WorkerCrashedError

from gptj_batch import errors
from gptj_batch.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    GPTJBatchError,
    InputError,
    OutputError,
    RecordError,
)
from jobs.failures import Stopped, exit_code, stop_on_signals
from pipelines.ray_errors import as_ours

KINDS = [ConfigError, InputError, RecordError, CheckpointError, OutputError, BackendError]
TRACEBACK = """\
ray::MapWorker(MapBatches(InferStage)).submit() (pid=1, ip=10.0.0.1)
  File "/work/gptj_batch/stages/infer.py", line 40, in __init__
    self._backend = _start(replica)
gptj_batch.errors.{kind}: {message}"""


def task_error(cause: Exception, text: str = "") -> RayTaskError:
    """What Ray makes of an exception in a worker."""
    return RayTaskError("submit()", text or f"Traceback ...\nValueError: {cause}", cause, "proc", 1, "10.0.0.1")


def actor_death(kind: str, message: str) -> ActorDiedError:
    """What is left of an exception of an actor that did not start: its text."""
    return ActorDiedError(task_error(ValueError("x"), TRACEBACK.format(kind=kind, message=message)))


def died(error: BaseException) -> tuple[type[BaseException] | None, str]:
    ours = as_ours(error)
    return (None, "") if ours is None else (type(ours), str(ours))


# Exit codes


@pytest.mark.parametrize(
    ("kind", "code"),
    [(ConfigError, 2), (InputError, 2), (CheckpointError, 2), (OutputError, 1), (BackendError, 1), (RecordError, 1)],
)
def test_what_the_user_must_change_is_2_and_all_else_1(kind: type[GPTJBatchError], code: int) -> None:
    assert exit_code(kind("x")) == code


def test_a_kind_derived_from_another_has_its_code() -> None:
    class Narrower(ConfigError):
        pass

    assert exit_code(Narrower("x")) == 2


# Errors that came through Ray


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_ours_stays_itself(kind: type[GPTJBatchError]) -> None:
    assert died(kind("the message")) == (kind, "the message")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_a_task_is_found_in_what_ray_raises(kind: type[GPTJBatchError]) -> None:
    raised = task_error(kind("the message"))
    assert died(raised) == (kind, "the message")
    both = raised.as_instanceof_cause()
    assert isinstance(both, kind) and str(both) != "the message", "its text is a whole traceback"
    assert died(both) == (kind, "the message")


def test_an_error_that_the_users_code_is_blamed_for_is_found() -> None:
    blamed = UserCodeException("UDF failed")
    blamed.__cause__ = ConfigError("the message")
    assert died(blamed) == (ConfigError, "the message")
    assert died(task_error(blamed)) == (ConfigError, "the message")


def test_an_error_behind_others_is_found() -> None:
    try:
        try:
            raise InputError("the message")
        except InputError as error:
            raise RuntimeError("while cleaning up") from error
    except RuntimeError as outer:
        assert died(outer) == (InputError, "the message")
    try:
        try:
            raise InputError("the message")
        except InputError:
            raise KeyError("unrelated")  # noqa: B904 - only the context leads back
    except KeyError as outer:
        assert died(outer) == (InputError, "the message")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_an_actor_that_did_not_start_is_read_from_its_text(kind: type[GPTJBatchError]) -> None:
    assert died(actor_death(kind.__name__, "weights are missing; give a model folder")) == (
        kind,
        "weights are missing; give a model folder",
    )


def test_a_message_of_several_lines_stays_whole() -> None:
    message = "out was made by another configuration:\n  seed: 0 -> 1\nSet it back"
    assert died(actor_death("ConfigError", message)) == (ConfigError, message)
    assert died(ConfigError(message)) == (ConfigError, message)


def test_of_several_errors_in_a_text_the_last_counts() -> None:
    text = TRACEBACK.format(kind="CheckpointError", message="first") + (
        "\n\nDuring handling of the above exception, another exception occurred:\n\n"
        "gptj_batch.errors.BackendError: second\n"
    )
    assert died(RayActorError("id", text)) == (BackendError, "second")


def test_what_follows_the_message_is_no_part_of_it() -> None:
    text = TRACEBACK.format(kind="ConfigError", message="the message") + "\n\nThe actor died with it."
    assert died(RayActorError("id", text)) == (ConfigError, "the message")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        WorkerCrashedError(),
        ActorDiedError(),
        task_error(ValueError("x")),
        RuntimeError("gptj_batch.errors without one"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_ours_is_not_made_ours(error: BaseException) -> None:
    assert as_ours(error) is None


def test_errors_that_cause_each_other_are_looked_at_once() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert as_ours(one) is None


def test_the_way_through_ray_keeps_type_and_message() -> None:
    for kind in KINDS:
        error = pickle.loads(pickle.dumps(kind("the message")))
        assert (type(error), str(error)) == (kind, "the message")
    assert {kind.__name__ for kind in KINDS} <= set(vars(errors))


# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_with_its_code(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=number.name) as caught, stop_on_signals():
        signal.raise_signal(number)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before


def test_being_stopped_is_no_exception_that_somebody_might_handle() -> None:
    assert not issubclass(Stopped, Exception)


def test_handlers_are_put_back_after_a_good_end() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
