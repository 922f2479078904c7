"""Ids and texts of the official vocabularies against transformers and tiktoken."""

from __future__ import annotations

import base64
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qwell.runtime.text_stream import TextStream
from qwell.runtime.tiktoken_vocab import load_tiktoken
from qwell.runtime.tokenizer import Tokenizer

# Written from the published description of Qwen's tokenizer, not taken from the code under test.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN1_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN1_SPECIAL += [f"<|extra_{index}|>" for index in range(205)]

NASTY_TEXTS = [
    "",
    " ",
    "The quick brown fox jumps over the lazy dog.",
    "I'm we'LL you'Ve it'S 's 'tis can't'd",
    "通义千问是阿里云研发的大语言模型。你好\uff0c世界\uff01",
    "こんにちは、世界。カタカナ 한국어 조합: 각 각",
    "👍🏽👨‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿🇩🇪❤️‍🔥",
    "e\u0301 \u00e9 n\u0303o A\u030a \u212b ﬁ \u1e9b\u0323",  # composed, decomposed, compatibility
    "\u0301 starts with a mark; <|im_end|>\u0338 and a mark behind a control token",
    "שלום עולם مرحبا بالعالم \u202eright to left\u202c",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "\x00\x01\x7f\x80\xad\u200b\ufeff\ufffd\U0010ffff",
    "a\tb\r\nc\rd\n\n\n e \n \n  f\u2028g\u00a0h\u3000i",
    " " * 1000 + "x" + " " * 257 + "\n" * 65 + "\t" * 33 + " ",
    "1234567890 3.14159 1e-10 ٣٤٥ ⅫⅣ ½²",
    'def f(x: int) -> str:\n    return f"{x!r:>{width}}"  # c\n\n\nif __name__ == "__main__":\n',
    '{"a": [1, 2.5e3, null], "b": "\\u00e9\\n"}\n</html>&nbsp;<!-- -->',
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 20,
    "!?!?!?...———***===___~~~```\n```\n",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|im_start|><|im_start|>",
    "<|im_end|> <|im_end |> <|im_end <|extra_1|><|extra_10|><|extra_204|><|extra_205|>",
    "<tool_call>\n{}\n</tool_call><think>\n\n</think> <|vision_start|><|fim_prefix|>",
]

FRAGMENTS = [
    *NASTY_TEXTS[1:],
    *QWEN1_SPECIAL[:5],
    *("<think>", "\u0301", "\u0338", "'", " ", "\n", "\r", "\u3000", "你", "👍", "\u200d", "0"),
]
characters = st.characters(exclude_categories=["Cs"])
fuzz_texts = st.lists(
    st.sampled_from(FRAGMENTS) | st.text(characters, max_size=20), max_size=8
).map("".join)

corpus = pytest.mark.parametrize("text", NASTY_TEXTS)
fuzz = settings(max_examples=300)


@dataclass(frozen=True)
class Pair:
    """Our tokenizer of a checkpoint and the one that transformers makes of it."""

    ours: Tokenizer
    theirs: PreTrainedTokenizerBase


@pytest.fixture(scope="module", params=["qwen2_5_dir", "qwen3_dir"])
def pair(request: pytest.FixtureRequest) -> Pair:
    folder = request.getfixturevalue(request.param)
    return Pair(Tokenizer.from_dir(folder), AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def qwen1(qwen1_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(qwen1_dir)


@pytest.fixture(scope="module")
def ranks(qwen1_dir: Path) -> dict[bytes, int]:
    lines = (qwen1_dir / "qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


@pytest.fixture(scope="module")
def oracle(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    special = {token: len(ranks) + index for index, token in enumerate(QWEN1_SPECIAL)}
    return tiktoken.Encoding(
        "qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def check_encode(pair: Pair, oracle: tiktoken.Encoding, text: str) -> None:
    expected = pair.theirs(text, add_special_tokens=False)["input_ids"]
    assert pair.ours.encode(text) == expected
    # Without added tokens the vocabularies of all three generations are one.
    plain = oracle.encode(unicodedata.normalize("NFC", text), disallowed_special=())
    assert pair.ours.encode(text, parse_special=False) == plain


def check_qwen1_encode(qwen1: Tokenizer, oracle: tiktoken.Encoding, text: str) -> None:
    # As that generation did: NFC first, then tiktoken.
    normal = unicodedata.normalize("NFC", text)
    assert qwen1.encode(text) == oracle.encode(normal, allowed_special="all")
    plain = oracle.encode(normal, disallowed_special=())
    assert qwen1.encode(text, parse_special=False) == plain


@corpus
def test_ids_of_the_corpus(pair: Pair, oracle: tiktoken.Encoding, text: str) -> None:
    check_encode(pair, oracle, text)


@fuzz
@given(text=fuzz_texts)
def test_ids_of_any_text(pair: Pair, oracle: tiktoken.Encoding, text: str) -> None:
    check_encode(pair, oracle, text)


@corpus
def test_qwen1_ids_of_the_corpus(qwen1: Tokenizer, oracle: tiktoken.Encoding, text: str) -> None:
    check_qwen1_encode(qwen1, oracle, text)


@fuzz
@given(text=fuzz_texts)
def test_qwen1_ids_of_any_text(qwen1: Tokenizer, oracle: tiktoken.Encoding, text: str) -> None:
    check_qwen1_encode(qwen1, oracle, text)


def test_merges_derived_for_qwen1_are_the_official_ones(qwen1_dir: Path, qwen3_dir: Path) -> None:
    derived = json.loads(load_tiktoken(qwen1_dir / "qwen.tiktoken").to_str())["model"]
    official = json.loads((qwen3_dir / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert derived["merges"] == official["merges"]
    assert derived["vocab"] == official["vocab"]


def test_every_token_has_its_bytes(
    qwen1: Tokenizer, pair: Pair, ranks: dict[bytes, int], oracle: tiktoken.Encoding
) -> None:
    for tokenizer in (qwen1, pair.ours):
        assert all(tokenizer.token_bytes(rank) == token for token, rank in ranks.items())
    for token_id in range(len(ranks), oracle.n_vocab):
        assert qwen1.token_bytes(token_id) == oracle.decode_single_token_bytes(token_id)
    for token, token_id in pair.theirs.get_added_vocab().items():
        assert pair.ours.token_bytes(token_id) == token.encode()
        assert pair.ours.token_id(token) == token_id
    assert pair.ours.vocab_size == len(pair.theirs)
    assert qwen1.vocab_size == oracle.n_vocab == 151851


# 0..255 are the single bytes, 94..255 among them all bytes of longer characters; from 151643 on
# are added tokens, and 151669 and following do not exist.
ids_lists = st.lists(
    st.integers(0, 255)
    | st.integers(94, 255)
    | st.integers(0, 151642)
    | st.integers(151640, 151680)
)


@fuzz
@given(data=st.data(), ids=ids_lists)
def test_texts_of_any_ids(pair: Pair, data: st.DataObject, ids: list[int]) -> None:
    for skip_special in (True, False):
        expected = pair.theirs.decode(ids, skip_special_tokens=skip_special)
        assert pair.ours.decode(ids, skip_special=skip_special) == expected
    check_stream(pair.ours, data, ids)


@fuzz
@given(data=st.data(), ids=ids_lists)
def test_qwen1_texts_of_any_ids(
    qwen1: Tokenizer, oracle: tiktoken.Encoding, data: st.DataObject, ids: list[int]
) -> None:
    assert qwen1.decode(ids, skip_special=False) == oracle.decode(ids, errors="replace")
    check_stream(qwen1, data, ids)


def check_stream(tokenizer: Tokenizer, data: st.DataObject, ids: list[int]) -> None:
    stream = TextStream(tokenizer)
    cut = data.draw(st.integers(0, len(ids)))
    pieces = [stream.push([token_id]) for token_id in ids[:cut]]
    pieces += [stream.push(ids[cut:]), stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)
