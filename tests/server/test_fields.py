"""Every field of OpenAI's two completion routes: honoured, or refused by name.

The fields are those of OpenAI's own client, so that one that is new there is missed here.
"""

from __future__ import annotations

import json
import typing
from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat_params
from serving import ServerProcess, error_of

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
PATHS = (COMPLETIONS, CHAT)

# Fields of sampling: what is given, and what the engine is told.
SAMPLING: dict[str, tuple[Any, Any]] = {
    "frequency_penalty": (1.5, 1.5),
    "logit_bias": ({"5": -7.5}, {"5": -7.5}),
    "presence_penalty": (-0.5, -0.5),
    "seed": (11, 11),
    "stop": ("\x01", ["\x01"]),
    "temperature": (0.75, 0.75),
    "top_p": (0.5, 0.5),
    "max_tokens": (999, 999),
}
SAMPLED = {
    COMPLETIONS: {**SAMPLING, "logprobs": (3, 3)},
    CHAT: {**SAMPLING, "max_completion_tokens": (998, 998), "logprobs": (True, 0)},
}
# They change the answer's form or number, which other tests look at.
SHAPING: dict[str, dict[str, Any]] = {
    COMPLETIONS: {
        "model": "m",
        "prompt": "say:x",
        "n": 2,
        "best_of": 3,
        "echo": True,
        "stream": True,
    },
    CHAT: {
        "model": "m",
        "messages": [{"role": "user", "content": "say:x"}],
        "n": 2,
        "stream": True,
    },
}
# Of account to OpenAI's own service only: taken, and without effect, as docs/serving.md says.
WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"user": "someone"},
    CHAT: {
        "user": "someone",
        "safety_identifier": "someone",
        "metadata": {"job": "7"},
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"suffix": "the end"},
    CHAT: {
        "audio": {"voice": "alloy", "format": "wav"},
        "modalities": ["text", "audio"],
        "moderation": {"model": "m"},
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_options": {"mode": "implicit"},
        "service_tier": "priority",
        "store": True,
        "verbosity": "low",
        "web_search_options": {},
    },
}
# Tools, thinking and structured output, and what only goes with another field.
ELSEWHERE = {
    COMPLETIONS: {"stream_options"},
    CHAT: {
        *("function_call", "functions", "parallel_tool_calls", "tool_choice", "tools"),
        *("reasoning_effort", "response_format"),
        *("stream_options", "top_logprobs"),
    },
}


def fields_of(*kinds: Any) -> set[str]:
    return {name for kind in kinds for name in kind.__annotations__}


OPENAI = {
    COMPLETIONS: fields_of(
        completion_params.CompletionCreateParamsBase,
        completion_params.CompletionCreateParamsStreaming,
    ),
    CHAT: fields_of(
        chat_params.CompletionCreateParamsBase, chat_params.CompletionCreateParamsStreaming
    ),
}


def cases(table: dict[str, dict[str, Any]]) -> list[tuple[str, str, Any]]:
    return [(path, field, value) for path in PATHS for field, value in table[path].items()]


def body_of(path: str, text: str) -> dict[str, Any]:
    if path == CHAT:
        return {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"model": "m", "prompt": text}


@pytest.mark.parametrize("path", PATHS)
def test_no_field_is_forgotten(path: str) -> None:
    tables = (SAMPLED, SHAPING, WITHOUT_EFFECT, REFUSED)
    assert len(OPENAI[path]) > 15
    assert OPENAI[path] == ELSEWHERE[path].union(*(table[path] for table in tables))


@pytest.mark.parametrize(("path", "field", "value"), cases(SAMPLED))
def test_sampling_reaches_the_engine(
    server: ServerProcess, path: str, field: str, value: tuple[Any, Any]
) -> None:
    given, expected = value
    limit = {} if field.startswith("max_") else {"max_tokens": 1000}

    answer = server.post(path, {**body_of(path, "params"), **limit, field: given})

    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    told = json.loads(choice["message"]["content"] if path == CHAT else choice["text"])
    assert told[{"max_completion_tokens": "max_tokens"}.get(field, field)] == expected


@pytest.mark.parametrize(("path", "field", "value"), cases(SHAPING))
def test_fields_of_the_form_are_taken(
    server: ServerProcess, path: str, field: str, value: Any
) -> None:
    answer = server.post(path, {**body_of(path, "say:x"), field: value})

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "field", "value"), cases(WITHOUT_EFFECT))
def test_fields_without_effect_change_nothing(
    server: ServerProcess, path: str, field: str, value: Any
) -> None:
    plain = server.post(path, body_of(path, "params")).json()
    given = server.post(path, {**body_of(path, "params"), field: value})

    assert given.status_code == 200, given.text
    assert given.json()["choices"] == plain["choices"]


@pytest.mark.parametrize(("path", "field", "value"), cases(REFUSED))
def test_the_rest_is_refused_by_name(
    server: ServerProcess, path: str, field: str, value: Any
) -> None:
    error = error_of(server.post(path, {**body_of(path, "say:x"), field: value}), 400)

    assert error["param"] == field
    assert field in error["message"]
    assert "not supported yet" in error["message"]


@pytest.mark.parametrize(("path", "field"), [(p, f) for p in PATHS for f in sorted(OPENAI[p])])
@pytest.mark.parametrize("nonsense", [{"no": {"such": "value"}}, [[0.5]]], ids=["object", "list"])
def test_nonsense_is_refused_by_name(
    server: ServerProcess, path: str, field: str, nonsense: Any
) -> None:
    error = error_of(server.post(path, {**body_of(path, "say:x"), field: nonsense}), 400)

    assert error["param"].partition("[")[0].partition(".")[0] == field


@pytest.mark.parametrize("path", PATHS)
def test_options_of_streams(server: ServerProcess, path: str) -> None:
    known = set(typing.get_type_hints(ChatCompletionStreamOptionsParam))
    assert known == {"include_usage", "include_obfuscation"}
    stream = {**body_of(path, "say:x"), "stream": True}

    options = {"include_usage": True, "include_obfuscation": False}
    plain = pieces(server, path, {**stream, "stream_options": options})
    assert plain[-1]["usage"]["completion_tokens"] == 2
    assert not any("obfuscation" in chunk for chunk in plain)


@pytest.mark.parametrize("path", PATHS)
def test_sizes_of_obfuscated_chunks_tell_nothing(server: ServerProcess, path: str) -> None:
    body = {**body_of(path, 'say:a"\\é' + "b" * 9), "stream": True}
    plain = pieces(server, path, body)
    body["stream_options"] = {"include_obfuscation": True}
    events = server.post(path, body).text.split("\n\n")[:-2]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]

    sizes = {len(event.removeprefix("data: ").encode()) for event in events}
    assert len(sizes) <= 2
    assert {size % 256 for size in sizes} == {0}
    fillings = [chunk.pop("obfuscation") for chunk in chunks]
    assert len(set(fillings)) == len(chunks) > 10
    assert [chunk["choices"] for chunk in chunks] == [chunk["choices"] for chunk in plain]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (COMPLETIONS, {"best_of": 1, "n": 2}, "best_of"),
        (COMPLETIONS, {"best_of": 0}, "best_of"),
        (COMPLETIONS, {"best_of": 21}, "best_of"),
        (COMPLETIONS, {"best_of": 2, "stream": True}, "best_of"),
        (COMPLETIONS, {"best_of": 20, "prompt": ["a"] * 7}, "best_of"),
        (COMPLETIONS, {"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        (COMPLETIONS, {"stop_token_ids": [1] * 129}, "stop_token_ids"),
        (COMPLETIONS, {"stop": ["a", "x" * 1025]}, "stop"),
        (CHAT, {"return_token_ids": 1}, "return_token_ids"),
        (CHAT, {"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        (CHAT, {"metadata": {"k" * 65: "x"}}, "metadata"),
        (CHAT, {"metadata": {"k": "x" * 513}}, "metadata[...]"),
        (CHAT, {"metadata": {"k": 5}}, "metadata[...]"),
        (CHAT, {"prompt_cache_retention": "for ever"}, "prompt_cache_retention"),
    ],
)
def test_limits(server: ServerProcess, path: str, fields: dict[str, Any], param: str) -> None:
    error = error_of(server.post(path, {**body_of(path, "say:x"), **fields}), 400)

    assert error["param"] == param


def test_as_much_as_is_allowed(server: ServerProcess) -> None:
    fields = {"stop_token_ids": [9] * 128, "best_of": 20, "n": 20, "logit_bias": {}}
    fields["stop"] = [f"{i:x}" + "y" * 1023 for i in range(16)]
    fields["logit_bias"] = {str(i): 1 for i in range(256)}

    assert len(server.complete("say:x", **fields)["choices"]) == 20


def pieces(server: ServerProcess, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    events = server.post(path, {**body, "stream": True}).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def test_token_ids_on_request(server: ServerProcess) -> None:
    choice = server.complete("say:hé", return_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == list("say:hé".encode())
    assert choice["token_ids"][:-1] == list("hé".encode())
    assert "token_ids" not in server.complete("say:hé")["choices"][0]


def test_token_ids_of_a_conversation(server: ServerProcess) -> None:
    body = {**body_of(CHAT, "say:hé"), "return_token_ids": True, "n": 2}
    plain = server.post(CHAT, body).json()
    chunks = pieces(server, CHAT, body)

    text = "<|im_start|>user\nsay:hé<|im_end|>\n<|im_start|>assistant\n"
    encoded = server.post("/tokenize", {"prompt": text}).json()["tokens"]
    assert plain["prompt_token_ids"] == encoded
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [
        encoded,
        *[None] * (len(chunks) - 1),
    ]
    for index, choice in enumerate(plain["choices"]):
        assert choice["token_ids"][:-1] == list("hé".encode())
        told = [chunk["choices"][0] for chunk in chunks]
        ids = [i for c in told if c["index"] == index for i in c.get("token_ids", [])]
        assert ids == choice["token_ids"]


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_token_ids_are_those_of_the_plain_answer(
    server: ServerProcess, echo: bool
) -> None:
    body = {"prompt": ["say:hé", "say:x"], "n": 2, "return_token_ids": True, "echo": echo}
    plain = server.complete(**body)["choices"]

    ids: list[list[int]] = [[] for _ in plain]
    prompts: list[list[int]] = []
    texts = ["" for _ in plain]
    for chunk in pieces(server, COMPLETIONS, {"model": "m", **body}):
        (choice,) = chunk["choices"]
        ids[choice["index"]] += choice.get("token_ids", [])
        texts[choice["index"]] += choice["text"]
        if "prompt_token_ids" in choice:
            prompts.append(choice["prompt_token_ids"])

    assert ids == [choice["token_ids"] for choice in plain]
    assert prompts == [choice["prompt_token_ids"] for choice in plain]
    assert texts == [choice["text"] for choice in plain]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"stop": ["zz", "lo", "el"]}, "el"),
        ({"stop_token_ids": [5, ord("l")]}, ord("l")),
        ({"stop": "zz", "stop_token_ids": [5]}, None),
        ({"max_tokens": 3}, None),
    ],
)
def test_what_has_stopped_it(
    server: ServerProcess, path: str, fields: dict[str, Any], reason: object
) -> None:
    body = {**body_of(path, "say:hello"), **fields}

    plain = server.post(path, body).json()["choices"][0]
    last = pieces(server, path, body)[-1]["choices"][0]

    assert plain.get("stop_reason") == last.get("stop_reason") == reason
    assert plain["finish_reason"] == last["finish_reason"]
