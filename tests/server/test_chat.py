"""POST /v1/chat/completions through OpenAI's client and, where bytes matter, without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import ServerProcess
from tiny_tokenizers import tiny_backend


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_answer_has_every_field_of_the_specification(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="any", messages=[user("say:hello")])

    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "any"
    assert answer.system_fingerprint
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "hello")
    assert choice.message.refusal is None
    prompt = "<>user\nsay:hello<>\n<>assistant\n".replace("<>", "?")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len("hello") + 1


def test_the_conversation_is_rendered_by_the_template(server: ServerProcess) -> None:
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]
    messages = [
        {"role": "developer", "content": parts},
        user("hello"),
        {"role": "assistant", "content": "yes?"},
        user("say:hi"),
    ]
    rendered = "?system\nbe brief?\n?user\nhello?\n?assistant\nyes??\n?user\nsay:hi?\n?assistant\n"

    answer = server.post("/v1/chat/completions", {"model": "m", "messages": messages}).json()

    assert answer["choices"][0]["message"]["content"] == "hi"
    assert answer["usage"]["prompt_tokens"] == len(rendered)


def test_the_rest_of_the_context_is_free_to_use(server: ServerProcess) -> None:
    body = {"model": "m", "messages": [user("say:ab")], "ignore_eos": True}

    answer = server.post("/v1/chat/completions", body).json()

    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 4096


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_token_limit(client: openai.OpenAI, field: str) -> None:
    answer = client.chat.completions.create(
        model="m", messages=[user("say:hello")], extra_body={field: 3}
    )

    assert answer.choices[0].message.content == "hel"
    assert answer.choices[0].finish_reason == "length"


def test_several_choices_with_seeds_of_their_own(server: ServerProcess) -> None:
    body = {"model": "m", "messages": [user("params")], "n": 2, "seed": 7, "max_tokens": 1000}

    answer = server.post("/v1/chat/completions", body).json()

    contents = [json.loads(choice["message"]["content"]) for choice in answer["choices"]]
    assert [params["seed"] for params in contents] == [7, 8]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]


def test_stream_starts_with_the_role_and_ends_with_nothing(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="m",
            messages=[user("say:你好")],
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks[:-1]]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "你"},
        {"content": "好"},
        {},
    ]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None, None, None, "stop"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len("你好".encode()) + 1


def test_stream_of_several_choices(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="m", messages=[user("say:hi")], n=3, stream=True, stop="i"
    )

    texts, ends = [""] * 3, [""] * 3
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] += choice.finish_reason or ""

    assert texts == ["h"] * 3
    assert ends == ["stop"] * 3


def test_fields_that_change_no_token_are_accepted(server: ServerProcess) -> None:
    neutral = {
        "user": "u",
        "safety_identifier": "s",
        "metadata": {"k": "v"},
        "prompt_cache_key": "p",
        "store": False,
        "logprobs": False,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "service_tier": "auto",
    }

    body = {"model": "m", "messages": [user("say:hi")], **neutral}

    assert server.post("/v1/chat/completions", body).status_code == 200


def test_a_base_model_has_no_chat(
    start_server: Callable[..., ServerProcess], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("base")
    tiny_backend().save(str(folder / "tokenizer.json"))
    server = start_server(folder=folder)

    answer = server.post("/v1/chat/completions", {"model": "m", "messages": [user("hi")]})

    assert answer.status_code == 400
    assert "/v1/completions" in answer.json()["error"]["message"]
    assert server.complete("say:hi")["choices"][0]["text"] == "hi"


def test_sampling_defaults_of_the_checkpoint(
    start_server: Callable[..., ServerProcess], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("defaults")
    tiny_backend().save(str(folder / "tokenizer.json"))
    defaults = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    server = start_server(folder=folder)

    answer = server.complete("params", max_tokens=1000, top_p=0.9)

    params = json.loads(answer["choices"][0]["text"])
    assert {name: params[name] for name in defaults} == {**defaults, "top_p": 0.9}
