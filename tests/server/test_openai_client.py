"""Today's `openai` client beyond plain requests: async, helpers, raw answers, retries, options."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pydantic
import pytest
from chat_templates import QWEN2_5, server_of
from openai.types.chat import ChatCompletionChunk
from serving import ServerProcess

TEXT = "你好 👍"
MESSAGES: list[Any] = [{"role": "user", "content": f"say:{TEXT}"}]


@pytest.fixture(scope="module")
def tool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_of(QWEN2_5, tmp_path_factory.mktemp("tools")) as running:
        yield running


def run_async(server: ServerProcess, use: Callable[[openai.AsyncOpenAI], Any]) -> Any:
    async def run() -> Any:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            return await use(client)

    return asyncio.run(run())


def test_async_answers(server: ServerProcess) -> None:
    async def use(client: openai.AsyncOpenAI) -> tuple[Any, Any]:
        chats = [client.chat.completions.create(model="m", messages=MESSAGES) for _ in range(8)]
        completion = client.completions.create(model="m", prompt=f"say:{TEXT}")
        return await asyncio.gather(*chats), await completion

    chats, completion = run_async(server, use)

    assert [answer.choices[0].message.content for answer in chats] == [TEXT] * 8
    assert completion.choices[0].text == TEXT


def test_async_streams(server: ServerProcess) -> None:
    async def text_of(stream: AsyncIterator[Any], text: Callable[[Any], str | None]) -> str:
        return "".join([text(chunk.choices[0]) or "" async for chunk in stream])

    async def use(client: openai.AsyncOpenAI) -> tuple[str, str]:
        chat = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        plain = await client.completions.create(model="m", prompt=f"say:{TEXT}", stream=True)
        return await asyncio.gather(
            text_of(chat, lambda choice: choice.delta.content),
            text_of(plain, lambda choice: choice.text),
        )

    assert run_async(server, use) == [TEXT, TEXT]


def test_an_async_stream_that_is_left_early(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server()

    async def use(client: openai.AsyncOpenAI) -> str:
        endless = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}
        async with await client.completions.create(
            model="m", prompt="slow:x", stream=True, **endless
        ) as stream:
            async for chunk in stream:
                return str(chunk.choices[0].text)
        return ""

    assert run_async(server, use) == "x"
    server.wait_until(lambda: server.report() == "running=0 aborted=1", "end of the request")


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="m",
        messages=MESSAGES,
        logprobs=True,
        top_logprobs=1,
        stream_options={"include_usage": True},
    ) as stream:
        events = list(stream)
        answer = stream.get_final_completion()

    deltas = [event for event in events if event.type == "content.delta"]
    assert "".join(event.delta for event in deltas) == TEXT
    assert [event.snapshot for event in deltas][-1] == TEXT
    assert [event.content for event in events if event.type == "content.done"] == [TEXT]
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (TEXT, "stop")
    assert choice.logprobs is not None
    assert len(choice.logprobs.content or []) == len(TEXT.encode()) + 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(TEXT.encode()) + 1


def test_the_stream_helper_of_the_async_client(server: ServerProcess) -> None:
    async def use(client: openai.AsyncOpenAI) -> Any:
        async with client.chat.completions.stream(model="m", messages=MESSAGES, n=2) as stream:
            return await stream.get_final_completion()

    answer = run_async(server, use)

    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]


class Sum(pydantic.BaseModel):
    left: int
    right: int


SUM = Sum(left=1, right=2)
ASKED_FOR_SUM: list[Any] = [{"role": "user", "content": f"say:{SUM.model_dump_json()}"}]


def test_structured_output(client: openai.OpenAI, server: ServerProcess) -> None:
    asked: dict[str, Any] = {"model": "m", "messages": ASKED_FOR_SUM, "response_format": Sum}

    async def use(client: openai.AsyncOpenAI) -> Any:
        return await client.chat.completions.parse(**asked)

    for answer in (client.chat.completions.parse(**asked), run_async(server, use)):
        assert answer.choices[0].message.parsed == SUM

    with client.chat.completions.stream(**asked) as stream:
        events = list(stream)
    assert [event.parsed for event in events if event.type == "content.done"] == [SUM]

    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**asked, max_tokens=3)


def test_functions_as_pydantic_models(tool_server: ServerProcess) -> None:
    call = f'<tool_call>\n{{"name": "Sum", "arguments": {SUM.model_dump_json()}}}\n</tool_call>'
    asked: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": f"say:{call}\n{call}"}],
        "tools": [openai.pydantic_function_tool(Sum)],
    }
    with openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.parse(**asked)
        with client.chat.completions.stream(**asked) as stream:
            events = list(stream)

    calls = answer.choices[0].message.tool_calls or []
    assert [call.function.parsed_arguments for call in calls] == [SUM, SUM]
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.index, event.parsed_arguments) for event in done] == [(0, SUM), (1, SUM)]


def test_raw_answers(client: openai.OpenAI) -> None:
    name = {"X-Request-Id": "mine-1"}
    raw = client.chat.completions.with_raw_response.create(
        model="m", messages=MESSAGES, extra_headers=name
    )
    assert raw.headers["x-request-id"] == raw.request_id == "mine-1"
    answer = raw.parse()
    assert answer.choices[0].message.content == TEXT
    assert answer._request_id == "mine-1"

    with client.completions.with_streaming_response.create(
        model="m", prompt=f"say:{TEXT}", stream=True
    ) as streaming:
        assert streaming.headers["content-type"].startswith("text/event-stream")
        assert "".join(chunk.choices[0].text for chunk in streaming.parse()) == TEXT


def test_every_option_of_chat(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {
        "frequency_penalty": 0.5,
        "logit_bias": {"5": 1},
        "presence_penalty": -0.5,
        "seed": 7,
        "stop": ["\n", "\t"],  # the answer has them escaped
        "temperature": 0.25,
        "top_p": 0.75,
    }
    answer = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "params"}],
        **given,
        logprobs=True,
        top_logprobs=2,
        max_completion_tokens=1000,
        n=2,
        metadata={"k": "v"},
        modalities=["text"],
        parallel_tool_calls=True,
        prompt_cache_key="p",
        response_format={"type": "text"},
        safety_identifier="s",
        service_tier="auto",
        store=False,
        user="u",
        extra_body={"top_k": 3, "min_p": 0.125},
    )

    expected = {**given, "logprobs": 2, "max_tokens": 1000, "top_k": 3, "min_p": 0.125}
    for k, choice in enumerate(answer.choices):
        params = json.loads(choice.message.content or "")
        assert {name: params[name] for name in expected} == {**expected, "seed": 7 + k}
        assert choice.logprobs is not None
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content or [])
    assert len(answer.choices) == 2


def test_every_option_of_completions(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {
        "frequency_penalty": 0.5,
        "logit_bias": {"5": 1},
        "logprobs": 2,
        "max_tokens": 1000,
        "presence_penalty": -0.5,
        "seed": 7,
        "stop": ["\n"],
        "temperature": 0.25,
        "top_p": 0.75,
    }
    answer = client.completions.create(
        model="m", prompt="params", **given, best_of=2, echo=True, n=2, user="u"
    )

    for k, choice in enumerate(answer.choices):
        params = json.loads(choice.text.removeprefix("params"))
        assert {name: params[name] for name in given} == {**given, "seed": 7 + k}
    assert len(answer.choices) == 2


def test_a_full_queue_is_tried_again(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="m", prompt="full")
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) > 0

        raw = client.with_options(max_retries=1).completions.with_raw_response.create(
            model="m", prompt="busy"
        )

    assert raw.retries_taken == 1
    assert raw.parse().choices[0].text == "ok"


@pytest.mark.parametrize(
    ("options", "kind", "param"),
    [
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"n": "two"}, openai.BadRequestError, "n"),
        ({"extra_body": {"banana": 1}}, openai.BadRequestError, "banana"),
    ],
)
def test_what_is_refused_is_not_tried_again(
    server: ServerProcess, options: dict[str, Any], kind: type[openai.APIStatusError], param: str
) -> None:
    name = {"X-Request-Id": f"refused-{param}"}
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2) as client,
        pytest.raises(kind) as caught,
    ):
        client.chat.completions.create(model="m", messages=MESSAGES, extra_headers=name, **options)

    assert param in (caught.value.param or caught.value.message)
    assert caught.value.request_id == f"refused-{param}"
    line = f"id=refused-{param} "
    server.wait_until(lambda: line in server.log, "line of the request")
    assert server.log.count(line) == 1


def test_other_endpoints_are_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings") as caught:
        client.embeddings.create(model="m", input="x")
    assert caught.value.code == "unsupported_endpoint"
    with pytest.raises(openai.NotFoundError, match="/v1/responses"):
        client.responses.create(model="m", input="x")


def test_models(client: openai.OpenAI) -> None:
    (card,) = client.models.list()

    assert client.models.retrieve(card.id).id == card.id
    assert (card.object, card.owned_by) == ("model", "owner")


def test_chunks_are_of_the_documented_type(client: openai.OpenAI) -> None:
    """Strictly: the client itself takes what it does not know."""
    stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)

    for chunk in stream:
        assert isinstance(chunk, ChatCompletionChunk)
        ChatCompletionChunk.model_validate(chunk.to_dict(), strict=True)
        assert not chunk.model_extra
