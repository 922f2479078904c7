"""More clients than there is room for: every one gets its own text, or is told to come back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from checkpoints import make_checkpoint
from serving import ServerProcess, error_of
from tiny_tokenizers import tiny_backend

CLIENTS = 100
QUEUE = 24
PROMPTS = [f"{'shared beginning ' * (i % 3)}number {i}" for i in range(10)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A model that computes, with a cache for a few requests at once and a short queue."""
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    backend = tiny_backend()
    make_checkpoint(folder, vocab_size=backend.get_vocab_size() + 20)
    backend.save(str(folder / "tokenizer.json"))
    engine_options = {
        "max_model_len": 128,
        "kv_cache_tokens": 512,
        "max_num_seqs": 16,
        "max_batch_tokens": 64,
        "max_queue": QUEUE,
    }
    log = folder.with_name("log")
    with ServerProcess(folder, log, worker=(), engine_options=engine_options) as running:
        yield running


def complete(server: ServerProcess, number: int) -> requests.Response:
    body = {"model": "m", "prompt": PROMPTS[number % len(PROMPTS)], "seed": number % len(PROMPTS)}
    return server.post("/v1/completions", {**body, "max_tokens": 40, "ignore_eos": True})


def text(answer: requests.Response) -> str:
    return str(answer.json()["choices"][0]["text"])


def test_everyone_gets_their_own_text_or_is_told_to_come_back(small: ServerProcess) -> None:
    alone = [text(complete(small, number)) for number in range(len(PROMPTS))]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda number: complete(small, number), range(CLIENTS)))

    served = {number: a for number, a in enumerate(answers) if a.status_code == 200}
    assert len(served) >= QUEUE
    assert all(text(answer) == alone[number % len(PROMPTS)] for number, answer in served.items())
    for answer in answers:
        if answer.status_code != 200:
            error_of(answer, 429)


def test_more_choices_than_may_wait(small: ServerProcess) -> None:
    body = {"model": "m", "prompt": PROMPTS, "max_tokens": 80, "ignore_eos": True, "n": 10}
    answer = small.post("/v1/completions", body)

    error = error_of(answer, 429)
    assert (error["code"], error["param"]) == ("queue_full", None)
    assert f"{QUEUE} requests wait" in error["message"]
    assert int(answer.headers["retry-after"]) > 0
    assert len(small.complete(PROMPTS, max_tokens=5)["choices"]) == len(PROMPTS), "none runs on"


def test_the_second_turn_finds_the_first(small: ServerProcess) -> None:
    prompt = "a question that is asked once, and an answer: "
    first = small.complete(prompt, max_tokens=20, ignore_eos=True)
    again = small.complete(prompt, max_tokens=20, ignore_eos=True)
    other = small.complete(prompt, max_tokens=20, ignore_eos=True, cache_salt="another tenant")

    cached = [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in (first, again, other)]
    assert cached == [0, len(prompt) // 16 * 16, 0]
