"""What an engine is started with. Torch-free: it crosses to the engine process as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from qwell.runtime.errors import EngineStartError

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "bfloat16", "float16", "float32"]
CacheDType = Literal["auto", "bfloat16", "float16", "float32", "int8"]
Weights = Literal["auto", "f32", "bf16", "f16", "int8", "int4"]

_CHOICES = {"device": Device, "dtype": DType, "weights": Weights, "kv_cache_dtype": CacheDType}
_COUNTS = (
    "max_model_len",
    "kv_cache_tokens",
    "threads",
    "max_batch_tokens",
    "max_num_seqs",
    "max_queue",
)


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one engine.

    Attributes:
        model: folder of the checkpoint (an id of the hub is resolved before).
        device: "auto" takes a GPU when there is one.
        dtype: dtype of activations, and on GPUs of weights and cache too. "auto" is the
            checkpoint's own on GPUs and float32 on CPUs.
        weights: format of matrices and embedding on CPUs with float32 activations; int8 and int4
            are made when the model is loaded. "auto" is the checkpoint's own.
        weight_cache: keep packed weights on disk, and map them at later starts.
        kv_cache_dtype: dtype of keys and values on CPUs; int8 has a scale for each key and value
            of a head. "auto" is the checkpoint's own beside float32 activations, otherwise that of
            the activations.
        max_model_len: most tokens of one sequence, prompt and completion together; None is
            what the checkpoint was trained for, as far as the cache holds it.
        kv_cache_tokens: size of the KV cache pool in tokens; None sizes it from memory.
        gpu_memory_utilization: share of a GPU's memory that weights, steps and cache may take
            together, in (0, 1].
        threads: threads that compute on a CPU; None is a thread for each physical core that
            this process may run on, and no more than its control group has time for.
        isa: instruction set of the kernels on a CPU, as the log names them ("avx2"); None is the
            best that the machine runs.
        eager: run every step op by op; otherwise decode steps on GPUs, and all steps on CPUs, are
            captured and replayed.
        batch_invariant: compute every token with the same bits whatever else is in its batch; on
            GPUs steps of a few tokens take fewer launches, and many tokens BLAS, without it.
        max_batch_tokens: most tokens that one step computes; longer prompts run in chunks.
        max_num_seqs: most sequences that run at once; others wait.
        max_queue: most requests that wait for others to end; more are refused. None is no limit.
        target_itl_ms: longest that a step should take, in milliseconds, while a prompt is computed
            beside sequences that decode. None is twice what it takes without prompts, but at
            least 100.
        prefix_cache: keep the blocks of ended requests while there is room, for later ones that
            begin with the same tokens.
        kernels: family that serves an op instead of the chosen one, by op name: {"linear":
            "reference"} is torch's product.
        prefix_cache_file: where the prefixes used last are kept when the engine is closed, for the
            next start; None keeps none.
        speculation: guess tokens ahead and verify them in one step, where that pays; on CPUs.
            The tokens are the same.
        draft_model: folder of a smaller model with the same tokenizer that guesses; None looks
            guesses up in the text so far.
        eos_token_ids: ids that end a completion (the engine knows tokens, not text).
    """

    model: str
    device: Device = "auto"
    dtype: DType = "auto"
    weights: Weights = "auto"
    weight_cache: bool = True
    kv_cache_dtype: CacheDType = "auto"
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None
    gpu_memory_utilization: float = 0.9
    threads: int | None = None
    isa: str | None = None
    eager: bool = False
    kernels: Mapping[str, str] = {}
    batch_invariant: bool = True
    max_batch_tokens: int = 512
    max_num_seqs: int = 64
    max_queue: int | None = None
    target_itl_ms: float | None = None
    prefix_cache: bool = True
    prefix_cache_file: str | None = None
    speculation: bool = True
    draft_model: str | None = None
    eos_token_ids: tuple[int, ...] = ()

    def check(self) -> None:
        """Raises EngineStartError for a value that no engine runs with."""
        for name, choice in _CHOICES.items():
            if getattr(self, name) not in get_args(choice):
                raise EngineStartError(
                    f"{name} is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(get_args(choice))}"
                )
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EngineStartError(f"{name} is {value}; it must be at least 1")
        share = self.gpu_memory_utilization
        if not 0.0 < share <= 1.0:
            raise EngineStartError(f"gpu_memory_utilization is {share}; it must be in (0, 1]")
