"""What vLLM cannot do that this package asks for: of a task's settings before anything starts, and of a request."""

from collections.abc import Mapping
from typing import Any, Final

from gptj_batch.requests import AnyRequest, Described, EmbedRequest, Request

# vLLM raises lower temperatures to this one, and refuses higher ones than that.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0
NATIVE: Final = "set backend.kind to native, which does it"
# Settings of a task by name, the values of each that ask for nothing, and what any other asks for.
SETTINGS: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "num_beams": ((None, 1), "beam search as transformers defines it (early_stopping, min_new_tokens)"),
}
# What holds a text to a grammar, and what cannot be had beside it.
HOLDING: Final = ("choices", "regex", "json_schema")
BESIDE_A_GRAMMAR: Final = {
    "logprobs": "vLLM's log-probabilities are then those among the allowed tokens, and not the model's own",
    "min_new_tokens": "vLLM has no way to go on where the text is complete",
}


def why_not(task: Mapping[str, Any], dtype: str) -> str | None:
    """Return why vLLM cannot do a task with these settings, naming the setting, or None."""
    if dtype == "int8":
        return f"model.dtype: int8 is the native engine's own; {NATIVE}, or model.dtype to another"
    if (task.get("kind"), task.get("method")) == ("extract", "prompt"):
        return f"task.method: vLLM has no decoding held to a record's context; {NATIVE}"
    for name, (neutral, what) in SETTINGS.items():
        if task.get(name) not in neutral:
            return f"task.{name}: vLLM has no {what}; {NATIVE}"
    if held := holding(task):
        for name, why in BESIDE_A_GRAMMAR.items():
            if task.get(name):
                return f"task.{name}: cannot be had with task.{held[0]}: {why}; {NATIVE}"
    layer = task.get("layer")
    if layer is not None and layer != -1:
        return f"task.layer: vLLM embeds by the last layer only, null or -1, got {layer}; {NATIVE}"
    temperature = task.get("temperature")
    if isinstance(temperature, int | float) and not _is_possible(temperature):
        return f"task.temperature: {_temperature_rule(temperature)}; {NATIVE}"
    return None


def holding(task: Mapping[str, Any]) -> list[str]:
    """Return which of a task's settings hold its texts to a grammar."""
    return [name for name in HOLDING if task.get(name) is not None]


def refuse(request: AnyRequest, n_layer: int) -> str | None:
    """Return why vLLM cannot do a request, or None."""
    if isinstance(request, EmbedRequest) and request.layer not in (None, -1, n_layer):
        return f"vLLM embeds by the last layer only, got layer {request.layer}; {NATIVE}"
    if not isinstance(request, Request):
        return None
    if request.constraint is not None and not isinstance(request.constraint, Described):
        return f"vLLM has no decoding held to a constraint of ours; {NATIVE}"
    if request.constraint is not None:
        for name, why in BESIDE_A_GRAMMAR.items():
            if getattr(request.sampling, name):
                return f"{name} cannot be had with a grammar: {why}; {NATIVE}"
    if request.sampling.num_beams > 1:
        return f"vLLM has no beam search as transformers defines it; {NATIVE}"
    if not _is_possible(request.sampling.temperature):
        return f"{_temperature_rule(request.sampling.temperature)}; {NATIVE}"
    return None


def _is_possible(temperature: float) -> bool:
    return temperature == 0.0 or MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE


def _temperature_rule(temperature: float) -> str:
    return f"vLLM's temperature is 0 or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}, got {temperature}"
