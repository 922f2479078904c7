"""Options of every command, and what argparse itself cannot check about them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from qwell import __version__
from qwell.cli.model_options import (
    add_kernel,
    add_kv_cache_dtype,
    add_model,
    add_model_options,
    add_once,
    add_threads,
    positive,
    settle_device,
    weight_formats,
)
from qwell.cli.sampling import given_sampling
from qwell.runtime.engine_options import Weights
from qwell.runtime.errors import RequestError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
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


def _make_checkpoint(arguments: argparse.Namespace) -> int:
    from qwell.cli.bench_gpu import run_make_checkpoint

    return run_make_checkpoint(arguments)


def _add_serve(commands: Any) -> None:
    parser = _add_command(commands, "serve", _serve, "serve the OpenAI API over HTTP")
    add_model_options(parser)
    add_once(
        parser, "--host", "--server-name", help=f"address to listen on (default: {DEFAULT_HOST})"
    )
    add_once(
        parser,
        "--port",
        "--server-port",
        type=_port,
        help=f"TCP port, 0 for any free one (default: {DEFAULT_PORT})",
    )
    parser.add_argument(
        "--served-model-name",
        metavar="NAME",
        action="append",
        default=[],
        help="model id that clients may ask for; may be repeated (default: any id)",
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help="key that clients must send as a bearer token"
    )
    parser.add_argument(
        "--api-auth",
        metavar="USER:PASSWORD",
        type=_user_and_password,
        help="user and password that clients must send (HTTP Basic)",
    )


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


def _add_pack(commands: Any) -> None:
    parser = _add_command(
        commands, "pack", _pack, "pack weights for CPUs ahead of the first start; print the file"
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder of a checkpoint, or a Hugging Face id"
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
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file as well")


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
    parser.add_argument("--json", metavar="FILE", help="write the report to this file as well")
    parser = _add_command(
        subjects, "gpu", _bench_gpu, "check and measure everything on this GPU, in minutes"
    )
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="folder that gpu.json is written to"
    )
    _add_bench_model(subjects)
    parser = _add_command(
        subjects,
        "make-checkpoint",
        _make_checkpoint,
        "write random weights of a true size to measure on",
    )
    parser.add_argument("name", metavar="NAME", help="such as qwen3-0.6b or qwen2.5-7b")
    parser.add_argument("folder", metavar="DIR", help="a new folder")


def _add_bench_model(subjects: Any) -> None:
    parser = _add_command(
        subjects, "model", _bench_model, "measure a model's speed on this CPU, beside a peer's"
    )
    add_model(parser)
    parser.add_argument(
        "--weights",
        metavar="FORMAT,...",
        type=weight_formats,
        default=("auto",),
        help=f"formats to measure, of {', '.join(get_args(Weights))} (default: auto)",
    )
    for name, default, what in (
        ("prefill", 512, "tokens of a prompt"),
        ("decode", 64, "tokens that each sequence decodes"),
    ):
        parser.add_argument(
            f"--{name}",
            metavar="N",
            type=_whole,
            default=default,
            help=f"{what}, 0 for none (default: {default})",
        )
    parser.add_argument(
        "--depth",
        metavar="N,...",
        type=_list_of(_whole),
        default=(0,),
        help="tokens in the cache before (default: 0)",
    )
    parser.add_argument(
        "--batch",
        metavar="N,...",
        type=_list_of(positive),
        default=(1,),
        help="sequences that decode at once (default: 1)",
    )
    add_threads(parser)
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
    parser.add_argument("--json", metavar="FILE", help="write every measurement to this file")


def _add_command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(run=run, fail=parser.error)
    return parser


def _add_sampling_options(parser: argparse.ArgumentParser, *, max_tokens: str) -> None:
    parser.add_argument("--max-tokens", metavar="N", type=positive, help=max_tokens)
    parser.add_argument(
        "--temperature", metavar="T", type=float, help="0 is greedy (default: the model's own)"
    )


def _whole(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
    return value


def _window(text: str) -> int:
    value = _whole(text)
    if value < MIN_WINDOW:
        raise argparse.ArgumentTypeError(f"must be at least {MIN_WINDOW}, got {text!r}")
    return value


def _list_of(number: Callable[[str], int]) -> Callable[[str], tuple[int, ...]]:
    """Numbers between commas."""
    return lambda text: tuple(number(part) for part in text.split(","))


def _program_and_model(text: str) -> tuple[Path, Path]:
    program, comma, model = text.partition(",")
    if not (program and comma and model):
        raise argparse.ArgumentTypeError(f"must be LLAMA_BENCH,GGUF, got {text!r}")
    return Path(program), Path(model)


def _port(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port number of 0 to 65535, got {text!r}")
    return value


def _user_and_password(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not (user and colon):
        # Without the text: it may be a password.
        raise argparse.ArgumentTypeError("must be USER:PASSWORD")
    return user, password
