"""Types of the extension module that CMakeLists.txt builds from native/module.cpp."""

import enum
from typing import TypeAlias

class Isa(enum.Enum):
    portable = 0
    avx2 = 1
    avx512 = 2
    avx512_bf16 = 3
    neon = 4
    neon_dotprod = 5

class DType(enum.Enum):
    float32 = 0
    bfloat16 = 1
    float16 = 2

class CacheDType(enum.Enum):
    float32 = 0
    bfloat16 = 1
    float16 = 2
    int8 = 3

class WeightFormat(enum.Enum):
    f32 = 0
    bf16 = 1
    f16 = 2
    int8 = 3
    int4 = 4

class Rows(enum.Enum):
    tokens = 0
    logits = 1

class Pool:
    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class LinearCall:
    def __init__(
        self,
        *,
        format: WeightFormat,
        x: int,
        weight: int,
        bias: int,
        y: int,
        rows: int,
        columns: int,
        outputs: int,
    ) -> None: ...

class AdjustLogitsCall:
    def __init__(
        self,
        *,
        logits: int,
        ids: int,
        counts: int,
        biases: int,
        cu_ids: int,
        newest: int,
        repetition_penalty: int,
        presence_penalty: int,
        frequency_penalty: int,
        only_listed: int,
        rows: int,
        vocabulary: int,
    ) -> None: ...

class AttentionCall:
    def __init__(
        self,
        *,
        cache_dtype: CacheDType,
        q: int,
        k_cache: int,
        v_cache: int,
        k_scales: int,
        v_scales: int,
        block_table: int,
        cu_seqlens_q: int,
        seq_lens: int,
        out: int,
        rows: int,
        max_seqs: int,
        table_stride: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        window: int,
        scale: float,
    ) -> None: ...

class EmbeddingCall:
    def __init__(
        self,
        *,
        ids: int,
        table: int,
        y: int,
        rows: int,
        width: int,
        format: WeightFormat,
        packed: bool,
    ) -> None: ...

class LogprobsCall:
    def __init__(
        self,
        *,
        logits: int,
        ids: int,
        logprobs: int,
        top_ids: int,
        top_logprobs: int,
        rows: int,
        vocabulary: int,
        top: int,
    ) -> None: ...

class RopeCall:
    def __init__(
        self,
        *,
        cache_dtype: CacheDType,
        qkv: int,
        positions: int,
        cos_sin: int,
        q_norm: int,
        k_norm: int,
        slot_mapping: int,
        k_cache: int,
        v_cache: int,
        k_scales: int,
        v_scales: int,
        q: int,
        rows: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> None: ...

class RmsNormCall:
    def __init__(
        self,
        *,
        dtype: DType,
        x: int,
        residual: int,
        weight: int,
        y: int,
        s: int,
        rows: int,
        width: int,
        eps: float,
    ) -> None: ...

class SampleCall:
    def __init__(
        self,
        *,
        logits: int,
        temperature: int,
        top_k: int,
        top_p: int,
        min_p: int,
        typical_p: int,
        uniform: int,
        next_ids: int,
        rows: int,
        vocabulary: int,
    ) -> None: ...

class SiluMulCall:
    def __init__(self, *, gate_up: int, y: int, rows: int, width: int) -> None: ...

# Only in this file: what the overloads of run and append take.
Call: TypeAlias = (
    AdjustLogitsCall
    | AttentionCall
    | EmbeddingCall
    | LinearCall
    | LogprobsCall
    | RmsNormCall
    | RopeCall
    | SampleCall
    | SiluMulCall
)

class Tape:
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def append(self, call: Call, rows: Rows) -> None: ...
    def replay(self, isa: Isa, pool: Pool, tokens: int, logits: int) -> None: ...

def runnable_isas() -> list[Isa]: ...
def missing_for_x86_64_v2() -> list[str]: ...
def missing_for_avx2() -> list[str]: ...
def run(isa: Isa, pool: Pool, call: Call) -> None: ...
def pack(
    isa: Isa,
    pool: Pool,
    format: WeightFormat,
    parts: list[tuple[int, int, DType]],
    columns: int,
    packed: int,
) -> bool: ...
def read_all(isa: Isa, pool: Pool, data: int, count: int) -> float: ...
def fma_burst(isa: Isa, pool: Pool, tasks: int) -> float: ...
