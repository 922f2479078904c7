"""Thinking apart from the answer, and the request fields that set it."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import openai
import pytest
from chat_templates import QWEN3_5, server_of
from checkpoints import make_checkpoint
from serving import ServerProcess, error_of
from tiny_tokenizers import tiny_backend

CHAT = "/v1/chat/completions"
THOUGHT = "<think>\nHm, 你.\n</think>\n\nYes 👍."


def say(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": f"say:{text}"}], **fields}


def answered(server: ServerProcess, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post(CHAT, body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def message_of(server: ServerProcess, body: dict[str, Any]) -> dict[str, Any]:
    return dict(answered(server, body)["choices"][0]["message"])


def thinking_in(message: dict[str, Any]) -> tuple[Any, Any]:
    return message.get("reasoning_content"), message["content"]


def test_thinking_that_the_model_opens(qwen3: ServerProcess) -> None:
    answer = answered(qwen3, say(THOUGHT))

    assert thinking_in(answer["choices"][0]["message"]) == ("Hm, 你.", "Yes 👍.")
    details = answer["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == len(THOUGHT.removesuffix("Yes 👍.").encode())
    assert answer["usage"]["completion_tokens"] == len(THOUGHT.encode()) + 1


def test_thinking_that_the_prompt_opens(qwen3_5: ServerProcess) -> None:
    assert thinking_in(message_of(qwen3_5, say("Hm.\n</think>\n\nYes."))) == ("Hm.", "Yes.")


def test_thinking_that_is_cut_off_is_all_there_is(
    qwen3: ServerProcess, qwen3_5: ServerProcess
) -> None:
    answer = answered(qwen3, say(THOUGHT, max_tokens=12))
    assert thinking_in(answer["choices"][0]["message"]) == ("Hm, ", "")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 12
    assert thinking_in(message_of(qwen3_5, say("Hm."))) == ("Hm.", "")


def test_an_answer_without_thinking(qwen3: ServerProcess) -> None:
    answer = answered(qwen3, say("Yes."))

    assert thinking_in(answer["choices"][0]["message"]) == (None, "Yes.")
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize(
    "fields", [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}]
)
def test_nothing_is_thinking_where_it_is_off(
    qwen3: ServerProcess, qwen3_5: ServerProcess, fields: dict[str, Any]
) -> None:
    for server in (qwen3, qwen3_5):
        text = "Yes.</think> <think>no</think>"
        assert thinking_in(message_of(server, say(text, **fields))) == (None, text)


def test_a_template_without_thinking_splits_nothing(
    tmp_path: Path,
) -> None:
    with server_of("{{ messages[0].content }}<|im_end|>", tmp_path) as server:
        assert thinking_in(message_of(server, say(THOUGHT))) == (None, THOUGHT)
        body = say(THOUGHT, reasoning_effort="none")
        assert thinking_in(message_of(server, body)) == (None, THOUGHT)
        body = say(THOUGHT, chat_template_kwargs={"enable_thinking": False})
        error = error_of(server.post(CHAT, body), 400)
        assert error["param"] == "chat_template_kwargs.enable_thinking"


def test_streamed_thinking_adds_up_to_the_same(qwen3: ServerProcess) -> None:
    whole = answered(qwen3, say(THOUGHT))
    with openai.OpenAI(base_url=f"{qwen3.url}/v1", api_key="none", max_retries=0) as client:
        chunks = [
            *client.chat.completions.create(
                **say(THOUGHT), stream=True, stream_options={"include_usage": True}
            )
        ]

    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    kinds = [[*delta.model_dump(exclude_unset=True)] for delta in deltas]
    assert sorted(kinds[0]) == ["content", "role"]
    assert kinds[-1] == []
    assert all(len(kind) == 1 for kind in kinds[1:-1])
    assert kinds[1:-1] == sorted(kinds[1:-1], reverse=True)  # reasoning_content before content
    reasoning = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    assert len([*filter(None, reasoning)]) > 1
    assert "".join(reasoning) == "Hm, 你."
    assert "".join(delta.content or "" for delta in deltas) == "Yes 👍."
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.model_dump(exclude_none=True) == whole["usage"]


def test_a_model_that_computes_thinks_to_the_limit(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    make_checkpoint(folder, vocab_size=tiny_backend().get_vocab_size())
    with server_of(QWEN3_5, folder, worker=()) as server:
        body = say("x", max_tokens=20, seed=1, ignore_eos=True, logprobs=True)
        answer = answered(server, body)
        events = server.post(CHAT, {**body, "stream": True}).text.split("\n\n")

    (choice,) = answer["choices"]
    assert choice["message"]["content"] == ""
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 20
    chunks = [json.loads(event[6:])["choices"][0] for event in events if "delta" in event]
    deltas = [chunk["delta"] for chunk in chunks]
    streamed = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert streamed == choice["message"]["reasoning_content"] != ""
    assert not any(delta.get("content") for delta in deltas)
    scored = [chunk["logprobs"]["content"] for chunk in chunks if chunk["logprobs"]]
    assert [*chain.from_iterable(scored)] == choice["logprobs"]["content"]
    assert len(choice["logprobs"]["content"]) == 20


def test_thinking_comes_back_to_the_template(qwen3: ServerProcess) -> None:
    def prompt_tokens(**fields: Any) -> int:
        history = [{"role": "assistant", "content": "ok", **fields}]
        body = say("hi")
        body["messages"] = [*history, *body["messages"]]
        return int(answered(qwen3, body)["usage"]["prompt_tokens"])

    marked = len("<think>\nbecause\n</think>\n\n")
    assert prompt_tokens(reasoning_content="because") == prompt_tokens() + marked
    assert prompt_tokens(reasoning_content=None, annotations=[]) == prompt_tokens()
    assert prompt_tokens(content=None, reasoning_content="because") == prompt_tokens() + marked - 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        (
            {"chat_template_kwargs": {"enable_thinking": "no"}},
            "chat_template_kwargs.enable_thinking",
        ),
        (
            {"chat_template_kwargs": {"preserve_thinking": True}},
            "chat_template_kwargs.preserve_thinking",
        ),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "reasoning_effort",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]},
            "messages[0].reasoning_content",
        ),
    ],
)
def test_what_is_refused(qwen3: ServerProcess, fields: dict[str, Any], param: str) -> None:
    assert error_of(qwen3.post(CHAT, say("x", **fields)), 400)["param"] == param


def test_effort_goes_to_a_template_that_reads_it(tmp_path: Path) -> None:
    template = "say:{{ reasoning_effort }} {{ preserve_thinking }}<|im_end|>"
    with server_of(template, tmp_path) as server:
        kwargs = {"reasoning_effort": "low", "preserve_thinking": True}
        for fields in ({"reasoning_effort": "low"}, {}):
            body = say("x", chat_template_kwargs=kwargs, **fields)
            assert thinking_in(message_of(server, body)) == (None, "low True")
        contradiction = say("x", chat_template_kwargs=kwargs, reasoning_effort="high")
        assert error_of(server.post(CHAT, contradiction), 400)["param"] == "reasoning_effort"
