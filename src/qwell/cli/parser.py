"""Options of every command, and what argparse itself cannot check about them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

from qwell import __version__
from qwell.cli.bench_options import (
    add_bench_model_options,
    add_bench_serve_options,
    add_bench_soak_options,
)
from qwell.cli.model_options import (
    add_kv_cache_dtype,
    add_model,
    add_model_options,
    add_threads,
    output_file,
    positive,
    settle_device,
    weight_formats,
    whole,
)
from qwell.cli.sampling import NUMBERS, given_sampling
from qwell.cli.serve_options import add_serve_options
from qwell.runtime.engine_options import Weights
from qwell.runtime.errors import RequestError

MIN_WINDOW = 3  # one position is compared


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; `run` is the function of the command. Exits with status 2 on a usage error."""
    parser = argparse.ArgumentParser(
        prog="qwell", description="Run Qwen models on hand-written kernels.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"qwell {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    adders = (
        _add_serve,
        _add_generate,
        _add_chat,
        _add_batch,
        _add_pack,
        _add_demo_model,
        _add_quality,
        _add_bench,
    )
    for add in adders:
        add(commands)
    arguments = parser.parse_args(argv)
    if "device" in arguments:
        settle_device(arguments)
    try:
        given_sampling(arguments)
    except RequestError as error:
        arguments.fail(f"argument --{str(error.param).replace('_', '-')}: {error}")
    return arguments


# The commands are imported when they run: torch alone takes seconds, and neither `qwell -h` nor
# the server process needs it.


def _serve(arguments: argparse.Namespace) -> int:
    from qwell.cli.serve import run

    return run(arguments)


def _generate(arguments: argparse.Namespace) -> int:
    from qwell.cli.generate import run

    return run(arguments)


def _chat(arguments: argparse.Namespace) -> int:
    from qwell.cli.chat import run

    return run(arguments)


def _batch(arguments: argparse.Namespace) -> int:
    from qwell.cli.batch import run

    return run(arguments)


def _pack(arguments: argparse.Namespace) -> int:
    from qwell.cli.pack import run

    return run(arguments)


def _demo_model(_: argparse.Namespace) -> int:
    from qwell.runtime.demo_model import demo_model_dir

    print(demo_model_dir())
    return 0


def _quality(arguments: argparse.Namespace) -> int:
    from qwell.cli.quality import run

    return run(arguments)


def _bench_kernels(arguments: argparse.Namespace) -> int:
    from qwell.cli.bench import run_kernels

    return run_kernels(arguments)


def _bench_gpu(arguments: argparse.Namespace) -> int:
    from qwell.cli.bench_gpu import run_gpu

    return run_gpu(arguments)


def _bench_model(arguments: argparse.Namespace) -> int:
    from qwell.cli.bench_model import run_model

    return run_model(arguments)


def _bench_serve(arguments: argparse.Namespace) -> int:
    from qwell.cli.bench_serve import run_serve

    return run_serve(arguments)


def _bench_soak(arguments: argparse.Namespace) -> int:
    from qwell.cli.bench_soak import run_soak

    return run_soak(arguments)


def _make_checkpoint(arguments: argparse.Namespace) -> int:
    from qwell.cli.bench_gpu import run_make_checkpoint

    return run_make_checkpoint(arguments)


def _add_serve(commands: Any) -> None:
    parser = _add_command(commands, "serve", _serve, "serve the OpenAI API over HTTP")
    add_model_options(parser)
    add_serve_options(parser)


def _add_generate(commands: Any) -> None:
    parser = _add_command(commands, "generate", _generate, "complete one prompt")
    add_model_options(parser)
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="text to go on from")
    _add_sampling_options(parser, max_tokens="most tokens to generate (default: 256)")
    parser.add_argument(
        "--seed", type=int, help="same seed, same text (default: a new one every time)"
    )
    parser.add_argument(
        "--stop", metavar="TEXT", action="append", help="end before this text; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def _add_chat(commands: Any) -> None:
    parser = _add_command(commands, "chat", _chat, "talk to a model in the terminal")
    add_model_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    _add_sampling_options(parser, max_tokens="most tokens of one answer (default: 2048)")


def _add_batch(commands: Any) -> None:
    summary = "answer the requests of a file, in OpenAI's batch format; goes on where it stopped"
    parser = _add_command(commands, "batch", _batch, summary)
    parser.add_argument(
        "input", metavar="IN.jsonl", help="a request a line: custom_id, method, url, body"
    )
    parser.add_argument(
        "output", metavar="OUT.jsonl", help="a result a line; lines that have theirs are left out"
    )
    add_model_options(parser)


def _add_pack(commands: Any) -> None:
    parser = _add_command(
        commands, "pack", _pack, "pack weights for CPUs ahead of the first start; print the file"
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument(
        "model", metavar="MODEL", nargs="?", help="folder of a checkpoint, or a Hugging Face id"
    )
    task.add_argument(
        "--list", action="store_true", help="print the files that are kept, those used last first"
    )
    task.add_argument(
        "--remove-unused",
        metavar="DAYS",
        type=whole,
        help="remove files that no start has used for so many days; 0 removes all",
    )
    parser.add_argument(
        "--weights",
        choices=get_args(Weights),
        default="auto",
        help="format to pack to (default: auto, the model's own)",
    )


def _add_demo_model(commands: Any) -> None:
    _add_command(
        commands, "demo-model", _demo_model, "print the demo model's folder; make it if missing"
    )


def _add_quality(commands: Any) -> None:
    parser = _add_command(
        commands, "quality", _quality, "say what formats of the weights do to a model's predictions"
    )
    add_model(parser)
    parser.add_argument(
        "--reference-weights",
        choices=get_args(Weights),
        default="auto",
        help="format to compare with, beside the KV cache that the model has without "
        "--kv-cache-dtype (default: auto, the checkpoint's own)",
    )
    parser.add_argument(
        "--weights",
        metavar="FORMAT,...",
        type=weight_formats,
        required=True,
        help=f"formats to judge, of {', '.join(get_args(Weights))}",
    )
    parser.add_argument("--text", metavar="FILE", required=True, help="text to predict, UTF-8")
    parser.add_argument(
        "--window",
        metavar="N",
        type=_window,
        default=512,
        help="tokens that are predicted together; those of the first half are only context "
        "(default: 512)",
    )
    add_threads(parser)
    add_kv_cache_dtype(parser)
    parser.add_argument(
        "--json", metavar="FILE", type=output_file, help="write the figures to this file as well"
    )


def _add_bench(commands: Any) -> None:
    summary = "measure what qwell runs on"
    bench = commands.add_parser(
        "bench", help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False
    )
    subjects = bench.add_subparsers(title="subjects", required=True, metavar="SUBJECT")
    parser = _add_command(subjects, "kernels", _bench_kernels, "report on the Triton kernels")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument(
        "--static",
        action="store_true",
        help="compile them, which needs no GPU, and report what their machine code tells",
    )
    task.add_argument(
        "--tune", metavar="OP", help="measure on this GPU and write an op's launch table anew"
    )
    parser.add_argument(
        "--arch",
        help="GPU to compile for, such as sm_80 or gfx942; all takes one of every instruction "
        "set (default: sm_90)",
    )
    parser.add_argument("--op", help="report on one op alone")
    parser.add_argument(
        "--json", metavar="FILE", type=output_file, help="write the report to this file as well"
    )
    parser = _add_command(
        subjects, "gpu", _bench_gpu, "check and measure everything on this GPU, in minutes"
    )
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="folder that gpu.json is written to"
    )
    parser = _add_command(
        subjects, "model", _bench_model, "measure a model's speed on this CPU, beside a peer's"
    )
    add_bench_model_options(parser)
    parser = _add_command(
        subjects, "serve", _bench_serve, "measure a server under load, beside another"
    )
    add_bench_serve_options(parser)
    parser = _add_command(
        subjects, "soak", _bench_soak, "keep a server busy, and see that nothing is lost or kept"
    )
    add_bench_soak_options(parser)
    parser = _add_command(
        subjects,
        "make-checkpoint",
        _make_checkpoint,
        "write random weights of a true size to measure on",
    )
    parser.add_argument("name", metavar="NAME", help="such as qwen3-0.6b or qwen2.5-7b")
    parser.add_argument("folder", metavar="DIR", help="a new folder")


def _add_command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(run=run, fail=parser.error)
    return parser


def _add_sampling_options(parser: argparse.ArgumentParser, *, max_tokens: str) -> None:
    parser.add_argument("--max-tokens", metavar="N", type=positive, help=max_tokens)
    for name, (kind, metavar, meaning) in NUMBERS.items():
        option = "--" + name.replace("_", "-")
        meaning += " (default: the model's own)"
        parser.add_argument(option, metavar=metavar, type=kind, help=meaning)


def _window(text: str) -> int:
    value = whole(text)
    if value < MIN_WINDOW:
        raise argparse.ArgumentTypeError(f"must be at least {MIN_WINDOW}, got {text!r}")
    return value
