"""What the clients saw, as figures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from qwell.bench.serving.client import Outcome
from qwell.bench.serving.load import Load
from qwell.bench.serving.memory import Memory
from qwell.bench.spread import Spread


class Percentiles(msgspec.Struct, frozen=True):
    """In seconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles | None:
        """None of no values."""
        ordered = sorted(values)
        return cls(*(_rank(ordered, share) for share in (0.5, 0.9, 0.99))) if ordered else None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a user puts up with, in seconds; None is any time.

    Attributes:
        first_token: until it.
        between_tokens: mean of an answer.
    """

    first_token: float | None = None
    between_tokens: float | None = None

    def hold(self, outcome: Outcome) -> bool:
        """Whether an answer came, and in time."""
        return (
            outcome.error is None
            and _within(outcome.first_token, self.first_token)
            and _within(outcome.between_tokens, self.between_tokens)
        )


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of all requests under one load. Times are those of the requests that succeeded.

    Attributes:
        requests, succeeded: how many.
        errors: how many of each kind; "429" is a server that is full.
        request_rate, output_tokens_per_second: of those that succeeded.
        goodput: requests a second within the limits.
        first_token: TTFT.
        between_tokens: mean of each answer (ITL); None where no answer had two tokens.
        longest_gap: the longest pause between two pieces of each answer.
        total: E2E.
        first_token_by_turn: TTFT of the first turns of conversations, of the second, ...
        mean_prompt_tokens: as the server counted them.
        cached_by_turn: share of the prompt tokens of first turns, second ones, ... that the server
            had computed before.
    """

    requests: int
    succeeded: int
    errors: dict[str, int]
    request_rate: float
    output_tokens_per_second: float
    goodput: float
    first_token: Percentiles | None
    between_tokens: Percentiles | None
    longest_gap: Percentiles | None
    total: Percentiles | None
    first_token_by_turn: list[Percentiles | None]
    mean_prompt_tokens: float
    cached_by_turn: list[float]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], seconds: float, limits: Limits) -> Figures:
        """Of requests that took so many seconds together."""
        good = [outcome for outcome in outcomes if outcome.error is None]
        turns = max((outcome.turn for outcome in outcomes), default=-1) + 1
        return cls(
            requests=len(outcomes),
            succeeded=len(good),
            errors=dict(Counter(o.error for o in outcomes if o.error is not None)),
            request_rate=len(good) / seconds,
            output_tokens_per_second=sum(o.output_tokens for o in good) / seconds,
            goodput=sum(map(limits.hold, outcomes)) / seconds,
            first_token=Percentiles.of(o.first_token for o in good),
            between_tokens=Percentiles.of(
                o.between_tokens for o in good if o.between_tokens is not None
            ),
            longest_gap=Percentiles.of(o.longest_gap for o in good),
            total=Percentiles.of(o.total for o in good),
            first_token_by_turn=[
                Percentiles.of(o.first_token for o in good if o.turn == turn)
                for turn in range(turns)
            ],
            mean_prompt_tokens=statistics.mean(o.prompt_tokens for o in good) if good else 0.0,
            cached_by_turn=[_cached([o for o in good if o.turn == turn]) for turn in range(turns)],
        )


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one server, once.

    Attributes:
        server: its name in the report.
        seconds: from the first request to the end of the last answer.
        client_seconds: of a processor, that the clients took meanwhile.
        memory: of a server that was started for the run; None of others.
    """

    server: str
    load: Load
    seconds: float
    client_seconds: float
    outcomes: list[Outcome]
    memory: Memory | None = None


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """The first server's figures to the second's in the run beside it: of p50 where there are
    percentiles. More is better of the first, less of the others."""

    output_tokens_per_second: Spread | None
    first_token: Spread | None
    between_tokens: Spread | None
    total: Spread | None
    first_token_by_turn: list[Spread | None]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Figures, Figures]]) -> Ratios:
        """Of figures of both, pair by pair; None where either lacks one."""
        rates = [(a.output_tokens_per_second, b.output_tokens_per_second) for a, b in pairs]
        return cls(
            output_tokens_per_second=_spread(rates),
            first_token=_spread([(_p50(a.first_token), _p50(b.first_token)) for a, b in pairs]),
            between_tokens=_spread(
                [(_p50(a.between_tokens), _p50(b.between_tokens)) for a, b in pairs]
            ),
            total=_spread([(_p50(a.total), _p50(b.total)) for a, b in pairs]),
            first_token_by_turn=[
                _spread([(_p50(ours), _p50(theirs)) for ours, theirs in turn])
                for turn in zip(*map(_by_turn, pairs), strict=False)
            ],
        )


def _cached(outcomes: Sequence[Outcome]) -> float:
    prompts = sum(outcome.prompt_tokens for outcome in outcomes)
    return sum(outcome.cached_tokens for outcome in outcomes) / prompts if prompts else 0.0


def _by_turn(
    pair: tuple[Figures, Figures],
) -> list[tuple[Percentiles | None, Percentiles | None]]:
    ours, theirs = pair
    return list(zip(ours.first_token_by_turn, theirs.first_token_by_turn, strict=False))


def _p50(percentiles: Percentiles | None) -> float:
    return 0.0 if percentiles is None else percentiles.p50


def _spread(pairs: Sequence[tuple[float, float]]) -> Spread | None:
    ratios = [ours / theirs for ours, theirs in pairs if ours and theirs]
    return Spread.of(ratios) if ratios else None


def _within(seconds: float | None, limit: float | None) -> bool:
    return seconds is None or limit is None or seconds <= limit


def _rank(ordered: Sequence[float], share: float) -> float:
    """Between the two values around it, in proportion."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
