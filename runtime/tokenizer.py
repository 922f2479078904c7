"""Text <-> token ids of a checkpoint: byte-level BPE, as every Qwen generation uses it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from qwell.runtime.byte_level import to_bytes
from qwell.runtime.errors import CheckpointError, RequestError
from qwell.runtime.tiktoken_vocab import load_tiktoken

TOKENIZER_FILE = "tokenizer.json"

# Text of an answer to whoever reads it, even where a checkpoint calls them control tokens.
_MARKS_IN_ANSWERS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})


class Tokenizer:
    """Encodes text and decodes ids; safe to use from several threads.

    Attributes:
        vocab_size: highest id that decodes, plus one. A model may have more (padding) rows.
        special_ids: control tokens, the ids that `skip_special` drops. Marks of thinking and of
            tool calls are none.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap a byte-level BPE tokenizer of the `tokenizers` library.

        Raises:
            CheckpointError: the tokenizer is of another kind.
        """
        _check_byte_level(backend)
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self._added_ids = {token.content: token_id for token_id, token in added.items()}
        self.special_ids = frozenset(
            token_id
            for token_id, token in added.items()
            if token.special and token.content not in _MARKS_IN_ANSWERS
        )
        self.vocab_size = max(vocab.values()) + 1
        self._bytes = {token_id: to_bytes(token) for token, token_id in vocab.items()}

    @classmethod
    def from_dir(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a checkpoint: tokenizer.json, else the one *.tiktoken file.

        Raises:
            CheckpointError: neither is there, the file is damaged, or it is not byte-level BPE.
        """
        path = folder / TOKENIZER_FILE
        if path.is_file():
            backend = _load_tokenizer_json(path)
        else:
            path = _find_tiktoken(folder)
            backend = load_tiktoken(path)
        try:
            return cls(backend)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def has_the_ids_of(self, other: Tokenizer) -> bool:
        """Whether every id of the other means the same here."""
        return other._bytes.items() <= self._bytes.items()

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Token ids of `text`; nothing is added in front or behind.

        With `parse_special` the text of an added token (`<|im_end|>`, `<tool_call>`) becomes its
        id; without, it is text like any other.

        Raises:
            RequestError: `text` has half a surrogate pair, which no UTF-8 can hold.
        """
        _check_unicode(text)
        return self._ids(text) if parse_special else self._encode_plain(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that a model is to go on from; raises as `encode`.

        With the tokens that the checkpoint's tokenizer puts around every text: Qwen's has none,
        those of models made from Qwen's may begin with one (DeepSeek-R1-Distill-Qwen). Chat
        templates write it themselves.
        """
        _check_unicode(text)
        return self._ids(text, around=True)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, unknown ids nothing."""
        skipped = self.special_ids if skip_special else frozenset()
        data = b"".join(self.token_bytes(token_id) for token_id in ids if token_id not in skipped)
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes an id stands for; a token may end inside a character.

        Empty for an id the tokenizer lacks, such as a padding row of the model's vocabulary.
        """
        return self._bytes.get(token_id, b"")

    def token_id(self, token: str) -> int | None:
        """The id of an added token such as `<|im_end|>`; None if there is no such token."""
        return self._added_ids.get(token)

    def _ids(self, text: str, around: bool = False) -> list[int]:
        # One text, but the batch call: it lets other threads run, `encode` does not.
        return self._backend.encode_batch_fast([text], add_special_tokens=around)[0].ids

    def _encode_plain(self, text: str) -> list[int]:
        # The library's own switch, `encode_special_tokens`, is state shared by all threads and
        # still matches added tokens that are not special; running its stages one by one is not.
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = [text]
        if backend.pre_tokenizer is not None:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        model = backend.model
        return [token.id for piece in pieces for token in model.tokenize(piece)]


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"text must be valid Unicode; at index {error.start} it has the lone surrogate "
            f"{text[error.start]!r}"
        ) from error


def _check_byte_level(backend: tokenizers.Tokenizer) -> None:
    model, decoder = backend.model, backend.decoder
    if not isinstance(model, tokenizers.models.BPE) or not isinstance(
        decoder, tokenizers.decoders.ByteLevel
    ):
        raise CheckpointError(
            f"a {type(model).__name__} model with a {type(decoder).__name__} decoder; supported "
            "is byte-level BPE (a BPE model with a ByteLevel decoder)"
        )


def _load_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception, whatever the fault
        raise CheckpointError(f"{path} is not a readable tokenizer file: {error}") from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint brings a tokenizer, sound or not."""
    return (folder / TOKENIZER_FILE).is_file() or bool(_tiktoken_files(folder))


def _tiktoken_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tiktoken"))


def _find_tiktoken(folder: Path) -> Path:
    found = _tiktoken_files(folder)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(
            f"{folder} must hold {TOKENIZER_FILE} or one *.tiktoken file; it has {names}"
        )
    return found[0]
