"""A SinglePass over a model's own weights, as the tests of it and of its readers make it."""

from gptj_batch.engine.prepare import prepare_body, prepare_rows
from gptj_batch.engine.single_pass import SinglePass
from gptj_batch.model import HeadModel


def single_pass(
    model: HeadModel, max_step_tokens: int, max_prefix_bytes: int | None = None, *, use_kernels: bool = False
) -> SinglePass:
    body, attention = prepare_body(model, take_weights=False), prepare_rows(model, use_kernels=use_kernels)
    return SinglePass(model, body, attention, max_step_tokens, max_prefix_bytes)
