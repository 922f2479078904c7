"""The whole way, with models that compute: a tiny random one and the demo model."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from checkpoints import make_checkpoint
from serving import PATIENCE_S, ServerProcess
from tiny_tokenizers import tiny_backend

from qwell.runtime.demo_model import demo_model_dir

REAL_WORKER: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A random Qwen2 checkpoint with the byte tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    backend = tiny_backend()
    make_checkpoint(folder, vocab_size=backend.get_vocab_size() + 20)
    backend.save(str(folder / "tokenizer.json"))
    log = folder.with_name("log")
    with ServerProcess(folder, log, worker=REAL_WORKER) as running:
        yield running


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The demo model, one request at a time."""
    log = tmp_path_factory.mktemp("demo") / "log"
    options = {"worker": REAL_WORKER, "engine_options": {"max_num_seqs": 1}, "is_demo": True}
    with ServerProcess(demo_model_dir(), log, **options) as running:
        yield running


def texts(server: ServerProcess, prompt: object, **fields: object) -> list[str]:
    return [choice["text"] for choice in server.complete(prompt, **fields)["choices"]]


def test_same_seed_same_text_alone_or_among_others(tiny: ServerProcess) -> None:
    prompts = [f"prompt {number} " * (number + 1) for number in range(6)]
    alone = [texts(tiny, prompt, seed=7, max_tokens=24, ignore_eos=True) for prompt in prompts]
    together: dict[int, list[str]] = {}

    def complete(number: int) -> None:
        together[number] = texts(tiny, prompts[number], seed=7, max_tokens=24, ignore_eos=True)

    threads = [threading.Thread(target=complete, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert [together[number] for number in range(6)] == alone
    assert len({tuple(text) for text in alone}) > 1


def test_as_many_biases_and_bans_as_there_are_bytes(tiny: ServerProcess) -> None:
    biases = {str(token_id): 1 for token_id in range(256)}
    biases[str(ord("x"))] = 100
    banned = [token_id for token_id in range(256) if token_id != ord("x")]

    (text,) = texts(
        tiny, "abc", max_tokens=3, min_tokens=3, logit_bias=biases, bad_token_ids=banned
    )

    assert text == "xxx"


def test_first_choice_of_many_is_that_of_one(tiny: ServerProcess) -> None:
    (one,) = texts(tiny, "abc", seed=3, max_tokens=16)
    three = texts(tiny, "abc", seed=3, max_tokens=16, n=3)

    assert three[0] == one
    assert len(set(three)) > 1


def test_stream_and_plain_answer_are_the_same(tiny: ServerProcess) -> None:
    (plain,) = texts(tiny, "abc", seed=5, max_tokens=40, ignore_eos=True)
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(
            model="m",
            prompt="abc",
            seed=5,
            max_tokens=40,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == plain


def test_the_best_of_many_are_those_of_the_likeliest_tokens(tiny: ServerProcess) -> None:
    body = {"prompt": ["abc", "de"], "seed": 3, "max_tokens": 6, "ignore_eos": True}
    every = tiny.complete(**body, n=5, logprobs=0)
    best = tiny.complete(**body, n=2, best_of=5)
    scored = tiny.complete(**body, n=2, best_of=5, logprobs=2)

    def mean(choice: dict[str, Any]) -> float:
        scores = choice["logprobs"]["token_logprobs"]
        return float(sum(scores) / len(scores))

    groups = every["choices"][:5], every["choices"][5:]
    ranked = [sorted(group, key=mean, reverse=True)[:2] for group in groups]
    expected = [choice["text"] for group in ranked for choice in group]
    assert [choice["text"] for choice in best["choices"]] == expected
    assert expected != [group[place]["text"] for group in groups for place in (0, 1)]
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert [choice["logprobs"] for choice in best["choices"]] == [None] * 4
    assert [choice["text"] for choice in scored["choices"]] == expected
    assert all(len(c["logprobs"]["top_logprobs"]) == 6 for c in scored["choices"])
    for answer in (best, scored):
        assert answer["usage"]["completion_tokens"] == 2 * 5 * 6


SCORED = {"seed": 5, "max_tokens": 30, "ignore_eos": True, "stop": "\x7f\x7f"}


def pieces(server: ServerProcess, path: str, body: dict[str, object]) -> list[dict[str, object]]:
    """The only choice of each chunk of a stream."""
    answer = server.post(path, {"model": "m", "stream": True, **body})
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n")[:-2]]
    return [json.loads(event)["choices"][0] for event in events]


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_logprobs_are_those_of_the_plain_answer(tiny: ServerProcess, echo: bool) -> None:
    fields = {**SCORED, "echo": echo, "logprobs": 3}
    plain = tiny.complete("abcé", **fields)["choices"][0]
    chunks = pieces(tiny, "/v1/completions", {"prompt": "abcé", **fields})

    assert "".join(chunk["text"] for chunk in chunks) == plain["text"]
    scored = [chunk["logprobs"] for chunk in chunks if chunk["logprobs"] is not None]
    for name, values in plain["logprobs"].items():
        assert [value for piece in scored for value in piece[name]] == values


def test_echoed_logprobs_are_those_of_the_tokens_when_they_were_generated(
    tiny: ServerProcess,
) -> None:
    prompt = [97, 98, 99, 0xE4]
    fields = {"max_tokens": 12, "temperature": 0, "logprobs": 2}
    fields["allowed_token_ids"] = list(range(256))
    generated = tiny.complete(prompt, **fields, echo=True)["choices"][0]["logprobs"]
    ids = {chr(i) if i < 128 else f"bytes:\\x{i:02x}": i for i in range(256)}
    assert set(generated["tokens"]) <= ids.keys()
    every = [ids[token] for token in generated["tokens"]]

    echoed = tiny.complete(every, max_tokens=0, echo=True, logprobs=2)["choices"][0]["logprobs"]

    assert echoed["tokens"] == generated["tokens"]
    assert echoed["text_offset"] == generated["text_offset"]
    assert echoed["token_logprobs"][0] is None
    assert echoed["top_logprobs"][0] is None
    assert echoed["token_logprobs"][1:] == pytest.approx(generated["token_logprobs"][1:], abs=1e-4)
    for token, logprob, top in zip(
        *(echoed[name][4:] for name in ("tokens", "token_logprobs", "top_logprobs")), strict=True
    ):
        assert top[token] == logprob
        assert len(top) in (2, 3)


def test_offsets_are_those_of_the_text(tiny: ServerProcess) -> None:
    choice = tiny.complete("xyé!", **SCORED, echo=True, logprobs=0)["choices"][0]

    logprobs = choice["logprobs"]
    assert logprobs["text_offset"][:5] == [0, 1, 2, 2, 3]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith("bytes:") and not token.startswith("<|"):
            assert choice["text"][offset : offset + len(token)] == token
    assert all(len(top) == 1 for top in logprobs["top_logprobs"][1:])


def test_chat_logprobs_by_openais_client(demo: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        request = {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "seed": 1,
            "max_tokens": 20,
            "logprobs": True,
            "top_logprobs": 4,
        }
        plain = client.chat.completions.create(**request)
        chunks = list(client.chat.completions.create(**request, stream=True))

    logprobs = plain.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content or []
    assert plain.usage is not None
    assert len(content) == plain.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 4
        assert token.logprob <= token.top_logprobs[0].logprob <= 0
        if token.bytes and max(token.bytes) < 128:
            assert bytes(token.bytes).decode() == token.token
    streamed = [
        token
        for chunk in chunks
        if (scored := chunk.choices[0].logprobs) is not None
        for token in scored.content or []
    ]
    assert streamed == content


def test_penalties_bans_and_ends_by_id(tiny: ServerProcess) -> None:
    greedy = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    allowed = [97, 98, 99, 100]
    (text,) = texts(tiny, "abc", **greedy, allowed_token_ids=allowed, frequency_penalty=2)
    assert set(text) <= set("abcd")
    (text,) = texts(tiny, "abc", **greedy, allowed_token_ids=allowed, logit_bias={"98": 100})
    assert text == "b" * 20
    fields = {"allowed_token_ids": allowed, "logit_bias": {"98": 100}, "stop_token_ids": [98]}
    assert texts(tiny, "abc", **greedy, **fields) == ["b"]
    (text,) = texts(tiny, "abc", **greedy, **fields, min_tokens=5)
    assert text[5:] == "b"
    assert "b" not in text[:5]
    fields = {"allowed_token_ids": [97], "stop": "aaa", "include_stop_str_in_output": True}
    assert texts(tiny, "abc", **greedy, **fields) == ["aaa"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": [10_000]}, "prompt", None),
        ({"prompt": "abc", "max_tokens": 256}, "max_tokens", "context_length_exceeded"),
        ({"prompt": "abc", "logit_bias": {"99999": 1}}, "logit_bias", None),
        ({"prompt": "abc", "stop_token_ids": [99999]}, "stop_token_ids", None),
        ({"prompt": "abc", "allowed_token_ids": [99999]}, "allowed_token_ids", None),
        ({"prompt": "abc", "bad_token_ids": [99999]}, "bad_token_ids", None),
        ({"prompt": [5] * 256, "max_tokens": 1}, "prompt", "context_length_exceeded"),
        ({"prompt": [5] * 300}, "prompt", "context_length_exceeded"),
    ],
)
def test_the_engine_refuses_with_a_400(
    tiny: ServerProcess, fields: dict[str, object], param: str, code: str | None
) -> None:
    answer = tiny.post("/v1/completions", {"model": "m", "stream": True, **fields})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["code"] == code


def test_no_tokens_asked_for(tiny: ServerProcess) -> None:
    answer = tiny.complete("abc", max_tokens=0, echo=True)

    assert answer["choices"][0]["text"] == "abc"
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_checkpoint_that_cannot_be_loaded(tmp_path: Path) -> None:
    tiny_backend().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    with ServerProcess(tmp_path, tmp_path / "log", worker=REAL_WORKER, ready=False) as server:
        assert server.process.wait(PATIENCE_S) == 1

    assert server.log.splitlines()[-1].startswith("qwell: error: ")
    assert "Traceback" not in server.log


def test_the_demo_model_answers(demo: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="gpt-3.5-turbo",
            messages=[
                {"role": "user", "content": "What is the capital of France? Answer in one word."}
            ],
            temperature=0,
            max_tokens=24,
        )

    assert "Paris" in (answer.choices[0].message.content or "")


def test_the_server_process_computes_nothing_itself(demo: ServerProcess) -> None:
    maps = Path(f"/proc/{demo.process.pid}/maps").read_text()
    worker_maps = Path(f"/proc/{demo.worker_pid()}/maps").read_text()

    assert "libtorch" not in maps
    assert "libtorch" in worker_maps


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_lets_requests_finish(
    tmp_path: Path, signal_number: signal.Signals
) -> None:
    with ServerProcess(demo_model_dir(), tmp_path / "log", worker=REAL_WORKER) as server:
        body = {"model": "m", "prompt": "Once", "max_tokens": 20, "ignore_eos": True}
        answer = requests.post(
            f"{server.url}/v1/completions",
            json={**body, "stream": True},
            stream=True,
            timeout=PATIENCE_S,
        )
        lines = answer.iter_lines(decode_unicode=True)
        next(lines)
        os.killpg(server.process.pid, signal_number)
        rest = [line for line in lines if line]

        assert server.process.wait(PATIENCE_S) == 0

    assert '"finish_reason":"length"' in rest[-2]
    assert rest[-1] == "data: [DONE]"
    assert "Traceback" not in server.log


def test_a_client_that_leaves_makes_room_for_the_next(demo: ServerProcess) -> None:
    endless = {"model": "m", "prompt": "Once", "max_tokens": 8000, "ignore_eos": True}
    answer = requests.post(
        f"{demo.url}/v1/completions",
        json={**endless, "stream": True},
        stream=True,
        timeout=PATIENCE_S,
    )
    next(answer.iter_content(1))
    answer.close()

    assert texts(demo, "Twice", temperature=0, max_tokens=4, ignore_eos=True)


def test_prefixes_are_found_after_a_restart(tmp_path: Path) -> None:
    backend = tiny_backend()
    make_checkpoint(tmp_path / "tiny", vocab_size=backend.get_vocab_size() + 20)
    backend.save(str(tmp_path / "tiny" / "tokenizer.json"))
    engine = {"prefix_cache_file": str(tmp_path / "prefixes")}
    answers = []
    for start in range(2):
        options = {"worker": REAL_WORKER, "engine_options": engine}
        with ServerProcess(tmp_path / "tiny", tmp_path / f"log{start}", **options) as server:
            answers.append(server.complete("once upon a time " * 5, seed=1, max_tokens=8))
    first, second = (answer["usage"]["prompt_tokens_details"] for answer in answers)
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] >= 64
    assert answers[0]["choices"] == answers[1]["choices"]
