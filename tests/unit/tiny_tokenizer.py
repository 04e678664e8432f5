"""A tiny byte-level tokenizer, trained in a moment: the 256 bytes, the end of text, and a few merges."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from gptj_batch.prompts.tokenizer import END_OF_TEXT

CORPUS = ["the weather of the world is in the news", "sports and business are in the world news", "Topic: World"]
TINY_VOCAB_SIZE = 300


def train_tokenizer() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 10, trainer)
    return backend
