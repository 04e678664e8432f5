"""What vLLM cannot do that this package asks for: of a task's settings before anything starts, and of a request."""

from collections.abc import Mapping
from typing import Any, Final

from gptj_batch.requests import AnyRequest, EmbedRequest, Request

# vLLM raises lower temperatures to this one, and refuses higher ones than that.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0
NATIVE: Final = "set backend.kind to native, which does it"
# Settings of a task by name, the values of each that ask for nothing, and what any other asks for.
SETTINGS: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "num_beams": ((None, 1), "beam search as transformers defines it (early_stopping, min_new_tokens)"),
    "choices": ((None,), "text held to choices by our grammar"),
    "regex": ((None,), "text held to a regex by our grammar"),
    "json_schema": ((None,), "text held to a JSON schema by our grammar"),
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
    layer = task.get("layer")
    if layer is not None and layer != -1:
        return f"task.layer: vLLM embeds by the last layer only, null or -1, got {layer}; {NATIVE}"
    temperature = task.get("temperature")
    if isinstance(temperature, int | float) and not _is_possible(temperature):
        return f"task.temperature: {_temperature_rule(temperature)}; {NATIVE}"
    return None


def refuse(request: AnyRequest, n_layer: int) -> str | None:
    """Return why vLLM cannot do a request, or None."""
    if isinstance(request, EmbedRequest) and request.layer not in (None, -1, n_layer):
        return f"vLLM embeds by the last layer only, got layer {request.layer}; {NATIVE}"
    if not isinstance(request, Request):
        return None
    if request.constraint is not None:
        return f"vLLM has no decoding held to a constraint of ours; {NATIVE}"
    if request.sampling.num_beams > 1:
        return f"vLLM has no beam search as transformers defines it; {NATIVE}"
    if not _is_possible(request.sampling.temperature):
        return f"{_temperature_rule(request.sampling.temperature)}; {NATIVE}"
    return None


def _is_possible(temperature: float) -> bool:
    return temperature == 0.0 or MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE


def _temperature_rule(temperature: float) -> str:
    return f"vLLM's temperature is 0 or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}, got {temperature}"
