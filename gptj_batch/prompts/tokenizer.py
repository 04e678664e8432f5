"""The tokenizer: text to token ids and back, with character offsets, for GPT-J's byte-level BPE."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from gptj_batch.errors import CheckpointError, shorten

END_OF_TEXT = "<|endoftext|>"
MAX_VOCAB_SIZE = 2**24

_AGAIN = "Copy the file again from where the checkpoint comes from"


class Tokenizer:
    """Text to token ids and back.

    Special tokens are never added, and nothing is cut or padded, whatever the files say. A text that holds the literal
    "<|endoftext|>" gets that one token, as in transformers (`GPT2TokenizerFast`, `AutoTokenizer`). Texts must be valid
    Unicode: a lone surrogate has no bytes. Can be pickled.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        # No special tokens are added, so all that a post-processor could change is offsets; this one leaves them.
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        self._backend = backend

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Load a folder in the Hugging Face layout: `tokenizer.json`, else `vocab.json` and `merges.txt`.

        With the latter, `added_tokens.json` and the `vocab_size` of `config.json` are honoured too. Raises
        CheckpointError naming the folder and what was looked for.
        """
        folder = Path(folder)
        whole, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
        if whole.is_file():
            try:
                return cls(_checked(tokenizers.Tokenizer.from_file(str(whole)), whole))
            except CheckpointError:
                raise
            except Exception as error:  # tokenizers raises nothing more special
                raise CheckpointError(f"{whole} is not a tokenizer: {_one_line(error)}. {_AGAIN}") from error
        if not (vocab.is_file() and merges.is_file()):
            raise CheckpointError(
                f"{folder}: there is no tokenizer in this folder; looked for tokenizer.json, then for vocab.json with "
                "merges.txt. Set model.path to a folder in the Hugging Face layout"
            )
        added, config = _load_json(folder / "added_tokens.json"), _load_json(folder / "config.json")
        for name, value in {**added, "vocab_size": config.get("vocab_size", 0)}.items():
            if type(value) is not int or not 0 <= value <= MAX_VOCAB_SIZE:
                raise CheckpointError(f"{folder}: {shorten(name, 40)!r} is {shorten(value)}, not a number of tokens")
        return cls.from_vocab_files(vocab, merges, config.get("vocab_size"), added)

    @classmethod
    def from_vocab_files(
        cls,
        vocab: str | Path,
        merges: str | Path,
        vocab_size: int | None = None,
        added_tokens: Mapping[str, int] | None = None,
    ) -> "Tokenizer":
        """Build the byte-level BPE of GPT-2 and GPT-J from its vocabulary and merges.

        added_tokens: text -> id of tokens behind the vocabulary
        vocab_size: filled up to with `<|extratoken_1|>`, `<|extratoken_2|>`, ... as GPT-J's 50,400 are

        Raises CheckpointError for files that are missing, damaged or do not fit together.
        """
        try:
            model = models.BPE(*models.BPE.read_file(str(vocab), str(merges)))
        except Exception as error:  # tokenizers raises nothing more special
            raise CheckpointError(
                f"{vocab} and {merges} are not a byte-level BPE: {_one_line(error)}. {_AGAIN}"
            ) from error
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.decoder = decoders.ByteLevel()
        if not _is_gapless(backend):
            raise CheckpointError(f"{vocab}: the ids of the vocabulary have a gap. {_AGAIN}")
        backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        backend.add_tokens([AddedToken(text, normalized=False) for text in _by_id(added_tokens or {})])
        for text, token_id in (added_tokens or {}).items():
            if backend.token_to_id(text) != token_id:
                raise CheckpointError(
                    f"{vocab}: the added token {shorten(text, 40)!r} has the id {token_id} and would get "
                    f"{backend.token_to_id(text)}; ids of added tokens must follow the vocabulary without a gap"
                )
        missing = max(0, (vocab_size or 0) - backend.get_vocab_size())
        backend.add_tokens([AddedToken(f"<|extratoken_{i}|>", normalized=False) for i in range(1, missing + 1)])
        return cls(_checked(backend, Path(vocab)))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of every text."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids and, for each, the characters of `text` that it holds a part of, as (start, end).

        A space before a word belongs to the word's token. A character may be spread over several tokens, as most emoji
        are; then each of these has that character.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_with_words(self, text: str) -> tuple[list[int], list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the same as `encode_with_offsets` and, for each token, the characters of the word that it is part of.

        Words are what the tokenizer cuts a text into before it makes tokens, as " don", "'t", " 12" and "?!".
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        chars: dict[int | None, tuple[int, int]] = {}
        for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            first, last = chars.get(word, (start, end))
            chars[word] = (min(first, start), max(last, end))
        return encoding.ids, encoding.offsets, [chars[word] for word in encoding.word_ids]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids; bytes that are no UTF-8, as a cut character leaves them, become U+FFFD."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; none for an id that no token has."""
        return self._bytes_by_id.get(token_id, b"")

    @cached_property
    def _bytes_by_id(self) -> dict[int, bytes]:
        if not _is_byte_level(self._backend):
            raise CheckpointError("this tokenizer is not byte-level, so its tokens have no bytes; GPT-J's is")
        byte_of = _byte_of_char()
        added = {token_id: token.content.encode() for token_id, token in self._added().items()}
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        return {token_id: _token_bytes(text, byte_of) for text, token_id in vocabulary.items()} | added

    @property
    def added_token_ids(self) -> frozenset[int]:
        """Return the ids of the tokens added to the vocabulary, such as the end of text, which no text is made of."""
        return frozenset(self._added())

    def _added(self) -> dict[int, AddedToken]:
        added: dict[int, AddedToken] = self._backend.get_added_tokens_decoder()
        return added

    def token_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary writes it, or None; END_OF_TEXT is the one that ends a text."""
        found: int | None = self._backend.token_to_id(token)
        return found

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens, added ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the whole tokenizer as JSON: vocabulary, merges, added tokens and rules."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()


def _checked(backend: tokenizers.Tokenizer, path: Path) -> tokenizers.Tokenizer:
    """Return the backend. Raises CheckpointError where a byte has no token: texts would lose it without a word."""
    missing = [char for char in pre_tokenizers.ByteLevel.alphabet() if backend.token_to_id(char) is None]
    if missing and _is_byte_level(backend):
        raise CheckpointError(
            f"{path}: {len(missing)} of the 256 bytes have no token, so texts that hold them would be changed; the "
            "vocabulary of a byte-level BPE has all of them"
        )
    return backend


def _is_gapless(backend: tokenizers.Tokenizer) -> bool:
    ids = backend.get_vocab(with_added_tokens=False).values()
    return max(ids, default=-1) + 1 == len(ids)


def _by_id(tokens: Mapping[str, int]) -> list[str]:
    return sorted(tokens, key=lambda text: tokens[text])


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    return isinstance(backend.decoder, decoders.ByteLevel)


def _token_bytes(text: str, byte_of: Mapping[str, int]) -> bytes:
    """Return a token's bytes; one that is not in the alphabet is its own text, as it is to the decoder."""
    try:
        return bytes(byte_of[char] for char in text)
    except KeyError:
        return text.encode()


def _byte_of_char() -> dict[str, int]:
    """Return the byte for each character of the vocabulary's alphabet.

    Printable bytes of Latin-1 stand for themselves, the others, in order, for the characters from U+0100 on (GPT-2,
    `bytes_to_unicode`).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _load_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty where there is no file. Raises CheckpointError."""
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {_one_line(error)}. {_AGAIN}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is not a JSON object. {_AGAIN}")
    return loaded


def _one_line(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), 200)
