import pyarrow as pa
import pytest
from pydantic import ValidationError

from gptj_batch.tasks.base import Settings, column


class Example(Settings):
    """Settings of nothing."""

    count: int = 1
    """How many."""
    share: float = 0.5


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Example.model_validate({"cuont": 2})


def test_settings_take_no_other_type_for_what_it_might_mean() -> None:
    for wrong in ({"count": "2"}, {"count": 2.0}, {"count": True}, {"share": "0.5"}):
        with pytest.raises(ValidationError):
            Example.model_validate(wrong)
    assert Example.model_validate({"share": 1}).share == 1.0, "a whole number is a number"


def test_settings_cannot_be_written_to() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Example().count = 2  # type: ignore[misc]


def test_what_a_setting_means_stands_under_it() -> None:
    assert Example.model_fields["count"].description == "How many."


def test_a_column_has_its_fields_type_even_where_all_values_are_null() -> None:
    assert column([None, None], pa.field("x", pa.list_(pa.float32()))).type == pa.list_(pa.float32())
    assert column([], pa.field("x", pa.string())).type == pa.string()
