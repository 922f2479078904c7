"""What a stream of tokens shows, and when."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import IM_END, TOOL_CALL, tiny_backend

from qwell.runtime.text_stream import TextStream
from qwell.runtime.tokenizer import Tokenizer

TOKENIZER = Tokenizer(tiny_backend())
# Bytes that begin, continue and break characters, tokens over character borders, control tokens,
# an id of a padding row.
LIVELY_IDS = [97, 98, 0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x91, 0x8D, 0xC3, 0xFF, IM_END, 10**6]
token_ids = st.lists(
    st.sampled_from(LIVELY_IDS) | st.integers(256, TOOL_CALL) | st.integers(0, 255)
)

# A small alphabet, so that stop strings occur, overlap and contain each other.
letters = st.sampled_from("aab你")
texts = st.text(letters, max_size=30)
stops = st.lists(st.text(letters, min_size=1, max_size=5), max_size=4)


@st.composite
def chunked(draw: st.DrawFn, ids: list[int]) -> list[list[int]]:
    """`ids` cut anywhere, so also inside characters."""
    cuts = draw(st.lists(st.integers(0, len(ids)), max_size=10))
    return [ids[start:end] for start, end in pairwise([0, *sorted(cuts), len(ids)])]


def cut_at_stop(text: str, stop: list[str]) -> tuple[str, bool]:
    """Read character by character; the longest stop string that has come to its end ends it."""
    for end in range(len(text) + 1):
        found = [len(string) for string in stop if text[:end].endswith(string)]
        if found:
            return text[: end - max(found)], True
    return text, False


def held_back(text: str, stop: list[str]) -> int:
    """Length of the longest end of `text` with which a stop string starts."""
    return max(
        size
        for size in range(len(text) + 1)
        if size == 0 or any(string.startswith(text[-size:]) for string in stop)
    )


def run(stream: TextStream, chunks: list[list[int]]) -> str:
    return "".join(stream.push(chunk) for chunk in chunks) + stream.finish()


@given(st.data(), token_ids)
def test_all_pieces_are_the_decoded_text(data: st.DataObject, ids: list[int]) -> None:
    stream = TextStream(TOKENIZER)
    text = TOKENIZER.decode(ids)
    shown = ""
    for chunk in data.draw(chunked(ids)):
        shown += stream.push(chunk)
        # A prefix of the final text: no half character was shown, and nothing taken back.
        assert text.startswith(shown)
    assert shown + stream.finish() == text
    assert not stream.stopped


@settings(max_examples=500)
@given(st.data(), texts, stops)
def test_text_ends_before_the_first_stop_string(
    data: st.DataObject, text: str, stop: list[str]
) -> None:
    stream = TextStream(TOKENIZER, stop)
    shown = run(stream, data.draw(chunked(TOKENIZER.encode(text))))
    assert (shown, stream.stopped) == cut_at_stop(text, stop)


@settings(max_examples=500)
@given(texts, stops)
def test_no_more_is_held_back_than_could_be_a_stop_string(text: str, stop: list[str]) -> None:
    text, _ = cut_at_stop(text, stop)
    stream = TextStream(TOKENIZER, stop)
    shown = ""
    for end in range(1, len(text) + 1):
        shown += stream.push(TOKENIZER.encode(text[end - 1]))
        assert shown == text[: end - held_back(text[:end], stop)]


def test_a_stop_string_across_tokens() -> None:
    stream = TextStream(TOKENIZER, ["abcd"])
    pieces = [stream.push(TOKENIZER.encode(piece)) for piece in ("x ", "a", "b", "cd", "e")]
    assert pieces == ["x ", "", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_held_back_text_comes_when_no_stop_string_did() -> None:
    stream = TextStream(TOKENIZER, ["abcd"])
    assert stream.push(TOKENIZER.encode("xabc")) == "x"
    assert stream.push(TOKENIZER.encode("a")) == "abc"
    assert stream.finish() == "a"


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("xabcd", ["bc", "abcd"], "xa"),  # complete first, though it begins later
        ("xabcd", ["c", "abc"], "x"),  # complete at once: the longest
        ("xabcd", ["b", "b"], "xa"),
        ("xaaab", ["aab"], "xa"),  # begins again inside its own start
        ("xababac", ["abac"], "xab"),
    ],
)
def test_which_stop_string_counts(text: str, stop: list[str], shown: str) -> None:
    assert run(TextStream(TOKENIZER, stop), [TOKENIZER.encode(text)]) == shown


def test_control_tokens_show_nothing_and_break_nothing() -> None:
    stream = TextStream(TOKENIZER, ["ab"])
    assert stream.push([0xE4, 0xBD]) == ""
    assert stream.push([IM_END]) == ""
    assert stream.push([0xA0]) == "你"
    assert run(stream, [[97], [IM_END], [98]]) == ""
    assert stream.stopped


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    stream = TextStream(TOKENIZER)
    assert stream.push([97, 0xF0, 0x9F, 0x91]) == "a"
    assert stream.finish() == "\ufffd"


def test_a_long_stop_string_costs_no_more_than_the_text() -> None:
    stop = "a" * 50_000 + "b"
    text = "a" * 100_000
    stream = TextStream(TOKENIZER, [stop])
    assert run(stream, [[97]] * len(text)) == text


@pytest.mark.parametrize("include", [False, True])
def test_the_stop_string_is_part_of_the_text_on_request(include: bool) -> None:
    stream = TextStream(TOKENIZER, ["llo w", "zzz"], include_stop=include)
    pieces = [stream.push([byte]) for byte in b"hello world"]
    assert "".join([*pieces, stream.finish()]) == ("hello w" if include else "he")
    assert stream.stopped
