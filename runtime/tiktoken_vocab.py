"""The vocabulary file of the first Qwen generation (*.tiktoken) as a byte-level BPE tokenizer.

A line holds one token in base64 and its rank. The rank is both the id and the merge priority;
merges themselves are not stored and are derived here.
"""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from qwell.runtime.byte_level import to_chars
from qwell.runtime.errors import CheckpointError

# One pre-token: contraction, word, single digit, punctuation run, line break or other spaces.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

# No file lists them: their ids follow the last rank, in this order.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{index}|>" for index in range(205)),
)


def load_tiktoken(path: Path) -> Tokenizer:
    """The tokenizer of a *.tiktoken file, with the control tokens of the first generation.

    Text is NFC-normalised before anything else, as that generation did, so control tokens are
    found in normalised text.

    Raises:
        CheckpointError: the file or one of its lines is damaged; the line is named.
    """
    ranks = read_ranks(path)
    vocab = {to_chars(token): rank for token, rank in ranks.items()}
    merges = [(to_chars(left), to_chars(right)) for left, right in _merges(path, ranks)]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=True) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank, in the order of the file, which is that of the ranks: 0, 1, 2, ...

    Raises:
        CheckpointError: the file cannot be read, or a line is not the next rank's token.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    ranks: dict[bytes, int] = {}
    for rank, line in enumerate(lines):
        encoded, _, stated = line.partition(b" ")
        if stated != b"%d" % rank:
            raise CheckpointError(
                f"{path}, line {rank + 1}: expected a token in base64, a space and the rank "
                f"{rank}, got {line[:80]!r}"
            )
        try:
            token = base64.b64decode(encoded, validate=True)
        except ValueError as error:
            raise CheckpointError(f"{path}, line {rank + 1}: damaged base64: {error}") from error
        if not token or token in ranks:
            problem = "a second time" if token else "without any byte"
            raise CheckpointError(f"{path}, line {rank + 1}: the token {token!r} {problem}")
        ranks[token] = rank
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise CheckpointError(f"{path} has no token for the single byte 0x{byte:02x}")
    return ranks


def _merges(path: Path, ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge behind every token of several bytes, in order of rank.

    It joins the two parts that BPE leaves of the token when only lower ranks are allowed.
    """
    merges = []
    for token, rank in ranks.items():
        if len(token) == 1:
            continue
        parts = _bpe_below(token, rank, ranks)
        if len(parts) != 2:
            raise CheckpointError(
                f"{path}, line {rank + 1}: the token {token!r} cannot be merged from two tokens "
                "of lower rank"
            )
        merges.append((parts[0], parts[1]))
    return merges


def _bpe_below(token: bytes, limit: int, ranks: dict[bytes, int]) -> list[bytes]:
    parts = [token[index : index + 1] for index in range(len(token))]
    while True:
        best = limit
        for index, (left, right) in enumerate(pairwise(parts)):
            rank = ranks.get(left + right, limit)
            if rank < best:
                best, at = rank, index
        if best == limit:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
