"""POST /v1/completions through OpenAI's client and, where bytes matter, without it."""

from __future__ import annotations

import json
import time

import openai
import pytest
from serving import ServerProcess

IM_END = "<|im_end|>"


def test_answer_has_every_field_of_the_specification(client: openai.OpenAI) -> None:
    before = int(time.time())

    answer = client.completions.create(model="any", prompt="say:hello")

    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert before <= answer.created <= time.time()
    assert answer.model == "any"
    assert answer.system_fingerprint
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, "hello", "stop")
    assert choice.logprobs is None
    assert answer._request_id


def test_usage_counts_the_end_token(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt="say:hello")

    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("say:hello")
    assert answer.usage.completion_tokens == len("hello") + 1
    assert answer.usage.total_tokens == len("say:hello") + len("hello") + 1


def test_usage_tells_how_much_of_the_prompt_was_cached(client: openai.OpenAI) -> None:
    prompts = ["say:again", "say:once more again"]

    for n in (1, 2):
        usage = client.completions.create(model="m", prompt=prompts, n=n).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 2

    usage = client.completions.create(model="m", prompt="say:hi").usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_priority_and_cache_salt_reach_the_engine(server: ServerProcess) -> None:
    given = server.complete("place", priority=-5, cache_salt="tenant 1")
    left_out = server.complete("place")

    assert given["choices"][0]["text"] == "-5 tenant 1"
    assert left_out["choices"][0]["text"] == "0 "


def test_sixteen_tokens_unless_told_otherwise(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt="say:" + "x" * 40)

    assert answer.choices[0].text == "x" * 16
    assert answer.choices[0].finish_reason == "length"


def test_several_prompts_and_choices_are_ordered_prompt_by_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt=["say:one", "say:two", "say:three"], n=2)

    texts = ["one", "one", "two", "two", "three", "three"]
    assert [(choice.index, choice.text) for choice in answer.choices] == list(enumerate(texts))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("say:onesay:twosay:three")
    assert answer.usage.completion_tokens == sum(len(text) + 1 for text in texts)


@pytest.mark.parametrize("nested", [False, True])
def test_token_ids_as_prompt(client: openai.OpenAI, nested: bool) -> None:
    ids = list(b"say:ids")

    answer = client.completions.create(model="m", prompt=[ids, ids] if nested else ids)

    assert [choice.text for choice in answer.choices] == ["ids"] * (2 if nested else 1)


def test_control_tokens_in_a_text_prompt_are_read_as_such(server: ServerProcess) -> None:
    answer = server.complete(f"say:hi{IM_END}")

    assert answer["usage"]["prompt_tokens"] == len("say:hi") + 1


def test_echo_puts_the_prompt_in_front(server: ServerProcess) -> None:
    text = server.complete("say:é", echo=True)["choices"][0]["text"]
    ids = server.complete([*b"say:", *"é".encode()], echo=True)["choices"][0]["text"]

    assert text == ids == "say:éé"


def test_echo_alone(server: ServerProcess) -> None:
    answer = server.complete("say:x", echo=True, max_tokens=0)

    assert answer["choices"][0]["text"] == "say:x"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("stop", ["lo wor", ["zzz", "lo wor"]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_tokens_ends_the_text_and_is_not_part_of_it(
    client: openai.OpenAI, stop: str | list[str], stream: bool
) -> None:
    request = {"model": "m", "prompt": "say:hello world, and on", "max_tokens": 50, "stop": stop}
    if stream:
        chunks = list(client.completions.create(**request, stream=True))
        text = "".join(chunk.choices[0].text for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = client.completions.create(**request).choices[0]
        text, reason = choice.text, choice.finish_reason

    assert text == "hel"
    assert reason == "stop"


def test_text_that_only_began_like_a_stop_string_is_not_lost(server: ServerProcess) -> None:
    answer = server.complete("say:hello wo", stop="wow")

    assert answer["choices"][0]["text"] == "hello wo"


def test_tokens_behind_a_stop_string_do_not_count_and_no_longer_run(server: ServerProcess) -> None:
    answer = server.complete("slow:abcdefghij", stop="d", max_tokens=1000, ignore_eos=True)

    assert answer["usage"]["completion_tokens"] == len("abcd")
    server.wait_until(lambda: server.report().startswith("running=0 "), "end of the request")


def test_ignore_eos_goes_on_to_max_tokens(server: ServerProcess) -> None:
    choice = server.complete("say:ab", max_tokens=7, ignore_eos=True)["choices"][0]

    assert choice == {"text": "abababa", "index": 0, "finish_reason": "length", "logprobs": None}


def test_sampling_parameters_reach_the_engine(server: ServerProcess) -> None:
    given = {
        "max_tokens": 1000,
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.125,
        "typical_p": 0.75,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -1.5,
        "logit_bias": {"5": 1.5, "100": -100.0},
        "allowed_token_ids": [1, 2],
        "bad_token_ids": [2, 3],
        "min_tokens": 3,
        "stop_token_ids": [9],
        "include_stop_str_in_output": True,
        "seed": -5,
        "ignore_eos": False,
        "logprobs": 3,
    }

    text = server.complete("params", **given)["choices"][0]["text"]

    absent = dict.fromkeys(("prompt_logprobs", "grammar", "thinking"))
    assert json.loads(text) == {**given, **absent, "stop": []}


def test_openai_defaults_where_request_and_checkpoint_are_silent(server: ServerProcess) -> None:
    params = json.loads(server.complete("params", max_tokens=1000)["choices"][0]["text"])

    assert params["temperature"] == 1.0
    assert params["top_p"] == 1.0
    assert params["top_k"] == 0
    assert params["seed"] is None


def test_null_means_the_default(server: ServerProcess) -> None:
    fields = ["temperature", "top_p", "n", "stop", "stream", "stream_options", "seed", "echo"]
    fields += ["typical_p", "min_tokens", "stop_token_ids", "allowed_token_ids", "bad_token_ids"]
    fields += ["logprobs", "logit_bias", "suffix", "best_of", "user", "presence_penalty"]

    answer = server.complete("say:hi", **dict.fromkeys(fields))

    assert answer["choices"][0]["text"] == "hi"


def test_choices_of_a_seeded_request_take_following_seeds(server: ServerProcess) -> None:
    highest = 2**63 - 1

    answer = server.complete("params", max_tokens=1000, n=3, seed=highest - 1)

    seeds = [json.loads(choice["text"])["seed"] for choice in answer["choices"]]
    assert seeds == [highest - 1, highest, -(2**63)]


def test_stream_chunks_make_up_the_plain_answer(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="m", prompt="say:你好 👍!", max_tokens=64, stream=True)

    chunks = list(stream)

    assert "".join(chunk.choices[0].text for chunk in chunks) == "你好 👍!"
    assert "\ufffd" not in "".join(chunk.choices[0].text for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "text_completion"
    assert all(chunk.usage is None for chunk in chunks)


def test_a_character_cut_off_by_max_tokens_is_shown_as_such(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="m", prompt="say:a你", max_tokens=2, stream=True)

    assert "".join(chunk.choices[0].text for chunk in stream) == "a\ufffd"


def test_stream_of_several_choices(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="m", prompt=["say:one", "say:two"], n=2, echo=True, stream=True
    )

    texts, ends = [""] * 4, [""] * 4
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        ends[choice.index] += choice.finish_reason or ""

    assert texts == ["say:oneone", "say:oneone", "say:twotwo", "say:twotwo"]
    assert ends == ["stop"] * 4


def test_usage_chunk_comes_last_on_request(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="m",
            prompt="say:hi",
            n=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 6, 12)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_on_the_wire(server: ServerProcess) -> None:
    body = {"model": "m", "prompt": "say:hi", "stream": True}

    answer = server.post("/v1/completions", body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert "usage" not in json.loads(events[0].removeprefix("data: "))


def test_pieces_arrive_while_the_rest_is_computed(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="m", prompt="slow:x", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )

    first = next(iter(stream)).choices[0]

    assert (first.text, first.finish_reason) == ("x", None)
    stream.close()
