"""Text <-> ids on small tokenizers, and what is refused."""

from __future__ import annotations

import base64
import json
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_tokenizers import (
    ENDOFTEXT,
    IM_END,
    IM_START,
    MERGES,
    TOOL_CALL,
    tiny_backend,
    write_tiktoken,
)

from qwell.runtime.errors import CheckpointError, RequestError
from qwell.runtime.tiktoken_vocab import SPECIAL_TOKENS, SPLIT_PATTERN
from qwell.runtime.tokenizer import Tokenizer

BACKEND = tiny_backend()
TINY = Tokenizer(BACKEND)
BYTES = [bytes([byte]) for byte in range(256)]
RANKS = [*BYTES, *(left + right for left, right in MERGES)]

any_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab c你👍e\u0301\n"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BACKEND.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_reads_tokenizer_json(folder: Path) -> None:
    tokenizer = Tokenizer.from_dir(folder)
    assert tokenizer.encode("abc<|im_end|>") == [257, IM_END]
    assert tokenizer.vocab_size == TOOL_CALL + 1
    assert tokenizer.special_ids == {ENDOFTEXT, IM_START, IM_END}


def test_control_tokens_are_parsed_only_when_asked() -> None:
    typed = "a<|im_end|><tool_call>b"
    assert TINY.encode(typed) == [97, IM_END, TOOL_CALL, 98]
    plain = TINY.encode(typed, parse_special=False)
    assert max(plain) < ENDOFTEXT
    assert TINY.decode(plain) == typed


def test_marks_in_answers_are_text_even_as_control_tokens() -> None:
    backend = tiny_backend()
    backend.add_special_tokens(["<think>", "</think>", "<|fim_pad|>"])
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("<think>a</think><|fim_pad|><tool_call>")
    assert len(ids) == 5
    assert tokenizer.decode(ids) == "<think>a</think><tool_call>"


@example("e\u0301")
@given(any_text)
def test_text_survives_the_way_there_and_back(text: str) -> None:
    for parse_special in (True, False):
        ids = TINY.encode(text, parse_special=parse_special)
        assert TINY.decode(ids, skip_special=False) == unicodedata.normalize("NFC", text)


def test_both_ways_of_encoding_can_run_at_once() -> None:
    text = "abc<|im_end|>" * 50
    with ThreadPoolExecutor(4) as pool:
        parsed = [pool.submit(TINY.encode, text) for _ in range(50)]
        plain = [pool.submit(TINY.encode, text, parse_special=False) for _ in range(50)]
        assert all(future.result() == [257, IM_END] * 50 for future in parsed)
        assert all(IM_END not in future.result() for future in plain)


@given(st.lists(st.integers(0, TOOL_CALL + 3)), st.booleans())
def test_decodes_like_the_library(ids: list[int], skip_special: bool) -> None:
    expected = BACKEND.decode(ids, skip_special_tokens=skip_special)
    assert TINY.decode(ids, skip_special=skip_special) == expected


@pytest.mark.parametrize("content", ["你好", "éè", "x\u00a0\u00ad", "\u0120x"])
def test_added_tokens_of_any_script_decode_like_the_library(content: str) -> None:
    backend = tiny_backend()
    backend.add_tokens([tokenizers.AddedToken(content, normalized=False)])
    tokenizer = Tokenizer(backend)
    token_id = tokenizer.token_id(content)
    assert token_id == TOOL_CALL + 1
    assert tokenizer.decode([token_id]) == backend.decode([token_id])


def test_token_bytes() -> None:
    assert [TINY.token_bytes(byte) for byte in range(256)] == BYTES
    assert TINY.token_bytes(256 + 3) == b"\xe4\xbd"
    assert TINY.token_bytes(IM_END) == b"<|im_end|>"
    for lacking in (-1, TOOL_CALL + 1, 10**9):
        assert TINY.token_bytes(lacking) == b""


def test_token_id_knows_added_tokens_only() -> None:
    assert TINY.token_id("<|im_end|>") == IM_END
    assert TINY.token_id("<tool_call>") == TOOL_CALL
    assert TINY.token_id("abc") is None
    assert TINY.token_id("<think>") is None


def test_half_a_surrogate_pair_is_refused() -> None:
    for parse_special in (True, False):
        with pytest.raises(RequestError, match=r"index 2 .*surrogate"):
            TINY.encode("ab\ud83d", parse_special=parse_special)


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path) -> None:
    backend = tiny_backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_dir(tmp_path).encode("xyz") == [120, 121, 122]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json or one \*\.tiktoken.* none"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "not json", "[]", '{"version": "1.0", "model": {"type": "Unheard"}}']
)
def test_a_damaged_tokenizer_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: a WordLevel .*byte-level BPE"):
        Tokenizer.from_dir(tmp_path)


def test_a_vocabulary_may_lack_bytes_that_its_texts_never_had(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    del content["model"]["vocab"]["B"]
    path.write_text(json.dumps(content))
    assert Tokenizer.from_dir(folder).decode(Tokenizer.from_dir(folder).encode("AC")) == "AC"


@pytest.fixture(scope="module")
def first_generation(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("v1")
    write_tiktoken(folder / "qwen.tiktoken", RANKS)
    return Tokenizer.from_dir(folder)


def test_tiktoken_control_tokens_follow_the_ranks(first_generation: Tokenizer) -> None:
    expected = [first_generation.token_id(token) for token in SPECIAL_TOKENS]
    assert expected == list(range(len(RANKS), len(RANKS) + 208))
    assert first_generation.special_ids == set(expected)
    assert first_generation.token_id("<|extra_204|>") == first_generation.vocab_size - 1


@example("e\u0301")
@given(any_text)
def test_tiktoken_file_encodes_like_tiktoken(first_generation: Tokenizer, text: str) -> None:
    oracle = tiktoken.Encoding(
        "oracle",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(RANKS)},
        special_tokens={},
    )
    expected = oracle.encode(unicodedata.normalize("NFC", text))
    assert first_generation.encode(text, parse_special=False) == expected


def test_tokenizer_json_wins_over_tiktoken(folder: Path) -> None:
    write_tiktoken(folder / "qwen.tiktoken", RANKS)
    assert Tokenizer.from_dir(folder).token_id("<tool_call>") == TOOL_CALL


def test_several_tiktoken_files_are_refused(tmp_path: Path) -> None:
    for name in ("a.tiktoken", "b.tiktoken"):
        write_tiktoken(tmp_path / name, RANKS)
    with pytest.raises(CheckpointError, match=r"a\.tiktoken, b\.tiktoken"):
        Tokenizer.from_dir(tmp_path)


def line(token: bytes, rank: int) -> bytes:
    return b"%s %d" % (base64.b64encode(token), rank)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        pytest.param(line(b"ab", 257), "line 257: expected .* the rank 256", id="gap"),
        pytest.param(line(b"ab", 255), "line 257: expected .* the rank 256", id="rank twice"),
        pytest.param(b"", "line 257: expected", id="empty line"),
        pytest.param(base64.b64encode(b"ab"), "line 257: expected", id="no rank"),
        pytest.param(line(b"ab", 256) + b" 1", "line 257: expected", id="third field"),
        pytest.param(b"YW*i 256", "line 257: damaged base64", id="not base64"),
        pytest.param(b"YWI 256", "line 257: damaged base64", id="cut off"),
        pytest.param(line(b"a", 256), "line 257: .*b'a' a second time", id="token twice"),
        pytest.param(b" 256", "line 257: .*without any byte", id="empty token"),
        pytest.param(line(b"abc", 256), "line 257: .*b'abc' cannot be merged", id="unmergeable"),
    ],
)
def test_a_damaged_tiktoken_line_is_named(tmp_path: Path, damaged: bytes, message: str) -> None:
    path = tmp_path / "qwen.tiktoken"
    write_tiktoken(path, BYTES)
    path.write_bytes(path.read_bytes() + damaged + b"\n")
    with pytest.raises(CheckpointError, match=rf"qwen\.tiktoken, {message}"):
        Tokenizer.from_dir(tmp_path)


def test_a_tiktoken_file_without_some_byte_is_refused(tmp_path: Path) -> None:
    write_tiktoken(tmp_path / "qwen.tiktoken", BYTES[:-1])
    with pytest.raises(CheckpointError, match="byte 0xff"):
        Tokenizer.from_dir(tmp_path)
