"""What was measured, and the figures that follow from it."""

from __future__ import annotations

import statistics

import msgspec

from qwell.bench.model.cases import Case
from qwell.bench.model.messages import Lap, Started
from qwell.bench.spread import Spread
from qwell.bench.work import Ceilings


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A case run once by qwell, then by the peer, and the machine's ceilings just before.

    Attributes:
        ceilings: of the machine, with as many threads.
        peer: the peer's tokens a second; None without one that can run the case.
    """

    ceilings: Ceilings
    lap: Lap
    peer: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.lap.tokens / self.lap.seconds

    @property
    def bandwidth_share(self) -> float:
        """Part of the read bandwidth that the bytes which the steps need took."""
        return self.lap.bytes_moved / self.lap.seconds / self.ceilings.bandwidth

    @property
    def flops_share(self) -> float:
        """Part of the fp32 FMA rate; integer dot products may pass it."""
        return self.lap.flops / self.lap.seconds / self.ceilings.flops


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of all runs of a case.

    Attributes:
        ratio: qwell's tokens a second to the peer's in the same run.
    """

    tokens_per_second: Spread
    bytes_per_token: float
    bandwidth_share: float
    flops_share: float
    resident_bytes: int | None
    peer_tokens_per_second: Spread | None = None
    ratio: Spread | None = None


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """A case and its runs.

    Attributes:
        peer_refusal: why the peer did not run it; None if it did or there is none.
    """

    case: Case
    runs: list[Run]
    peer_refusal: str | None = None

    def figures(self) -> Figures:
        """Medians over the runs, and spreads where they matter."""
        runs = self.runs
        pairs = [(run.tokens_per_second, run.peer) for run in runs if run.peer is not None]
        lap = runs[-1].lap
        return Figures(
            tokens_per_second=Spread.of(run.tokens_per_second for run in runs),
            bytes_per_token=lap.bytes_moved / lap.tokens,
            bandwidth_share=statistics.median(run.bandwidth_share for run in runs),
            flops_share=statistics.median(run.flops_share for run in runs),
            resident_bytes=lap.resident_bytes,
            peer_tokens_per_second=Spread.of(peer for _, peer in pairs) if pairs else None,
            ratio=Spread.of(ours / peer for ours, peer in pairs) if pairs else None,
        )


class WeightsResult(msgspec.Struct, frozen=True, kw_only=True):
    """A process with one format of weights.

    Attributes:
        first_token_seconds: from the start of the process, imports and loading included.
    """

    weights: str
    started: Started
    first_token_seconds: float
    cases: list[CaseResult]
