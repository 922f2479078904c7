"""Compares formats of a model's weights over a text, one model in memory at a time.

As llama-perplexity does, so that its figures are comparable: the text is cut into windows that
know nothing of each other, and of each the second half is compared, where there is context.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import msgspec
import numpy as np
import torch
from torch import Tensor

from qwell.bench.quality.divergence import Positions, Quality, compare, join, summary
from qwell.bench.work import Work
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions, Weights
from qwell.runtime.errors import RequestError


class FormatQuality(msgspec.Struct, frozen=True, kw_only=True):
    """A format of the weights beside the reference.

    Attributes:
        weight_bytes: of the matrices.
    """

    weights: str
    weight_bytes: int
    quality: Quality


def windows(token_ids: Sequence[int], length: int) -> list[list[int]]:
    """Whole windows of `length` tokens, at least 3; a rest at the end is left out.

    Raises RequestError for a text that is shorter than one.
    """
    count = len(token_ids) // length
    if count == 0:
        raise RequestError(
            f"the text has {len(token_ids)} tokens; at least a window of {length} is needed"
        )
    return [list(token_ids[i * length : (i + 1) * length]) for i in range(count)]


def compare_formats(
    options: EngineOptions,
    reference: Weights,
    formats: Sequence[Weights],
    texts: Sequence[Sequence[int]],
) -> Iterator[FormatQuality]:
    """The quality of each format, as soon as it is known.

    The reference's logits are kept in a temporary file, of half a window x vocabulary x 4 bytes
    for each window; memory holds a window's.

    Args:
        options: of the engines; the format of the weights and the sizes follow from the rest, and
            the reference has the model's own KV cache whatever they say.
        reference, formats: what is compared with what.
        texts: windows of one length.

    Raises:
        CheckpointError, UnsupportedModelError, EngineStartError: see `Engine.start`.
    """
    length = len(texts[0])
    sized = msgspec.structs.replace(options, max_model_len=length, kv_cache_tokens=length)
    with tempfile.TemporaryFile() as spool:
        engine = _start(msgspec.structs.replace(sized, kv_cache_dtype="auto"), reference)
        shape = (length - 1 - length // 2, engine.info.vocab_size)
        for text in texts:
            spool.write(_scored(engine, text).numpy().data)
        del engine
        for name in formats:
            engine = _start(sized, name)
            weight_bytes = Work.of(engine.model).weight_bytes
            spool.seek(0)
            found = [_compare_window(spool, shape, engine, text) for text in texts]
            del engine  # before the next one is loaded
            quality = summary(join(found))
            yield FormatQuality(weights=name, weight_bytes=weight_bytes, quality=quality)


def _start(options: EngineOptions, weights: Weights) -> Engine:
    return Engine.start(msgspec.structs.replace(options, weights=weights))


def _scored(engine: Engine, text: Sequence[int]) -> Tensor:
    """Logits of the positions that are compared: those past half a window, but for the last."""
    return engine.logits(text)[len(text) // 2 : -1].contiguous()


def _compare_window(
    spool: BinaryIO, shape: tuple[int, int], engine: Engine, text: Sequence[int]
) -> Positions:
    rows, vocabulary = shape
    read = np.fromfile(spool, np.float32, rows * vocabulary)
    reference = torch.from_numpy(read).view(rows, vocabulary)
    next_ids = torch.tensor(text[-rows:])
    return compare(reference, _scored(engine, text), next_ids)
