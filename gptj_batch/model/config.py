"""GPTJConfig: the shape of a GPT-J and everything else that its config.json says."""

import copy
import json
from pathlib import Path
from typing import Any, Final, Self

from gptj_batch.errors import CheckpointError, ConfigError
from gptj_batch.model_folder import resolve_folder

CONFIG_NAME: Final = "config.json"
ACTIVATIONS: Final = ("relu", "silu", "gelu", "tanh", "gelu_new")
DTYPES: Final = ("auto", "float16", "bfloat16", "float32", "float64")
PROBLEM_TYPES: Final = ("regression", "single_label_classification", "multi_label_classification")

# transformers' other names for four fields
ALIASES: Final = ("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")
# Written even where they are null, since null is not their default or says something.
ALWAYS_WRITTEN: Final = ("n_inner", "bos_token_id", "eos_token_id", "pad_token_id")


class _Alias:
    """Another name of a config field, to read and to write."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, config: "GPTJConfig", owner: type | None = None) -> int:
        value: int = getattr(config, self._name)
        return value

    def __set__(self, config: "GPTJConfig", value: int) -> None:
        setattr(config, self._name, value)


class GPTJConfig:
    """Describe a GPT-J model; the defaults are those of EleutherAI/gpt-j-6B.

    Every argument has the name, default and meaning of `transformers.GPTJConfig`. Besides the arguments named here,
    `num_labels`, `id2label`, `label2id`, `problem_type`, `return_dict`, `output_attentions` and
    `output_hidden_states` are understood; any other keyword is kept as it is and written back by `save_pretrained`.

    Raises ConfigError, naming the field, for a value or a combination that no model can have.
    """

    model_type: Final = "gptj"
    hidden_size = _Alias("n_embd")
    num_attention_heads = _Alias("n_head")
    num_hidden_layers = _Alias("n_layer")
    max_position_embeddings = _Alias("n_positions")

    def __init__(
        self,
        vocab_size: int = 50400,
        n_positions: int = 2048,
        n_embd: int = 4096,
        n_layer: int = 28,
        n_head: int = 16,
        rotary_dim: int = 64,
        n_inner: int | None = None,
        activation_function: str = "gelu_new",
        resid_pdrop: float = 0.0,
        embd_pdrop: float = 0.0,
        attn_pdrop: float = 0.0,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        bos_token_id: int | None = 50256,
        eos_token_id: int | list[int] | None = 50256,
        pad_token_id: int | None = None,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.rotary_dim = rotary_dim
        self.n_inner = n_inner
        self.activation_function = activation_function
        self.resid_pdrop = resid_pdrop
        self.embd_pdrop = embd_pdrop
        self.attn_pdrop = attn_pdrop
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self._take_aliases(kwargs)
        self._take_labels(kwargs)
        self.return_dict: bool = kwargs.pop("return_dict", True)
        self.output_attentions: bool = kwargs.pop("output_attentions", False)
        self.output_hidden_states: bool = kwargs.pop("output_hidden_states", False)
        self.dtype: str | None = _dtype_name(kwargs.pop("torch_dtype", None), kwargs.pop("dtype", None))
        self.architectures: list[str] | None = kwargs.pop("architectures", None)
        kwargs.pop("model_type", None)
        self.extra: dict[str, Any] = kwargs
        _check(self)

    def _take_aliases(self, kwargs: dict[str, Any]) -> None:
        for alias in ALIASES:
            if alias in kwargs:
                setattr(self, alias, kwargs.pop(alias))

    def _take_labels(self, kwargs: dict[str, Any]) -> None:
        """Bring `num_labels`, `id2label` and `label2id` together; two labels without names are the default."""
        num_labels: int | None = kwargs.pop("num_labels", None)
        names: dict[Any, str] | None = kwargs.pop("id2label", None)
        ids: dict[str, Any] | None = kwargs.pop("label2id", None)
        self.problem_type: str | None = kwargs.pop("problem_type", None)
        count_holds = num_labels is None or (_is_int(num_labels) and num_labels >= 1)
        _require(count_holds, "num_labels", "null or a whole number of at least 1", num_labels)
        _require(names is None or _maps(names), "id2label", "null or a map from 0, 1, 2, ... to names", names)
        _require(ids is None or _maps(ids, flipped=True), "label2id", "null or a map from names to 0, 1, 2, ...", ids)
        if names is not None and num_labels is not None and len(names) != num_labels:
            names = ids = None  # as in transformers: asking for another number of labels drops the old names
        if names is None and ids is not None:
            names = {int(index): name for name, index in ids.items()}
        if names is None:
            names = {index: f"LABEL_{index}" for index in range(2 if num_labels is None else num_labels)}
            ids = None
        self.id2label: dict[int, str] = {int(index): name for index, name in names.items()}
        flipped = {name: index for index, name in self.id2label.items()}
        self.label2id: dict[str, int] = flipped if ids is None else {name: int(index) for name, index in ids.items()}

    @property
    def num_labels(self) -> int:
        """Return the number of outputs of a classification head."""
        return len(self.id2label)

    @property
    def head_dim(self) -> int:
        """Return the number of channels of one attention head."""
        return self.n_embd // self.n_head

    @property
    def inner_dim(self) -> int:
        """Return the width of the feed-forward layer: n_inner, or four times n_embd."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Return the end-of-text ids, of which a checkpoint may have none, one or several."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """Build a config from the content of a config.json; `overrides` win."""
        # One of the two label maps given anew replaces both: the other would speak of the old labels.
        replaced = {"id2label", "label2id"} if overrides.keys() & {"id2label", "label2id"} else set()
        kept = {name: value for name, value in values.items() if name not in replaced}
        return cls(**{**kept, **overrides})

    @classmethod
    def from_pretrained(cls, path: str | Path, revision: str | None = None, **overrides: Any) -> Self:
        """Read config.json from a folder or a hub name; `overrides` win.

        Raises CheckpointError where there is none, or where it is not a GPT-J's.
        """
        file = resolve_folder(path, revision) / CONFIG_NAME
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{file.parent} has no {CONFIG_NAME}; a model folder needs one") from None
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read as JSON: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{file} must hold a JSON object")
        if values.get("model_type", cls.model_type) != cls.model_type:
            raise CheckpointError(
                f"{file}: model_type is {values['model_type']!r}; only {cls.model_type!r} is run here"
            )
        try:
            return cls.from_dict(values, **overrides)
        except ConfigError as error:
            raise CheckpointError(f"{file}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json shall hold: every field, and the keys that were kept without being known."""
        fields = {
            name: value
            for name, value in vars(self).items()
            if name != "extra" and (value is not None or name in ALWAYS_WRITTEN)
        }
        merged = {**self.extra, **fields, "model_type": self.model_type}
        merged["id2label"] = {str(index): name for index, name in self.id2label.items()}
        return copy.deepcopy(dict(sorted(merged.items())))

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json into the folder `path`, making it where needed."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        return f"GPTJConfig({json.dumps(self.to_dict(), indent=2)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GPTJConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable, as transformers' is


def _dtype_name(*values: Any) -> str | None:
    """Return the last given dtype as config.json spells it ("float16"), from a name or a torch.dtype."""
    given = [str(value).removeprefix("torch.") for value in values if value is not None]
    return given[-1] if given else None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _maps(value: object, flipped: bool = False) -> bool:
    """Tell whether `value` maps whole numbers, or their digits, to text; `flipped`: text to whole numbers."""
    if not isinstance(value, dict):
        return False
    pairs = [(number, name) if not flipped else (name, number) for number, name in value.items()]
    return all(isinstance(name, str) and (_is_int(number) or str(number).isdecimal()) for number, name in pairs)


def _check(config: GPTJConfig) -> None:
    """Refuse what no model can have, naming the field."""
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "rotary_dim"):
        value = getattr(config, name)
        _require(_is_int(value) and value >= 1, name, "a whole number of at least 1", value)
    inner, heads, width = config.n_inner, config.n_head, config.n_embd
    _require(inner is None or (_is_int(inner) and inner >= 1), "n_inner", "null or a whole number of at least 1", inner)
    _require(width % heads == 0, "n_head", f"a divisor of n_embd ({width})", heads)
    _require(config.rotary_dim % 2 == 0, "rotary_dim", "even, since channels are rotated in pairs", config.rotary_dim)
    _require(
        config.rotary_dim <= config.head_dim,
        "rotary_dim",
        f"at most the head size n_embd / n_head ({config.head_dim})",
        config.rotary_dim,
    )
    _require(
        config.activation_function in ACTIVATIONS,
        "activation_function",
        f"one of {', '.join(ACTIVATIONS)}",
        config.activation_function,
    )
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        value = getattr(config, name)
        _require(_is_number(value) and 0.0 <= value < 1.0, name, "a share from 0.0 to below 1.0", value)
    epsilon, spread = config.layer_norm_epsilon, config.initializer_range
    _require(_is_number(epsilon) and epsilon > 0.0, "layer_norm_epsilon", "a number above 0.0", epsilon)
    _require(_is_number(spread) and spread >= 0.0, "initializer_range", "a number of 0.0 or more", spread)
    for name in ("use_cache", "tie_word_embeddings", "return_dict", "output_attentions", "output_hidden_states"):
        value = getattr(config, name)
        _require(isinstance(value, bool), name, "true or false", value)
    dtype = config.dtype
    _require(dtype is None or dtype in DTYPES, "dtype", f"null or one of {', '.join(DTYPES)}", dtype)
    _check_ids(config)
    _check_labels(config)


def _check_labels(config: GPTJConfig) -> None:
    problem, names = config.problem_type, config.id2label
    known = problem is None or problem in PROBLEM_TYPES
    _require(known, "problem_type", f"null or one of {', '.join(PROBLEM_TYPES)}", problem)
    complete = len(names) >= 1 and sorted(names) == list(range(len(names)))
    _require(complete, "id2label", "a name for each of 0, 1, 2, ... without gaps", names)
    several = problem != "single_label_classification" or config.num_labels > 1
    _require(several, "num_labels", "at least 2 for problem_type single_label_classification", config.num_labels)


def _check_ids(config: GPTJConfig) -> None:
    # bos and eos keep GPT-J's 50256 by default even in a tiny vocabulary, as in transformers: then they never occur.
    eos = config.eos_token_id
    _require(
        eos is None or _is_int(eos) or (isinstance(eos, list) and all(_is_int(item) for item in eos)),
        "eos_token_id",
        "null, a token id or a list of token ids",
        eos,
    )
    for name in ("bos_token_id", "pad_token_id"):
        value = getattr(config, name)
        _require(value is None or _is_int(value), name, "null or a token id", value)


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{name} must be {rule}, got {value!r}")
