"""A GPT-J of 200 KB made from a seed, with a tokenizer of its own, and what it computes by the plain dense way."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from gptj_batch.model import GPTJConfig, GPTJForCausalLM

N_POSITIONS = 64
END_OF_TEXT = "<|endoftext|>"
# No word of it holds a "~": a text of n of them is therefore n tokens.
CORPUS = (
    "The team won the match in the last minute.",
    "Shares fell as the market closed.",
    "The minister met the president.",
    "A new chip doubles the speed of the machine. World Sports Business Science",
)


def save_tiny_model(folder: Path, seed: int = 0) -> "TinyModel":
    """Write a checkpoint in the Hugging Face layout, its weights so large that every token of a prompt matters."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    config = GPTJConfig(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=N_POSITIONS,
        n_embd=64,
        n_layer=2,
        n_head=2,
        rotary_dim=16,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    torch.manual_seed(seed)
    model = GPTJForCausalLM(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, 0.1)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, 1.0)
    model.save_pretrained(folder)
    return TinyModel(folder)


def _train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint's folder, and its answers computed one prompt at a time, without cache, engine or Ray."""

    folder: Path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def model(self) -> GPTJForCausalLM:
        return GPTJForCausalLM.from_pretrained(self.folder, dtype="float32")

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def logprobs(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the log-probabilities of what follows each token: (tokens, vocabulary), in double precision."""
        with torch.inference_mode():
            return self.model(torch.tensor([list(token_ids)])).logits[0].double().log_softmax(-1)

    def greedy(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        token_ids = list(prompt)
        while len(token_ids) < len(prompt) + max_new_tokens:
            token_ids.append(int(self.logprobs(token_ids)[-1].argmax()))
            if token_ids[-1] == self.model.config.eos_token_id:
                break
        return token_ids[len(prompt) :]

    def label_probabilities(self, prompt: str, label_texts: Sequence[str], mean: bool = False) -> list[float]:
        """Return the softmax over labels of the log-likelihood of their texts behind the prompt."""
        context = self.encode(prompt)
        scores = []
        for text in label_texts:
            label = self.encode(text)
            logprobs = self.logprobs([*context, *label])
            score = sum(logprobs[len(context) - 1 + place, token] for place, token in enumerate(label))
            scores.append(score / len(label) if mean else score)
        return torch.stack(scores).softmax(0).tolist()
