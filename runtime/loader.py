"""From options to a loaded model: device, dtype, context length, weights, cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwell.kernels.errors import KernelError
from qwell.kernels.fused_ops import MAX_FUSED_TOKENS
from qwell.kernels.registry import build_fused_ops, build_ops, describe, is_native
from qwell.runtime.checkpoint.config import ModelConfig
from qwell.runtime.checkpoint.packed_cache import PackedFile
from qwell.runtime.checkpoint.packed_files import packed_dir
from qwell.runtime.checkpoint.shards import Shards
from qwell.runtime.checkpoint.weights import PlainWeights, WeightSource
from qwell.runtime.cpu import count_cores
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import EngineStartError, UnsupportedModelError
from qwell.runtime.kv_cache import BLOCK_SIZE, KVCache, allocate, blocks_for, bytes_per_token
from qwell.runtime.largest_step import largest_decode, largest_step, smaller_steps
from qwell.runtime.memory import enough_memory, gpu_cache_budget, host_cache_budget
from qwell.runtime.messages import EngineInfo
from qwell.runtime.models.dense import (
    DenseDecoder,
    TensorNames,
    load_dense,
    matrix_formats,
    verify_dense,
)
from qwell.runtime.models.registry import read_model_config
from qwell.runtime.precision import Precision, choose_precision, dtype_name

if TYPE_CHECKING:
    from qwell.kernels.native.runner import Runner

log = logging.getLogger(__name__)

# A pool below this could hardly hold a conversation; better to say so than to start.
MIN_CACHE_TOKENS = 256


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, and the sizes it was loaded for.

    Attributes:
        dtype: of activations.
        weights: format of the matrices, as `--weights` spells it.
        runner: where native ops go; None on devices that have none.
    """

    config: ModelConfig
    decoder: DenseDecoder
    cache: KVCache
    num_blocks: int
    max_model_len: int
    device: torch.device
    dtype: torch.dtype
    weights: str
    runner: Runner | None = None

    @property
    def info(self) -> EngineInfo:
        """What a server tells of it."""
        return EngineInfo(
            max_model_len=self.max_model_len,
            kv_cache_tokens=self.num_blocks * BLOCK_SIZE,
            vocab_size=self.config.vocab_size,
            device=str(self.device),
            dtype=dtype_name(self.dtype),
            weights=self.weights,
        )


def load_model(
    options: EngineOptions, kernels: Mapping[str, Callable[..., Any] | str] | None = None
) -> LoadedModel:
    """Load the checkpoint that `options` names.

    Raises:
        CheckpointError, UnsupportedModelError: what is wrong with the checkpoint.
        EngineStartError: the device, dtype or memory asked for cannot be had.
    """
    options.check()
    folder = Path(options.model)
    family, config = read_model_config(folder)
    wanted = options.max_model_len or config.max_position
    if wanted > config.max_position:
        raise UnsupportedModelError(
            f"max_model_len {wanted} is more than the {config.max_position} tokens that "
            f"{folder} supports ({config.max_position_reason})"
        )
    device = pick_device(options.device)
    overrides = {**options.kernels, **(kernels or {})}
    precision = choose_precision(options, config.dtype, device, overrides)
    dtype = precision.activations
    try:
        if device.type == "cuda":
            # Imported here: Triton takes a second that a start on a CPU need not spend.
            from qwell.kernels.triton.launch import check_gpu

            check_gpu(device)
        runner = start_runner(options.threads, options.isa) if device.type == "cpu" else None
        packed = precision.weights is not None
        ops = build_ops(device, dtype, overrides, options.batch_invariant, runner, packed)
        fused = None if options.batch_invariant else build_fused_ops(device, dtype, overrides)
    except KernelError as error:
        raise EngineStartError(str(error)) from error
    with torch.inference_mode():
        with enough_memory(f"the weights of {folder}; on CPUs --weights int8 or int4 take less"):
            weights = _open_weights(options, family.names, config, precision, device)
            decoder = load_dense(weights, family.names, config, ops, fused, wanted, device)
        num_blocks = _pool_blocks(options, decoder, wanted, precision.cache, device)
        gib = num_blocks * BLOCK_SIZE * bytes_per_token(config, precision.cache) / 2**30
        try:
            cache = allocate(config, num_blocks, precision.cache, device, ops)
        except OSError as error:
            raise EngineStartError(
                f"the KV cache of {num_blocks * BLOCK_SIZE} tokens takes {gib:.1f} GiB, which "
                f"cannot be had ({error.strerror}); lower kv_cache_tokens (--kv-cache-tokens)"
            ) from error
    if is_native(ops):
        # What is left for torch is small, and its threads would get in the way of ours.
        torch.set_num_threads(1)
    max_model_len = min(wanted, num_blocks * BLOCK_SIZE)
    log.info(
        "%s: %s on %s in %s, weights %s",
        folder,
        config.architecture,
        device,
        dtype_name(dtype),
        precision.weights_name,
    )
    log.info("kernels: %s", ", ".join(f"{op}={name}" for op, name in describe(ops).items()))
    if fused is not None:
        log.info("steps of up to %d decodes run fused ops", MAX_FUSED_TOKENS)
    log.info(
        "KV cache: %d tokens in %s (%.2f GiB), sequences of up to %d tokens",
        num_blocks * BLOCK_SIZE,
        dtype_name(precision.cache),
        gib,
        max_model_len,
    )
    return LoadedModel(
        config,
        decoder,
        cache,
        num_blocks,
        max_model_len,
        device,
        dtype,
        precision.weights_name,
        runner,
    )


def start_runner(threads: int | None, isa: str | None = None) -> Runner:
    """Threads for native ops, as many as this process may use unless told; torch gets as many.

    Raises KernelError for an instruction set that this machine does not run.
    """
    # Imported here: GPUs need no native code, and a checkout that is not built has none.
    from qwell.kernels import _native
    from qwell.kernels.native.runner import Runner, choose_isa

    cores = count_cores()
    runner = Runner(threads or cores.threads, choose_isa(isa))
    torch.set_num_threads(runner.threads)
    log.info("threads: %d of %d cores (%s)", runner.threads, cores.physical, runner.isa)
    missing = _native.missing_for_avx2()
    if missing:
        log.warning(
            "this CPU lacks %s: the portable kernels are many times slower; if it is that of a "
            "virtual machine, let the host's own features through",
            ", ".join(missing),
        )
    return runner


def pick_device(wanted: str) -> torch.device:
    """The device that an option names; "auto" prefers a GPU."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise EngineStartError("device cuda was asked for, but torch finds no GPU; use cpu or auto")
    use_gpu = wanted == "cuda" or (wanted == "auto" and available)
    return torch.device("cuda" if use_gpu else "cpu")


def _open_weights(
    options: EngineOptions,
    names: TensorNames,
    config: ModelConfig,
    precision: Precision,
    device: torch.device,
) -> WeightSource:
    """Where the decoder takes its weights from, checked against what the config promises."""
    shards = Shards(Path(options.model))
    verify_dense(shards, names, config)
    if precision.weights is None:
        return PlainWeights(shards, precision.activations, device)
    from qwell.runtime.checkpoint.packed_weights import PackedWeights

    formats = matrix_formats(names, config, precision.weights)
    weights = PackedWeights(shards, formats)
    if options.weight_cache:
        try:
            weights.keep_in(PackedFile(packed_dir(), shards, precision.weights, formats))
        except OSError as error:
            log.warning("packed weights cannot be kept for the next start: %s", error)
    return weights


def _pool_blocks(
    options: EngineOptions,
    decoder: DenseDecoder,
    max_model_len: int,
    cache_dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Blocks of the cache pool: as asked, else all sequences at full length or what fits."""
    if device.type == "cuda":
        smaller_steps(options, decoder, cache_dtype, device)
        kinds = (largest_step,) if options.eager else (largest_step, largest_decode)
        steps = [partial(kind, options, decoder, cache_dtype, device) for kind in kinds]
        budget = gpu_cache_budget(device, options.gpu_memory_utilization, steps)
    else:
        budget = host_cache_budget()
    fitting = budget // bytes_per_token(decoder.config, cache_dtype)
    tokens = options.kv_cache_tokens
    if tokens is None:
        tokens = min(options.max_num_seqs * max_model_len, fitting)
    least = min(MIN_CACHE_TOKENS, max_model_len)
    if options.max_model_len is not None:
        least = max_model_len
    if tokens < least:
        raise EngineStartError(
            f"the KV cache has room for {tokens} tokens, at least {least} are needed; "
            "free memory, raise kv_cache_tokens (--kv-cache-tokens) or lower max_model_len "
            "(--max-model-len)"
        )
    return blocks_for(tokens)
