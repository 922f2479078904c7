"""The figures of /metrics: requests as they go by, answers by status, and the engine as it is.

A name is vLLM's (`vllm:`) where the meaning is, as dashboards and autoscalers go by the whole
name; what only qwell has is `qwell:`. What happens for every token costs about two microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwell import __version__
from qwell.runtime.errors import EngineDeadError
from qwell.runtime.messages import EngineInfo, StepStats, TokenOutput

EndReason = Literal["stop", "length", "abort", "error"]

# Bounds as vLLM's, so that quantiles over servers of both kinds make sense.
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))


class Metrics:
    """What one server counts of the requests that its engine is given.

    Attributes:
        registry: of this server alone; it also has the figures of the process.
        model_name: the label that all figures of the model bear.
    """

    def __init__(self, model_name: str) -> None:
        self.registry = registry = CollectorRegistry()
        self.model_name = model_name
        ProcessCollector(registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], registry=registry).labels(model_name)

        def histogram(name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
            family = Histogram(name, text, ["model_name"], registry=registry, buckets=bounds)
            return family.labels(model_name)

        self.first_token_s = histogram(
            "vllm:time_to_first_token_seconds", "Until the first token.", _FIRST_TOKEN_S
        )
        self.queue_s = histogram(
            "vllm:request_queue_time_seconds", "Until the request first ran.", _REQUEST_S
        )
        self.prefill_s = histogram(
            "vllm:request_prefill_time_seconds", "From then to the first token.", _REQUEST_S
        )
        self.decode_s = histogram(
            "vllm:request_decode_time_seconds",
            "From the first token to the last, for each request that ended.",
            _REQUEST_S,
        )
        self.inter_token_s = histogram(
            "vllm:inter_token_latency_seconds",
            "Between two outputs of a request; guessed tokens come several at once.",
            _TOKEN_S,
        )
        self.mean_token_s = histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean time of a token after the first, for each request that ended.",
            _TOKEN_S,
        )
        self.request_s = histogram(
            "vllm:e2e_request_latency_seconds", "Until the end of the request.", _REQUEST_S
        )
        self.request_prompt_tokens = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of requests that ended.", _TOKENS
        )
        self.request_generation_tokens = histogram(
            "vllm:request_generation_tokens", "Tokens that such requests generated.", _TOKENS
        )
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens, cached ones too.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        ends = Counter(
            "vllm:request_success",
            "Requests that ended: stop, length, abort (by the client), error.",
            ["model_name", "finished_reason"],
            registry=registry,
        )
        reasons: tuple[EndReason, ...] = ("stop", "length", "abort", "error")
        self.ends = {reason: ends.labels(model_name, reason) for reason in reasons}
        self.responses = Counter(
            "qwell:http_responses",
            "Answers begun, by path (other: none of the server's) and status.",
            ["path", "status"],
            registry=registry,
        )


class Watch:
    """A request under watch: counts the events that it passes on to `sink`."""

    def __init__(
        self,
        metrics: Metrics,
        prompt_tokens: int,
        sink: Callable[..., None],
    ) -> None:
        self._metrics = metrics
        self._prompt_tokens = prompt_tokens
        self._sink = sink
        self._tokens = 0
        self._started = time.monotonic()
        self._first = self._last = 0.0

    def __call__(self, event: object) -> None:
        if isinstance(event, TokenOutput):
            self._observe(event)
        elif isinstance(event, EngineDeadError):
            self._metrics.ends["error"].inc()
        self._sink(event)

    def dropped(self, reason: EndReason) -> None:
        """The server wants no more of it, as its client is gone or a stop string has come."""
        if reason == "abort":
            self._metrics.ends[reason].inc()
        else:
            self._ended(reason)

    def _observe(self, output: TokenOutput) -> None:
        metrics = self._metrics
        count = len(output.token_ids)
        if count:
            now = time.monotonic()
            if self._tokens:
                metrics.inter_token_s.observe(now - self._last)
            else:
                self._first = now
                first_token_s = now - self._started
                metrics.first_token_s.observe(first_token_s)
                metrics.prefill_s.observe(output.prefill_s)
                metrics.queue_s.observe(max(0.0, first_token_s - output.prefill_s))
                metrics.prompt_tokens.inc(self._prompt_tokens)
            self._last = now
            self._tokens += count
            metrics.generation_tokens.inc(count)
        if output.finish_reason is not None:
            self._ended(output.finish_reason)
        elif output.error is not None:
            metrics.ends["error"].inc()

    def _ended(self, reason: EndReason) -> None:
        metrics = self._metrics
        metrics.ends[reason].inc()
        metrics.request_s.observe(time.monotonic() - self._started)
        metrics.request_prompt_tokens.observe(self._prompt_tokens)
        metrics.request_generation_tokens.observe(self._tokens)
        if self._tokens:
            metrics.decode_s.observe(self._last - self._first)
        if self._tokens > 1:
            metrics.mean_token_s.observe((self._last - self._first) / (self._tokens - 1))


class EngineFigures:
    """A collector of what the engine says of itself, read when somebody asks.

    `look` gives the number of engines that have come up, what the running one is (None while
    there is none), and how it is. Counters begin at 0 with each engine.
    """

    def __init__(
        self, model_name: str, look: Callable[[], tuple[int, EngineInfo | None, StepStats]]
    ) -> None:
        self._labels = {"model_name": model_name}
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """All families."""
        starts, info, stats = self._look()
        usage = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        gauges = (
            ("vllm:num_requests_running", "Requests in the running batch.", stats.running),
            ("vllm:num_requests_waiting", "Requests in the queue.", stats.waiting),
            ("vllm:kv_cache_usage_perc", "Part of the cache in use; 1 is all of it.", usage),
            ("qwell:engine_up", "1 while an engine is ready, else 0.", float(info is not None)),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(name, text, labels=list(self._labels))
            gauge.add_metric(list(self._labels.values()), value)
            yield gauge
        counters = (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.prompt_tokens),
            ("vllm:prefix_cache_hits", "Those found in the cache.", stats.prefix_hit_tokens),
            (
                "vllm:num_preemptions",
                "Requests computed again for want of room.",
                stats.preemptions,
            ),
            ("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead.", stats.drafted_tokens),
            ("vllm:spec_decode_num_accepted_tokens", "Right ones of them.", stats.accepted_tokens),
            ("qwell:engine_steps", "Steps.", stats.steps),
            ("qwell:engine_starts", "Engines that came up; more than 1: some died.", starts),
        )
        for name, text, count in counters:
            counter = CounterMetricFamily(name, text, labels=list(self._labels))
            counter.add_metric(list(self._labels.values()), count)
            yield counter
        parts = CounterMetricFamily(
            "qwell:engine_step_seconds", "What steps took.", labels=[*self._labels, "part"]
        )
        seconds = {
            "schedule": stats.schedule_s,
            "forward": stats.forward_s,
            "sample": stats.sample_s,
            "rest": stats.rest_s,
        }
        for part, value in seconds.items():
            parts.add_metric([*self._labels.values(), part], value)
        yield parts
        yield self._info(info)

    def _info(self, info: EngineInfo | None) -> Metric:
        facts = {"version": __version__}
        if info is not None:
            facts |= {
                "device": info.device,
                "dtype": info.dtype,
                "weights": info.weights,
                "max_model_len": str(info.max_model_len),
                "kv_cache_tokens": str(info.kv_cache_tokens),
            }
        facts = {**self._labels, **facts}
        gauge = GaugeMetricFamily("qwell:info", "Always 1; see the labels.", labels=list(facts))
        gauge.add_metric(list(facts.values()), 1)
        return gauge


class CountResponses:
    """ASGI middleware: count answers by path and status. Paths not in `paths` count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.responses.labels(path, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted_send)
