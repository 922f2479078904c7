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

# Only in this file: what the overloads of run and append take.
Call: TypeAlias = RmsNormCall

class Tape:
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def append(self, call: Call, rows: Rows) -> None: ...
    def replay(self, isa: Isa, pool: Pool, tokens: int, logits: int) -> None: ...

def runnable_isas() -> list[Isa]: ...
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
