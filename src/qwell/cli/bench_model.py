"""`qwell bench model`."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from qwell.bench.model.cases import all_cases
from qwell.bench.model.peer import Peer
from qwell.bench.model.report import Report, heading, weights_table
from qwell.bench.model.run import measure
from qwell.kernels.errors import KernelError
from qwell.kernels.native.ceilings import CeilingProbe
from qwell.kernels.native.runner import choose_isa
from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.cpu import count_cores
from qwell.runtime.engine_options import EngineOptions


def run_model(arguments: argparse.Namespace) -> int:
    """Measure and print a table for each format of weights as soon as it is done."""
    cases = all_cases(arguments.prefill, arguments.decode, arguments.depth, arguments.batch)
    if not cases:
        arguments.fail("--prefill 0 and --decode 0 leave nothing to measure")
    if arguments.compare_args and arguments.compare is None:
        arguments.fail("argument --compare-args: goes with --compare")
    threads = arguments.threads or count_cores().threads
    peer = None
    if arguments.compare is not None:
        program, gguf = arguments.compare
        peer = Peer(program, gguf, threads, arguments.compare_args)
    options = EngineOptions(
        model=str(resolve_model(arguments.model)),
        device="cpu",
        threads=threads,
        isa=arguments.isa,
        kv_cache_dtype=arguments.kv_cache_dtype,
        eager=arguments.eager,
        kernels=dict(arguments.kernel),
    )
    try:
        print(heading(options), flush=True)
    except KernelError as error:
        arguments.fail(f"argument --isa: {error}")
    probe = CeilingProbe(threads, isa=choose_isa(options.isa))
    results = []
    for result in measure(options, arguments.weights, cases, arguments.runs, probe, peer):
        print(weights_table(result), flush=True)
        results.append(result)
    if arguments.json is not None:
        report = Report.of(options, peer, results)
        text = msgspec.json.format(msgspec.json.encode(report), indent=1)
        Path(arguments.json).write_bytes(text + b"\n")
    return 0
