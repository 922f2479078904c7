"""In what weights, activations and the KV cache are kept: from options and the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qwell.kernels.native.packed import Format
from qwell.kernels.registry import takes_packed_weights
from qwell.runtime.engine_options import EngineOptions, Weights
from qwell.runtime.errors import EngineStartError

FORMATS: dict[str, Format] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""Formats that hold the values of a dtype as they are."""


@dataclass(frozen=True)
class Precision:
    """Dtypes of a loaded model.

    Attributes:
        activations: the model dtype; also of norm weights and biases.
        weights: format of packed matrices, or None where they are tensors of the model dtype.
        cache: of keys and values.
    """

    activations: torch.dtype
    weights: Format | None
    cache: torch.dtype

    @property
    def weights_name(self) -> str:
        """Format of the matrices as `--weights` spells it."""
        return self.weights or FORMATS[dtype_name(self.activations)]


def choose_precision(
    options: EngineOptions, stored: str, device: torch.device, overrides: Mapping[str, Any]
) -> Precision:
    """What `options` asks for, of a checkpoint whose config names the dtype `stored`.

    On CPUs activations are float32 unless told otherwise: weights stay in their own format, and
    the kernels compute in float32 anyway. On GPUs everything has one dtype.

    Raises EngineStartError for what the device or the overridden ops do not serve.
    """
    on_cpu = device.type == "cpu"
    own = "float32" if on_cpu else stored
    activations = _dtype(own if options.dtype == "auto" else options.dtype)
    packed = takes_packed_weights(device, activations, overrides)
    if options.weights != "auto" and not packed:
        raise EngineStartError(
            f"weights {options.weights} need the native linear, which serves float32 activations "
            f"on a CPU; here it is {dtype_name(activations)} on {device}"
            + (f" with kernels for {', '.join(sorted(overrides))}" if overrides else "")
            + ". Use weights auto"
        )
    weights = weight_format(options.weights, stored) if packed else None
    cache = activations
    if options.kv_cache_dtype != "auto":
        cache = _dtype(options.kv_cache_dtype)
    elif on_cpu and activations == torch.float32:
        cache = _dtype(stored)
    if cache != activations and not on_cpu:
        raise EngineStartError(
            f"kv_cache_dtype {dtype_name(cache)} is not served on GPUs beside "
            f"{dtype_name(activations)}; use auto"
        )
    return Precision(activations, weights, cache)


def weight_format(wanted: Weights, stored: str) -> Format:
    """The format that an option names; "auto" is that of the stored dtype."""
    return FORMATS[stored] if wanted == "auto" else wanted


def dtype_name(dtype: torch.dtype) -> str:
    """As options and checkpoints spell it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype
