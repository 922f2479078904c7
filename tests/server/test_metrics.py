"""/metrics counts what clients did, seen from outside."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from checkpoints import make_checkpoint
from fake_worker import PREFILL_S
from prometheus_client.parser import text_string_to_metric_families
from serving import PATIENCE_S, ServerProcess, raw_request
from tiny_tokenizers import tiny_backend

StartServer = Callable[..., ServerProcess]
MODEL = {"model_name": "gpt-3.5-turbo"}
COMPLETIONS = {"path": "/v1/completions"}
PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


class Scrape:
    """The figures at one moment."""

    def __init__(self, server: ServerProcess) -> None:
        answer = requests.get(f"{server.url}/metrics", timeout=PATIENCE_S)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        self.families = {f.name: f for f in text_string_to_metric_families(answer.text)}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: object) -> float:
        """A sample of the model's; 0 where there is none yet."""
        model = {} if name.startswith("qwell:http") else MODEL
        wanted = {**model, **{key: str(value) for key, value in labels.items()}}
        return self._values.get((name, frozenset(wanted.items())), 0.0)

    def ends(self) -> dict[str, float]:
        """How many requests ended, by reason."""
        reasons = ("stop", "length", "abort", "error")
        return {
            reason: self("vllm:request_success_total", finished_reason=reason)
            for reason in reasons
            if self("vllm:request_success_total", finished_reason=reason)
        }

    def check_histograms(self) -> None:
        """Buckets rise, and the last holds all."""
        found = 0
        for family in self.families.values():
            if family.type != "histogram":
                continue
            buckets = [s for s in family.samples if s.name.endswith("_bucket")]
            counts = [sample.value for sample in buckets]
            bounds = [float(sample.labels["le"]) for sample in buckets]
            assert bounds == sorted(bounds)
            assert bounds[-1] == math.inf
            assert counts == sorted(counts)
            assert counts[-1] == self(f"{family.name}_count")
            assert (self(f"{family.name}_sum") > 0) == (counts[-1] > 0)
            found += 1
        assert found == 9


@pytest.fixture
def fresh(start_server: StartServer) -> ServerProcess:
    """A server that has not answered anything yet."""
    return start_server(engine_options={"max_model_len": 100_000})


def test_requests_and_tokens(fresh: ServerProcess) -> None:
    for _ in range(3):
        fresh.complete("say:abc")
    fresh.complete("say:abc", n=2, max_tokens=2)
    chat = {"model": "m", "messages": [{"role": "user", "content": "say:hi"}], "stream": True}
    assert fresh.post("/v1/chat/completions", chat).status_code == 200

    seen = Scrape(fresh)

    assert seen.ends() == {"stop": 4, "length": 2}
    assert seen("vllm:e2e_request_latency_seconds_count") == 6
    assert seen("vllm:time_to_first_token_seconds_count") == 6
    assert seen("vllm:request_queue_time_seconds_count") == 6
    assert seen("vllm:request_prefill_time_seconds_count") == 6
    assert seen("vllm:request_decode_time_seconds_count") == 6
    # Three letters and an end token three times, two letters twice, then h, i and the end.
    assert seen("vllm:generation_tokens_total") == 3 * 4 + 2 * 2 + 3
    assert seen("vllm:request_generation_tokens_sum") == seen("vllm:generation_tokens_total")
    assert seen("vllm:inter_token_latency_seconds_count") == 19 - 6
    assert seen("vllm:request_prompt_tokens_count") == 6
    assert seen("vllm:prompt_tokens_total") == seen("vllm:request_prompt_tokens_sum")
    assert seen("vllm:prompt_tokens_total") > 5 * len("say:abc")
    assert seen("vllm:num_requests_running") == 0
    assert seen("qwell:engine_up") == 1
    seen.check_histograms()


def test_the_time_to_the_first_token_is_in_the_queue_or_the_prompt(fresh: ServerProcess) -> None:
    for _ in range(2):
        fresh.complete("slow:abc")

    seen = Scrape(fresh)

    queue, prefill, decode, both = (
        seen(f"vllm:{name}_seconds_sum")
        for name in (
            "request_queue_time",
            "request_prefill_time",
            "request_decode_time",
            "time_to_first_token",
        )
    )
    assert prefill == pytest.approx(2 * PREFILL_S)
    assert queue + prefill == pytest.approx(both)
    assert both + decode <= seen("vllm:e2e_request_latency_seconds_sum")


def test_a_stop_string_is_an_end_and_no_abort(fresh: ServerProcess) -> None:
    fresh.complete("slow:abc" + "x" * 100, max_tokens=200, stop=["c"])

    seen = Scrape(fresh)

    assert seen.ends() == {"stop": 1}
    assert seen("vllm:request_generation_tokens_sum") >= 3


def test_a_client_that_leaves(fresh: ServerProcess) -> None:
    with raw_request(fresh, "/v1/completions", {"prompt": "hold", "n": 2}):
        fresh.wait_until(lambda: Scrape(fresh)("vllm:num_requests_running") == 2, "two running")

    fresh.wait_until(lambda: Scrape(fresh)("vllm:num_requests_running") == 0, "none running")
    seen = Scrape(fresh)
    assert seen.ends() == {"abort": 2}
    assert seen("vllm:e2e_request_latency_seconds_count") == 0
    assert seen("vllm:time_to_first_token_seconds_count") == 0


def test_refused_requests(start_server: StartServer) -> None:
    server = start_server()
    post = server.post
    answers = [
        post("/v1/completions", {"model": "m", "prompt": "say:x", "temperature": 9}),
        post("/v1/completions", {"model": "m", "prompt": "full"}),
        post("/v1/completions", {"model": "m", "prompt": "say:x"}),
        post("/v1/completions", {"model": "m", "prompt": "say:x", "stream": True}),
        post("/nobody/knows", {}),
        post("/nobody/cares", {}),
        requests.get(f"{server.url}/v1/completions", timeout=PATIENCE_S),
    ]
    assert [answer.status_code for answer in answers] == [400, 429, 200, 200, 404, 404, 405]

    seen = Scrape(server)

    for status, count in {400: 1, 429: 1, 405: 1, 200: 2, 500: 0}.items():
        assert seen("qwell:http_responses_total", **COMPLETIONS, status=status) == count
    assert seen("qwell:http_responses_total", path="other", status=404) == 2
    assert seen.ends() == {"stop": 2}


def test_the_key_guards_it_and_refusals_count(start_server: StartServer) -> None:
    server = start_server(api_keys=("k",), served_model_names=("a", "b"))
    assert requests.get(f"{server.url}/metrics", timeout=PATIENCE_S).status_code == 401

    answer = requests.get(
        f"{server.url}/metrics", headers={"Authorization": "Bearer k"}, timeout=PATIENCE_S
    )

    assert 'qwell:http_responses_total{path="/metrics",status="401"} 1.0' in answer.text
    assert 'vllm:num_requests_running{model_name="a"} 0.0' in answer.text


def test_an_engine_that_dies(fresh: ServerProcess) -> None:
    assert fresh.post("/v1/completions", {"model": "m", "prompt": "crash"}).status_code == 503

    assert Scrape(fresh)("qwell:engine_up") == 0
    fresh.wait_for_health("ok")
    seen = Scrape(fresh)
    assert seen.ends() == {"error": 1}
    assert seen("qwell:engine_starts_total") == 2
    assert seen("qwell:engine_up") == 1


def test_it_can_be_watched_to_its_end(fresh: ServerProcess) -> None:
    with raw_request(fresh, "/v1/completions", {"prompt": "hold"}):
        fresh.wait_until(lambda: Scrape(fresh)("vllm:num_requests_running") == 1, "one running")
        os.kill(fresh.process.pid, signal.SIGTERM)
        fresh.wait_for_health("draining")
        assert Scrape(fresh)("vllm:num_requests_running") == 1


@pytest.fixture(scope="module")
def computing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A random model that computes."""
    folder = tmp_path_factory.mktemp("computing") / "checkpoint"
    backend = tiny_backend()
    make_checkpoint(folder, vocab_size=backend.get_vocab_size() + 20)
    backend.save(str(folder / "tokenizer.json"))
    with ServerProcess(folder, folder.with_name("log"), worker=()) as running:
        yield running


def test_the_engine_tells_of_itself(computing: ServerProcess) -> None:
    prompt = "the same beginning, longer than a block or two"
    for _ in range(2):
        answer = computing.complete(prompt, max_tokens=8, ignore_eos=True, temperature=0)
    usage = answer["usage"]

    seen = Scrape(computing)

    assert seen("vllm:prefix_cache_queries_total") == 2 * usage["prompt_tokens"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert seen("vllm:prefix_cache_hits_total") == cached > 0
    assert seen("qwell:engine_steps_total") >= 8
    assert seen("qwell:engine_step_seconds_total", part="forward") > 0
    assert seen("vllm:kv_cache_usage_perc") == 0
    prefill_s = seen("vllm:request_prefill_time_seconds_sum")
    assert 0 < prefill_s < seen("vllm:time_to_first_token_seconds_sum")
    long = {"prompt": "x", "max_tokens": 250, "ignore_eos": True, "n": 32}
    with raw_request(computing, "/v1/completions", long):
        computing.wait_until(
            lambda: 0 < Scrape(computing)("vllm:kv_cache_usage_perc") <= 1, "use of the cache"
        )


def test_the_page_lists_them_all(computing: ServerProcess) -> None:
    page = PAGE.read_text()
    names = [name for name in Scrape(computing).families if name.startswith(("vllm:", "qwell:"))]

    assert len(names) > 20
    assert [name for name in names if f"`{name.removesuffix('_created')}" not in page] == []
