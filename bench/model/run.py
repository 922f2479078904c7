"""Measures the cases with each format of weights, in turns with the peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from qwell.bench.model.cases import Case
from qwell.bench.model.peer import Peer
from qwell.bench.model.process import WorkerProcess
from qwell.bench.model.results import CaseResult, Run, WeightsResult
from qwell.bench.work import Ceilings
from qwell.kernels.native.ceilings import CeilingProbe
from qwell.runtime.engine_options import EngineOptions, Weights

# Of as many looks at a ceiling the best one counts: what is in the way only ever lowers it.
_LOOKS = 3

_LEAST_LENGTH = 64
"""Of a sequence that the engine must take, whatever the cases need: its first token is drawn."""


def measure(
    options: EngineOptions,
    weights: Sequence[Weights],
    cases: Sequence[Case],
    runs: int,
    probe: CeilingProbe,
    peer: Peer | None = None,
) -> Iterator[WeightsResult]:
    """One process a format of weights, one after the other.

    Args:
        options: of the engines, on the CPU; the format of the weights and the sizes follow from the
            rest.
        weights: formats.
        cases: at least one.
        runs: of each case; each is followed by one of the peer and comes after a look at the
            ceilings, so that what changes on the machine changes all of them.
        probe: measures the ceilings, with the threads that the engines have.
        peer: to compare with.

    Raises:
        EngineStartError, EngineDeadError: see `WorkerProcess`.
        PeerError: the peer failed.
    """
    longest = max(_LEAST_LENGTH, *(case.length for case in cases))
    sized = msgspec.structs.replace(
        options,
        max_model_len=longest,
        kv_cache_tokens=max(longest, *(case.cache_tokens for case in cases)),
    )
    for name in weights:
        with WorkerProcess(msgspec.structs.replace(sized, weights=name)) as worker:
            yield WeightsResult(
                weights=name,
                started=worker.started,
                first_token_seconds=worker.first_token_seconds,
                cases=[_measure_case(worker, case, runs, probe, peer) for case in cases],
            )


def _measure_case(
    worker: WorkerProcess, case: Case, runs: int, probe: CeilingProbe, peer: Peer | None
) -> CaseResult:
    refusal = None if peer is None else peer.refusal(case)
    measured = []
    for _ in range(runs):
        ceilings = Ceilings(
            bandwidth=max(probe.read_bandwidth() for _ in range(_LOOKS)),
            flops=max(probe.fma_rate() for _ in range(_LOOKS)),
        )
        lap = worker.run(case)
        peers = peer.tokens_per_second(case) if peer is not None and refusal is None else None
        measured.append(Run(ceilings=ceilings, lap=lap, peer=peers))
    return CaseResult(case=case, runs=measured, peer_refusal=refusal)
