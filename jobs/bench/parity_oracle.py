"""What transformers computes, a row at a time, without a batch, a cache that is shared, or padding."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import torch
import transformers

from jobs.bench.parity_models import Model

IGNORED: Final = -100
# What is said of long texts is not meant for those who read them in windows.
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Oracle:
    """A checkpoint in transformers, in float32."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @cached_property
    def model(self) -> Any:
        """Return the model."""
        loaded = getattr(transformers, self._model.class_name).from_pretrained(self._model.folder, dtype=torch.float32)
        return loaded.eval()

    @cached_property
    def tokenizer(self) -> Any:
        """Return the tokenizer."""
        return transformers.AutoTokenizer.from_pretrained(self._model.folder)

    def encode(self, text: str) -> list[int]:
        """Return a text's token ids."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @torch.no_grad()
    def logprobs(self, before: Sequence[int], after: Sequence[int]) -> list[float]:
        """Return the log-probability of each token of `after`, behind all that stand before it."""
        logits = self.model(torch.tensor([[*before, *after]])).logits[0]
        of_next = logits.double().log_softmax(-1)
        return [float(of_next[len(before) - 1 + place, token]) for place, token in enumerate(after)]

    @torch.no_grad()
    def generate(self, prompt: Sequence[int], **settings: Any) -> list[int]:
        """Return what `generate` adds to a prompt, without sampling."""
        ids = torch.tensor([list(prompt)])
        end = self.model.config.eos_token_id
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=end, **settings
        )
        added: list[int] = output[0, len(prompt) :].tolist()
        return added

    @torch.no_grad()
    def loss(self, ids: Sequence[int], first_label: int) -> float:
        """Return the mean loss over the tokens from `first_label` on."""
        labels = torch.tensor([list(ids)])
        labels[:, :first_label] = IGNORED
        return float(self.model(torch.tensor([list(ids)]), labels=labels).loss)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Return a classification head's logits: (labels,)."""
        found: torch.Tensor = self.model(torch.tensor([list(ids)])).logits[0].double()
        return found

    @torch.no_grad()
    def span_logits(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of each token as the first and the last of an answer: (tokens,) each."""
        output = self.model(torch.tensor([list(ids)]))
        return output.start_logits[0].double(), output.end_logits[0].double()

    @torch.no_grad()
    def hidden(self, ids: Sequence[int], layer: int) -> torch.Tensor:
        """Return a place in `hidden_states`: (tokens, n_embd)."""
        states = self.model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
        found: torch.Tensor = states[layer][0].double()
        return found
