"""`qwell quality`."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from qwell.bench.quality.report import table
from qwell.bench.quality.run import compare_formats, windows
from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import RequestError
from qwell.runtime.tokenizer import Tokenizer


def run(arguments: argparse.Namespace) -> int:
    """Compare the formats with the reference, print a table."""
    folder = resolve_model(arguments.model)
    try:
        text = Path(arguments.text).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{arguments.text} is not UTF-8: {error}") from error
    ids = Tokenizer.from_dir(folder).encode(text, parse_special=False)
    options = EngineOptions(
        model=str(folder),
        device="cpu",
        threads=arguments.threads,
        kv_cache_dtype=arguments.kv_cache_dtype,
    )
    reference = arguments.reference_weights
    texts = windows(ids, arguments.window)
    found = list(compare_formats(options, reference, arguments.weights, texts))
    print(table(reference, found))
    if arguments.json is not None:
        report = {
            "model": str(folder),
            "reference_weights": reference,
            "kv_cache_dtype": arguments.kv_cache_dtype,
            "window": arguments.window,
            "formats": found,
        }
        lines = msgspec.json.format(msgspec.json.encode(report), indent=1)
        Path(arguments.json).write_bytes(lines + b"\n")
    return 0
