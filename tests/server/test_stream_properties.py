"""A stream tells what the plain answer does: text, log-probabilities, usage, for any tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from chat_templates import QWEN3, server_of
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import ServerProcess
from tiny_tokenizers import ADDED, MERGES, TOOL_CALL

FIRST_MERGE = 256
MERGED_IDS = range(FIRST_MERGE, FIRST_MERGE + len(MERGES))
# Letters of one to four bytes, marks that combine, what joins emoji, the beginnings of tokens.
ALPHABET = 'abc a\n"\\é\u0301e\u0e01\u0e47한你好好\u200d👍🏽🇫🇷\ufffd'
texts = st.text(st.sampled_from(ALPHABET), max_size=24)
tops = st.sampled_from([None, 0, 2])


def token_bytes(token_id: int) -> bytes:
    if token_id < FIRST_MERGE:
        return bytes([token_id])
    return ADDED[0].encode() if token_id == TOOL_CALL else b"".join(MERGES[token_id - FIRST_MERGE])


@st.composite
def token_lists(draw: st.DrawFn) -> list[int]:
    """Bytes of a text, tokens over the borders of characters, bytes that are no text at all."""
    piece = st.one_of(
        texts.map(lambda text: list(text.encode())),
        st.lists(st.sampled_from([*MERGED_IDS, TOOL_CALL]), max_size=3),
        st.lists(st.integers(0, 255), max_size=3),
    )
    return [token_id for ids in draw(st.lists(piece, max_size=3)) for token_id in ids]


def cut_script(draw: st.DrawFn, ids: list[int]) -> str:
    """What makes the scripted engine generate `ids`, several a step or one."""
    cuts = sorted(draw(st.sets(st.integers(0, len(ids)))) | {0, len(ids)})
    steps = [",".join(map(str, ids[start:end])) for start, end in pairwise(cuts)]
    return f"ids:{' '.join(steps)}"


@st.composite
def requests_with_tokens(draw: st.DrawFn) -> tuple[dict[str, Any], list[int]]:
    """Fields of a request, and the tokens that are generated for it."""
    ids = draw(token_lists())
    text = b"".join(map(token_bytes, ids)).decode(errors="replace")
    begin = draw(st.integers(0, len(text)))
    end = draw(st.integers(begin, len(text)))
    stops = {draw(texts), text[begin:end]} - {""}
    fields: dict[str, Any] = {
        "max_tokens": draw(st.sampled_from([len(ids) // 2, 400])),
        "stop": sorted(stops) if draw(st.booleans()) else None,
        "include_stop_str_in_output": draw(st.booleans()),
    }
    return {"script": cut_script(draw, ids), **fields}, ids


def streamed(server: ServerProcess, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = server.post(path, {**body, **options})
    assert answer.status_code == 200, answer.text
    *events, done, rest = answer.content.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def plain(server: ServerProcess, path: str, body: dict[str, Any]) -> tuple[Any, Any]:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0], answer.json()["usage"]


def check_text(text: str, fields: dict[str, Any], ids: list[int], usage: dict[str, Any]) -> None:
    """Against the tokens themselves, where no stop string decides."""
    if fields["stop"] is None:
        kept = ids[: fields["max_tokens"]]
        assert text == b"".join(map(token_bytes, kept)).decode(errors="replace")
        assert usage["completion_tokens"] == min(len(ids) + 1, fields["max_tokens"])


@settings(max_examples=60)
@given(request=requests_with_tokens(), top=tops, echo=st.booleans())
def test_completions(
    server: ServerProcess, request: tuple[dict[str, Any], list[int]], top: int | None, echo: bool
) -> None:
    fields, ids = dict(request[0]), request[1]
    prompt = fields.pop("script")
    body = {"model": "m", "prompt": prompt, "echo": echo, "logprobs": top, **fields}

    choice, usage = plain(server, "/v1/completions", body)
    *chunks, last = streamed(server, "/v1/completions", body)

    pieces = [chunk["choices"][0] for chunk in chunks]
    text = choice["text"]
    assert "".join(piece["text"] for piece in pieces) == text
    assert pieces[-1]["finish_reason"] == choice["finish_reason"]
    assert (last["choices"], last["usage"]) == ([], usage)
    check_text(text.removeprefix(prompt) if echo else text, fields, ids, usage)
    scored = [piece["logprobs"] for piece in pieces if piece["logprobs"] is not None]
    if top is None:
        assert choice["logprobs"] is None
        assert scored == []
        return
    whole = choice["logprobs"]
    for name, values in whole.items():
        assert [value for piece in scored for value in piece[name]] == values
    prompt_tokens = usage["prompt_tokens"] if echo else 0
    assert len(whole["tokens"]) == prompt_tokens + usage["completion_tokens"]
    for token, offset in zip(whole["tokens"], whole["text_offset"], strict=True):
        if not token.startswith(("bytes:", "<|")) and offset + len(token) <= len(text):
            assert text[offset : offset + len(token)] == token


@settings(max_examples=60)
@given(request=requests_with_tokens(), top=tops)
def test_chat(
    server: ServerProcess, request: tuple[dict[str, Any], list[int]], top: int | None
) -> None:
    fields, ids = dict(request[0]), request[1]
    messages = [{"role": "user", "content": fields.pop("script")}]
    scores = {} if top is None else {"logprobs": True, "top_logprobs": top}
    body = {"model": "m", "messages": messages, **scores, **fields}

    choice, usage = plain(server, "/v1/chat/completions", body)
    *chunks, last = streamed(server, "/v1/chat/completions", body)

    pieces = [chunk["choices"][0] for chunk in chunks]
    text = choice["message"]["content"]
    assert "".join(piece["delta"].get("content", "") for piece in pieces) == text
    assert pieces[-1]["finish_reason"] == choice["finish_reason"]
    assert (last["choices"], last["usage"]) == ([], usage)
    check_text(text, fields, ids, usage)
    scored = [piece["logprobs"] for piece in pieces if piece["logprobs"] is not None]
    if top is None:
        assert choice["logprobs"] is None
        assert scored == []
        return
    tokens = choice["logprobs"]["content"]
    assert [token for piece in scored for token in piece["content"]] == tokens
    assert len(tokens) == usage["completion_tokens"]
    assert {len(token["top_logprobs"]) for token in tokens} <= {top}
    if choice["finish_reason"] == "stop" and fields["stop"] is None:
        *tokens, end = tokens
        assert end["token"] == "<|im_end|>"
    data = bytes(byte for token in tokens for byte in token["bytes"])
    assert data.decode(errors="replace").startswith(text)


CALL = '{"name": "clock", "arguments": {"zone": "Köln 👍"}}'
WHOLE_CALL = f"<tool_call>\n{CALL}\n</tool_call>\n"
TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>", CALL)
answers = st.tuples(
    st.sampled_from(["<think>\nHm 你.\n</think>\n\n", "<think>", ""]),
    texts,
    st.lists(st.sampled_from([WHOLE_CALL, *TAGS]) | st.just(WHOLE_CALL), max_size=3).map("".join),
    st.just("") | texts,
).map("".join)


@st.composite
def scripts_with_tags(draw: st.DrawFn) -> str:
    """Answers with thoughts and calls, whole, broken or none."""
    return cut_script(draw, list(draw(answers).encode()))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_of(QWEN3, tmp_path_factory.mktemp("qwen3")) as running:
        yield running


@given(
    script=scripts_with_tags(),
    stop=st.none() | st.sampled_from(["</", "\n"]),
    max_tokens=st.just(600) | st.integers(1, 200),
    parallel=st.booleans(),
)
def test_chat_with_thoughts_and_calls(
    thinker: ServerProcess, script: str, stop: str | None, max_tokens: int, parallel: bool
) -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": script}],
        "tools": [{"type": "function", "function": {"name": "clock"}}],
        "max_tokens": max_tokens,
        "stop": stop,
        "parallel_tool_calls": parallel,
    }

    choice, usage = plain(thinker, "/v1/chat/completions", body)
    *chunks, last = streamed(thinker, "/v1/chat/completions", body)

    pieces = [chunk["choices"][0] for chunk in chunks]
    message = choice["message"]
    for field in ("content", "reasoning_content"):
        text = "".join(piece["delta"].get(field) or "" for piece in pieces)
        assert text == (message.get(field) or "")
    calls: dict[int, list[str]] = {}
    for piece in pieces:
        for call in piece["delta"].get("tool_calls", []):
            name, arguments = calls.setdefault(call["index"], ["", ""])
            function = call["function"]
            name += function.get("name") or ""
            calls[call["index"]] = [name, arguments + function.get("arguments", "")]
    told = [call["function"] for call in message.get("tool_calls") or []]
    assert list(calls) == [*range(len(told))]
    assert [*calls.values()] == [[call["name"], call["arguments"]] for call in told]
    assert pieces[-1]["finish_reason"] == choice["finish_reason"]
    assert last["usage"] == usage
