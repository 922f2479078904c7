"""Byte-level tokenizers small enough to see through: the id of a byte is its value."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from qwell.runtime.byte_level import to_chars

# Tokens of several bytes, among them words, and the starts and ends of characters.
MERGES = (
    (b"a", b"b"),
    (b"ab", b"c"),
    (b" ", b"a"),
    (b"\xe4", b"\xbd"),  # two thirds of 你
    (b"\xa0", b"a"),  # its last third and more
    (b"\xf0", b"\x9f"),  # half of an emoji
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED = ("<tool_call>",)
ENDOFTEXT, IM_START, IM_END, TOOL_CALL = range(256 + len(MERGES), 260 + len(MERGES))


def tiny_backend(merges: Sequence[tuple[bytes, bytes]] = MERGES) -> Tokenizer:
    """256 bytes, `merges`, the ChatML control tokens and one added token that is not special."""
    tokens = [*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)]
    vocab = {to_chars(token): token_id for token_id, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab, [(to_chars(a), to_chars(b)) for a, b in merges]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    return backend


def backend_with_beginning() -> Tokenizer:
    """The same, but every text begins with <|endoftext|>, as DeepSeek's do with a token."""
    backend = tiny_backend()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], ENDOFTEXT)]
    )
    return backend


def write_tiktoken(path: Path, tokens: Sequence[bytes]) -> None:
    """A *.tiktoken file of these tokens in order of rank."""
    lines = (b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    path.write_bytes(b"\n".join(lines) + b"\n")
