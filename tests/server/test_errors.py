"""Everything that is refused: the status, the field at fault, and OpenAI's error shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
import requests
from serving import PATIENCE_S, ServerProcess, error_of

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "say:hello"}]
CALLED = {"name": "f", "arguments": "{}"}

WRONG = [
    (COMPLETIONS, {"model": None}, "model"),
    (COMPLETIONS, {"model": 3}, "model"),
    (COMPLETIONS, {"prompt": None}, "prompt"),
    (COMPLETIONS, {"prompt": ""}, "prompt"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt"),
    (COMPLETIONS, {"prompt": ["a", ""]}, "prompt"),
    (COMPLETIONS, {"prompt": ["a", 1]}, "prompt"),
    (COMPLETIONS, {"prompt": [1, [1]]}, "prompt"),
    (COMPLETIONS, {"prompt": [1, True]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": [1, -1]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": [[1], [2**70]]}, "prompt[1][0]"),
    (COMPLETIONS, {"prompt": [5000]}, "prompt"),
    (COMPLETIONS, {"prompt": {"a": 1}}, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 129}, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 65, "n": 2}, "n"),
    (COMPLETIONS, {"n": 0}, "n"),
    (COMPLETIONS, {"n": 129}, "n"),
    (COMPLETIONS, {"n": True}, "n"),
    (COMPLETIONS, {"n": 1.5}, "n"),
    (COMPLETIONS, {"max_tokens": -1}, "max_tokens"),
    (COMPLETIONS, {"max_tokens": "5"}, "max_tokens"),
    (COMPLETIONS, {"max_tokens": 2**63}, "max_tokens"),
    (COMPLETIONS, {"temperature": 2.1}, "temperature"),
    (COMPLETIONS, {"temperature": -0.1}, "temperature"),
    (COMPLETIONS, {"temperature": True}, "temperature"),
    (COMPLETIONS, {"temperature": "hot"}, "temperature"),
    (COMPLETIONS, {"top_p": -0.1}, "top_p"),
    (COMPLETIONS, {"top_p": 1.01}, "top_p"),
    (COMPLETIONS, {"top_k": -1}, "top_k"),
    (COMPLETIONS, {"min_p": 1.5}, "min_p"),
    (COMPLETIONS, {"repetition_penalty": 0}, "repetition_penalty"),
    (COMPLETIONS, {"typical_p": 0}, "typical_p"),
    (COMPLETIONS, {"presence_penalty": 2.5}, "presence_penalty"),
    (COMPLETIONS, {"frequency_penalty": "high"}, "frequency_penalty"),
    (COMPLETIONS, {"logit_bias": {"5": 101}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"five": 1}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"-5": 1}}, "logit_bias"),
    (COMPLETIONS, {"logit_bias": {"5": "much"}}, "logit_bias[...]"),
    (COMPLETIONS, {"logit_bias": [5]}, "logit_bias"),
    (COMPLETIONS, {"allowed_token_ids": []}, "allowed_token_ids"),
    (COMPLETIONS, {"allowed_token_ids": [5], "bad_token_ids": [5]}, "allowed_token_ids"),
    (COMPLETIONS, {"allowed_token_ids": [-5]}, "allowed_token_ids[0]"),
    (COMPLETIONS, {"bad_token_ids": [2**31]}, "bad_token_ids[0]"),
    (COMPLETIONS, {"stop_token_ids": 5}, "stop_token_ids"),
    (COMPLETIONS, {"min_tokens": 17}, "min_tokens"),
    (COMPLETIONS, {"min_tokens": -1}, "min_tokens"),
    (COMPLETIONS, {"include_stop_str_in_output": 1}, "include_stop_str_in_output"),
    (COMPLETIONS, {"logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"logprobs": True}, "logprobs"),
    (CHAT, {"logprobs": 3}, "logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"top_logprobs": 3}, "top_logprobs"),
    (CHAT, {"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
    (COMPLETIONS, {"seed": 2**63}, "seed"),
    (COMPLETIONS, {"seed": -(2**63) - 1}, "seed"),
    (COMPLETIONS, {"priority": 0.5}, "priority"),
    (COMPLETIONS, {"priority": 2**31}, "priority"),
    (COMPLETIONS, {"cache_salt": ""}, "cache_salt"),
    (COMPLETIONS, {"cache_salt": "x" * 257}, "cache_salt"),
    (COMPLETIONS, {"stop": ["x"] * 17}, "stop"),
    (COMPLETIONS, {"stop": ""}, "stop"),
    (COMPLETIONS, {"stop": ["a", ""]}, "stop"),
    (COMPLETIONS, {"stop": [1]}, "stop[0]"),
    (COMPLETIONS, {"stream": "yes"}, "stream"),
    (COMPLETIONS, {"stream_options": {"include_usage": True}}, "stream_options"),
    (
        COMPLETIONS,
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
    ),
    (
        COMPLETIONS,
        {"stream": True, "stream_options": {"include_obfuscation": "yes"}},
        "stream_options.include_obfuscation",
    ),
    (COMPLETIONS, {"stream": True, "stream_options": {"x": True}}, "stream_options.x"),
    (COMPLETIONS, {"messages": HELLO}, "messages"),
    (COMPLETIONS, {"max_token": 5}, "max_token"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": [{"content": "hello"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
    (CHAT, {"messages": [*HELLO, {"role": "function", "content": "x"}]}, "messages[1].name"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (
        CHAT,
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}
            ]
        },
        "messages[0].content[0].type",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "mood": "ok"}]}, "messages[0].mood"),
    (
        CHAT,
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "messages[0].tool_calls[0].function",
    ),
    (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
    (CHAT, {"prompt": "x"}, "prompt"),
    (CHAT, {"echo": True}, "echo"),
]

NOT_JSON = [
    b"",
    b"{",
    b"nonsense",
    b"[]",
    b"null",
    b'"text"',
    b"{} {}",
    b'{"model": "m", "prompt": "x", "temperature": NaN}',
    b'{"model": "m", "prompt": "x", "temperature": Infinity}',
    b'{"model": "m", "prompt": "x", "temperature": 1e999}',
    b'{"model": "m", "prompt": "\\ud800"}',
    b'{"model": "m", "prompt": "\\udc00 x"}',
    b'{"model": "m", "prompt": "\xff"}',
    b'{"model": "m", "prompt": "\xed\xa0\x80"}',
    b'{"model": "m", "prompt": ' + b"[" * 100_000,
    b'{"model": "m", "messages": [], "tools": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"model": "m", "messages": [], "tools": ' + b'{"a":' * 100_000,
    b'{"model": "m", "prompt": "x", "seed": ' + b"9" * 10_000 + b"}",
    b'{"model": "m", "prompt": "x", "user": ' + b"[" * 64 + b"]" * 64 + b"}",
    b'{"model": "m", "prompt": "x", "prompt": "x"}',
    b'{"model": "m", "messages": [{"role": "user", "content": "x", "content": "x"}]}',
    b'{"model": "m", "prompt": "x", "user": "\\ud800"}',
    b'{"model": "m", "prompt": "x", "\\ud800": 1}',
    "{}".encode("utf-16"),
    b"\xef\xbb\xbf{}",
]


def base_body(path: str) -> dict[str, Any]:
    if path == CHAT:
        return {"model": "m", "messages": HELLO}
    return {"model": "m", "prompt": "say:hello"}


@pytest.mark.parametrize(("path", "fields", "param"), WRONG)
def test_wrong_values_are_refused_by_name(
    server: ServerProcess, path: str, fields: dict[str, Any], param: str
) -> None:
    answer = server.post(path, {**base_body(path), **fields})

    assert error_of(answer, 400)["param"] == param


@pytest.mark.parametrize(
    ("fields", "param", "known"),
    [
        ({"tool_choice": "any"}, "tool_choice", "'auto', 'none', 'required', an object"),
        ({"tool_choice": {"type": "web"}}, "tool_choice.type", "'function', 'allowed_tools'"),
        ({"function_call": "any"}, "function_call", "'auto', 'none', an object"),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type",
            "'json_object', 'json_schema', 'text'",
        ),
        (
            {"reasoning_effort": "huge"},
            "reasoning_effort",
            "'high', 'low', 'max', 'medium', 'minimal', 'none', 'xhigh'",
        ),
        (
            {"prompt_cache_retention": "1h"},
            "prompt_cache_retention",
            "'24h', 'in-memory', 'in_memory'",
        ),
        ({"tools": [{"type": "web", "function": {"name": "f"}}]}, "tools[0].type", "'function'"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "type": "web", "function": CALLED}],
                    }
                ]
            },
            "messages[0].tool_calls[0].type",
            "'function'",
        ),
    ],
)
def test_a_value_that_is_unknown_is_told_the_known_ones(
    server: ServerProcess, fields: dict[str, Any], param: str, known: str
) -> None:
    error = error_of(server.post(CHAT, {**base_body(CHAT), **fields}), 400)

    assert error["param"] == param
    assert error["message"].startswith(f"{param}: '")
    assert error["message"].endswith(f"' is none of the known values ({known})")


def test_an_unknown_value_cannot_pass_for_the_path_of_another(server: ServerProcess) -> None:
    body = {**base_body(CHAT), "reasoning_effort": "x - at `$.model`" + "y" * 5000}

    error = error_of(server.post(CHAT, body), 400)

    assert error["param"] == "reasoning_effort"
    assert len(error["message"]) < 300


@pytest.mark.parametrize("field", ["model", "prompt"])
def test_missing_fields_are_named(server: ServerProcess, field: str) -> None:
    body = base_body(COMPLETIONS)
    del body[field]

    assert error_of(server.post(COMPLETIONS, body), 400)["param"] == field


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:40]))
def test_bodies_that_are_no_json_object(server: ServerProcess, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}

    answer = requests.post(f"{server.url}{path}", data=body, headers=headers, timeout=PATIENCE_S)

    error_of(answer, 400)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "max_tokens"), [("say:hello", 5000), ("x" * 5000, 1), ("x" * 4096, 1)]
)
def test_more_than_the_context_holds(
    client: openai.OpenAI, prompt: str, max_tokens: int, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(
            model="m", prompt=["say:fits", prompt], max_tokens=max_tokens, stream=stream
        )

    assert caught.value.code == "context_length_exceeded"
    assert "4096" in caught.value.message


def test_a_conversation_that_fills_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x" * 5000}]
        )

    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


def test_one_refused_choice_leaves_no_other_running(server: ServerProcess) -> None:
    body = {"model": "m", "prompt": [list(b"hold"), [5000]], "stream": True}

    error_of(server.post(COMPLETIONS, body), 400)

    server.wait_until(lambda: server.report().startswith("running=0 "), "abort of the other")


def test_served_model_names(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(served_model_names=("qwen", "team/qwen:7b"))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert [card.id for card in client.models.list()] == ["qwen", "team/qwen:7b"]
        assert client.models.retrieve("team/qwen:7b").id == "team/qwen:7b"
        assert client.completions.create(model="qwen", prompt="say:hi").model == "qwen"
        with pytest.raises(openai.NotFoundError) as caught:
            client.completions.create(model="gpt-3.5-turbo", prompt="say:hi")
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(
                model="other", messages=[{"role": "user", "content": "x"}]
            )
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-3.5-turbo")


def test_without_names_the_list_is_for_compatibility_only(client: openai.OpenAI) -> None:
    assert [card.id for card in client.models.list()] == ["gpt-3.5-turbo"]
    assert client.models.retrieve("gpt-3.5-turbo").owned_by == "owner"
    assert client.completions.create(model="any/thing", prompt="say:hi").model == "any/thing"
