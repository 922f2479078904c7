"""The byte-level alphabet of GPT-2: every byte as one printable character.

Vocabularies in tokenizer.json spell their tokens in it. A byte that is a printable character of
Latin-1 stands for itself; the other 68, in order, are U+0100 and following.
"""

from __future__ import annotations

_PRINTABLE = frozenset({*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)})
_SHIFTED = [byte for byte in range(256) if byte not in _PRINTABLE]
_OUTSIDE_LATIN_1 = 0xFFFD

_TO_CHARS = {byte: 0x100 + index for index, byte in enumerate(_SHIFTED)}
_TO_BYTES = {char: byte for byte, char in _TO_CHARS.items()} | dict.fromkeys(
    _SHIFTED, _OUTSIDE_LATIN_1
)


def to_chars(data: bytes) -> str:
    """`data` spelt in the alphabet, one character a byte."""
    return data.decode("latin-1").translate(_TO_CHARS)


def to_bytes(token: str) -> bytes:
    """The bytes that a vocabulary entry stands for.

    An entry with any character outside the alphabet (an added token, say) stands for its UTF-8.
    """
    try:
        return token.translate(_TO_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8")
