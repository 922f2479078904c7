"""Types of the extension module that CMakeLists.txt builds from kernels/native."""

import enum

class Isa(enum.Enum):
    portable = 0
    avx2 = 1
    avx512 = 2
    neon = 3

class DType(enum.Enum):
    float32 = 0
    bfloat16 = 1
    float16 = 2

def runnable_isas() -> list[Isa]: ...
def rms_norm(
    isa: Isa,
    dtype: DType,
    x: int,
    residual: int,
    weight: int,
    y: int,
    s: int,
    rows: int,
    width: int,
    eps: float,
    /,
) -> None: ...
