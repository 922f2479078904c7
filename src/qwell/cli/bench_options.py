"""Options of the measurements that have many."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from qwell.cli.model_options import (
    add_isa,
    add_kernel,
    add_kv_cache_dtype,
    add_model,
    add_model_options,
    add_threads,
    list_of,
    output_file,
    positive,
    weight_formats,
    whole,
)
from qwell.runtime.engine_options import Weights


def add_bench_model_options(parser: argparse.ArgumentParser) -> None:
    """Those of `qwell bench model`."""
    add_model(parser)
    parser.add_argument(
        "--weights",
        metavar="FORMAT,...",
        type=weight_formats,
        default=("auto",),
        help=f"formats to measure, of {', '.join(get_args(Weights))} (default: auto)",
    )
    _add_count(parser, "prefill", 512, "tokens of a prompt, 0 for none", whole)
    _add_count(parser, "decode", 64, "tokens that each sequence decodes, 0 for none", whole)
    parser.add_argument(
        "--depth",
        metavar="N,...",
        type=list_of(whole),
        default=(0,),
        help="tokens in the cache before (default: 0)",
    )
    parser.add_argument(
        "--batch",
        metavar="N,...",
        type=list_of(positive),
        default=(1,),
        help="sequences that decode at once (default: 1)",
    )
    add_threads(parser)
    add_isa(parser)
    add_kv_cache_dtype(parser)
    parser.add_argument(
        "--runs", metavar="N", type=positive, default=5, help="of each measurement (default: 5)"
    )
    parser.add_argument("--eager", action="store_true", help="run every step op by op")
    add_kernel(parser)
    parser.add_argument(
        "--compare",
        metavar="LLAMA_BENCH,GGUF",
        type=_program_and_model,
        help="take turns with llama-bench of llama.cpp or ik_llama.cpp and this model",
    )
    parser.add_argument(
        "--compare-args",
        metavar="ARGS",
        type=shlex.split,
        default=[],
        help='more arguments for llama-bench, as --compare-args="-rtr 1"',
    )
    parser.add_argument(
        "--json", metavar="FILE", type=output_file, help="write every measurement to this file"
    )


def add_bench_serve_options(parser: argparse.ArgumentParser) -> None:
    """Those of `qwell bench serve`."""
    parser.add_argument(
        "--url",
        metavar="URL_OR_COMMAND",
        help="measure this server instead of starting one: its address, or a command to start it "
        "with {port} in it",
    )
    parser.add_argument(
        "--compare",
        metavar="URL_OR_COMMAND",
        help="take turns with a second server, named as by --url",
    )
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--clients",
        metavar="N,...",
        type=list_of(positive),
        help="clients that each ask again once they are answered (default: 1)",
    )
    load.add_argument(
        "--rate",
        metavar="R,...",
        type=list_of(_positive_number),
        help="requests that arrive in a second, whether others are answered or not",
    )
    parser.add_argument(
        "--requests",
        metavar="N",
        type=positive,
        default=32,
        help="conversations under each load (default: 32)",
    )
    parser.add_argument(
        "--dataset",
        choices=("random", "chat", "repetitive"),
        default="random",
        help="random tokens, conversations with one system prompt, or a phrase over and over "
        "(default: random)",
    )
    parser.add_argument(
        "--endpoint",
        choices=("completions", "chat"),
        help="of the API (default: chat for the dataset of that name, else completions)",
    )
    _add_count(parser, "input-tokens", 128, "of a prompt, or of what a user says", positive)
    _add_count(parser, "output-tokens", 64, "of an answer", positive)
    _add_count(parser, "system-tokens", 512, "of the system prompt of chat", positive)
    _add_count(parser, "turns", 3, "of a conversation of chat", positive)
    parser.add_argument(
        "--spread",
        metavar="SHARE",
        type=_share,
        default=0.0,
        help="draw lengths from as much less to as much more, 0 to 1 (default: 0)",
    )
    for name, what in (("ttft", "first token"), ("itl", "tokens, in the mean of an answer")):
        parser.add_argument(
            f"--{name}-limit-ms",
            metavar="MS",
            type=_positive_number,
            help=f"longest wait for the {what} that counts as good (default: none)",
        )
    parser.add_argument(
        "--runs", metavar="N", type=positive, default=1, help="of each load (default: 1)"
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=whole,
        default=0,
        help="of prompts, lengths and arrivals (default: 0)",
    )
    parser.add_argument(
        "--json", metavar="FILE", type=output_file, help="write every request to this file"
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=output_file,
        help="draw latency against load, as PNG, SVG or PDF",
    )
    add_model_options(parser)


def add_bench_soak_options(parser: argparse.ArgumentParser) -> None:
    """Those of `qwell bench soak`."""
    parser.add_argument(
        "--minutes",
        metavar="N",
        type=_positive_number,
        default=30.0,
        help="how long (default: 30)",
    )
    parser.add_argument(
        "--clients", metavar="N", type=positive, default=8, help="at once (default: 8)"
    )
    parser.add_argument(
        "--seed", metavar="N", type=whole, default=0, help="of what they ask (default: 0)"
    )
    add_model_options(parser)


def _add_count(
    parser: argparse.ArgumentParser,
    name: str,
    default: int,
    what: str,
    number: Callable[[str], int],
) -> None:
    parser.add_argument(
        f"--{name}",
        metavar="N",
        type=number,
        default=default,
        help=f"{what} (default: {default})",
    )


def _program_and_model(text: str) -> tuple[Path, Path]:
    program, comma, model = text.partition(",")
    if not (program and comma and model):
        raise argparse.ArgumentTypeError(f"must be LLAMA_BENCH,GGUF, got {text!r}")
    return Path(program), Path(model)


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be a number of 0 to 1, got {text!r}")
    return value
