"""The options that name a model and say how to run it, which most commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from qwell.runtime.engine_options import CacheDType, Device, DType, EngineOptions, Weights

T = TypeVar("T")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model and everything about the engine."""
    add_model(parser)
    parser.add_argument(
        "--device",
        choices=get_args(Device),
        default="auto",
        help="where to run; auto takes a GPU when there is one (default: auto)",
    )
    parser.add_argument("--cpu-only", action="store_true", help="the same as --device cpu")
    parser.add_argument(
        "--dtype",
        choices=get_args(DType),
        default="auto",
        help="of activations, on GPUs of weights too (default: auto, the model's own on GPUs and "
        "float32 on CPUs)",
    )
    parser.add_argument(
        "--weights",
        choices=get_args(Weights),
        default="auto",
        help="format of the weights on CPUs (default: auto, the model's own)",
    )
    parser.add_argument(
        "--weight-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep packed weights on disk for the next start (default: on)",
    )
    add_kv_cache_dtype(parser)
    parser.add_argument(
        "--max-model-len",
        metavar="N",
        type=positive,
        help="most tokens of prompt and completion together (default: the model's context)",
    )
    parser.add_argument(
        "--kv-cache-tokens",
        metavar="N",
        type=positive,
        help="size of the KV cache in tokens (default: from the memory that is free)",
    )
    parser.add_argument(
        "--prefix-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="use the cache of ended requests again where prompts begin alike (default: on)",
    )
    parser.add_argument(
        "--speculation",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on CPUs, guess tokens ahead where that pays; answers stay the same (default: on)",
    )
    parser.add_argument(
        "--draft-model",
        metavar="MODEL",
        help="a smaller model of the same tokenizer that guesses (default: look guesses up in "
        "the text so far)",
    )
    parser.add_argument(
        "--gpu-memory-utilization",
        metavar="SHARE",
        type=_share,
        default=0.9,
        help="share of a GPU's memory to take in all (default: 0.9)",
    )
    add_threads(parser)
    add_isa(parser)
    parser.add_argument(
        "--eager",
        action="store_true",
        help="run every step op by op instead of replaying captured ones",
    )
    add_kernel(parser)
    parser.add_argument(
        "--batch-invariant",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="same bits for a token in every batch; GPUs may be faster without (default: on)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model alone."""
    add_once(
        parser,
        "--model",
        "-c",
        "--checkpoint-path",
        help="folder of a checkpoint, or a Hugging Face id (default: a small demo model)",
    )


def add_kernel(parser: argparse.ArgumentParser) -> None:
    """--kernel alone."""
    parser.add_argument(
        "--kernel",
        metavar="OP=FAMILY",
        type=_kernel,
        action="append",
        default=[],
        help="serve an op by another family: reference, native, triton; may be repeated",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads alone."""
    parser.add_argument(
        "--threads",
        metavar="N",
        type=positive,
        help="threads that compute on a CPU (default: one for each core this process may use)",
    )


def add_isa(parser: argparse.ArgumentParser) -> None:
    """--isa alone."""
    parser.add_argument(
        "--isa",
        metavar="NAME",
        help="instruction set of the kernels on a CPU, such as avx2 (default: the best it has)",
    )


def add_kv_cache_dtype(parser: argparse.ArgumentParser) -> None:
    """--kv-cache-dtype alone."""
    parser.add_argument(
        "--kv-cache-dtype",
        choices=get_args(CacheDType),
        default="auto",
        help="of the KV cache on CPUs; int8 takes half the memory of 16 bits, at some loss "
        "(default: auto, the model's own)",
    )


def settle_device(arguments: argparse.Namespace) -> None:
    """Make --cpu-only what it stands for."""
    if arguments.cpu_only and arguments.device == "cuda":
        arguments.fail("--cpu-only contradicts --device cuda")
    if arguments.cpu_only:
        arguments.device = "cpu"


def engine_options(arguments: argparse.Namespace, model: str) -> EngineOptions:
    """The options as the engine takes them; `model` is a folder."""
    # Imported here, as commands are: it takes time that `qwell -h` need not spend.
    from qwell.runtime.checkpoint.resolve import resolve_model

    draft = arguments.draft_model
    return EngineOptions(
        model=model,
        device=arguments.device,
        dtype=arguments.dtype,
        weights=arguments.weights,
        weight_cache=arguments.weight_cache,
        kv_cache_dtype=arguments.kv_cache_dtype,
        max_model_len=arguments.max_model_len,
        kv_cache_tokens=arguments.kv_cache_tokens,
        prefix_cache=arguments.prefix_cache,
        speculation=arguments.speculation,
        draft_model=None if draft is None else str(resolve_model(draft)),
        gpu_memory_utilization=arguments.gpu_memory_utilization,
        threads=arguments.threads,
        isa=arguments.isa,
        eager=arguments.eager,
        kernels=dict(arguments.kernel),
        batch_invariant=arguments.batch_invariant,
    )


def add_once(parser: argparse.ArgumentParser, *names: str, **settings: Any) -> None:
    """An option with several names; two different values under any of them are an error."""
    destination = next(name for name in names if name.startswith("--")).removeprefix("--")
    parser.add_argument(
        *names, dest=destination, metavar=destination.upper(), action=_StoreOnce, **settings
    )


class _StoreOnce(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 (argparse's signature)
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        before = getattr(namespace, self.dest)
        if before not in (None, values):
            raise argparse.ArgumentError(self, f"given twice, as {before} and as {values}")
        setattr(namespace, self.dest, values)


def positive(text: str) -> int:
    """An option's whole number of at least 1."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value


def whole(text: str) -> int:
    """An option's whole number, 0 included."""
    value = int(text) if text.isascii() and text.isdigit() else -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
    return value


def list_of(number: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """An option's numbers between commas."""
    return lambda text: tuple(number(part) for part in text.split(","))


def weight_formats(text: str) -> tuple[Weights, ...]:
    """An option's formats of weights between commas, each once."""
    formats: list[Weights] = []
    for part in text.split(","):
        known = next((name for name in get_args(Weights) if name == part), None)
        if known is None or known in formats:
            raise argparse.ArgumentTypeError(
                f"must be some of {', '.join(get_args(Weights))}, each once, got {text!r}"
            )
        formats.append(known)
    return tuple(formats)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1], got {text!r}")
    return value


def _kernel(text: str) -> tuple[str, str]:
    op, equals, family = text.partition("=")
    if not (op and equals and family):
        raise argparse.ArgumentTypeError(f"must be OP=FAMILY, got {text!r}")
    return op, family


def output_file(text: str) -> str:
    """A file to be written when all is measured: too late to find that it has no folder."""
    folder = Path(text).parent
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{folder} is no folder that can be written to")
    return text
