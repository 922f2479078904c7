"""The Triton linear as a GPU would run it: its machine code, its settings, its refusals.

The limits that hold for every row of the launch table are tested with the kernel reports.
"""

from __future__ import annotations

import re

import pytest
import torch

from qwell.kernels.errors import KernelError
from qwell.kernels.quantize import quantize_fp8, quantize_int4, quantize_int8
from qwell.kernels.triton import linear as module
from qwell.kernels.triton.configs.linear import DENSE, FLOAT32, PACKED, part_width, settings
from qwell.kernels.triton.linear import linear

MAKERS = {
    "dense": lambda weight: weight,
    "int8": quantize_int8,
    "int4": quantize_int4,
    "fp8": quantize_fp8,
}


class Recorder:
    """Stands for a kernel and keeps its launches."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.launches = []

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.launches.append((grid, arguments, constants))


@pytest.fixture
def launches_of(monkeypatch):
    """Function: (arch, format, tokens) -> (kernel, grid, arguments, constants) of its launches."""

    def run(arch, name, tokens, shape=(1024, 1024), dtype=torch.bfloat16):
        recorders = []
        for kernel in ("linear_dense_kernel", "linear_packed_kernel", "add_parts_kernel"):
            recorders.append(Recorder(getattr(module, kernel)))
            monkeypatch.setattr(module, kernel, recorders[-1])
        monkeypatch.setattr(module, "arch_of", lambda _: arch)
        weight = MAKERS[name](torch.zeros(shape, dtype=dtype))
        linear(torch.zeros(tokens, shape[1], dtype=dtype), weight)
        monkeypatch.undo()
        return [
            (recorder.kernel, *launch) for recorder in recorders for launch in recorder.launches
        ]

    return run


@pytest.fixture
def compile_linear(launches_of, compile_for_gpu):
    def compile_one(capability, name, tokens):
        kernel, _, arguments, constants = launches_of(f"sm_{capability}", name, tokens)[0]
        return compile_for_gpu(
            kernel,
            arguments=[a.dtype if isinstance(a, torch.Tensor) else a for a in arguments],
            constants=constants,
            options={},
            compute_capability=capability,
        )

    return compile_one


@pytest.mark.parametrize(
    ("capability", "name", "instruction"),
    [
        (80, "dense", r"HMMA\.16816\.F32\.BF16"),
        (80, "int4", r"HMMA\.16816\.F32\.BF16"),
        (90, "dense", r"HGMMA\.64x\d+x16\.F32\.BF16"),
        (90, "int8", r"HGMMA\.64x\d+x16\.F32\.BF16"),
        (90, "int4", r"HGMMA\.64x\d+x16\.F32\.BF16"),
        (90, "fp8", r"HGMMA\.64x\d+x16\.F32\.BF16"),
    ],
)
def test_sums_with_one_instruction_for_any_number_of_tokens(
    capability, name, instruction, compile_linear
):
    for tokens in (1, 60, 200, 1000):
        binary = compile_linear(capability, name, tokens)
        sums = binary.matching(r"\w*MMA\b")
        assert sums
        assert all(re.fullmatch(instruction, found) for found in sums)
        assert not binary.spills


@pytest.mark.parametrize("name", MAKERS)
def test_one_token_loads_128_bits_at_a_time(name, compile_linear):
    """Counted in bytes: a group's scales are 2-byte loads beside 128 bytes of a row of words."""
    bits = {"64": 64, "128": 128, "U16": 16}
    loads = compile_linear(90, name, 1).matching(r"LDG(STS)?\b")
    sizes = [next((bits[part] for part in load.split(".") if part in bits), 32) for load in loads]
    assert sum(size for size in sizes if size == 128) >= 0.9 * sum(sizes)


def test_table_covers_any_number_of_tokens_and_keeps_whole_instructions():
    for table in (DENSE, PACKED, FLOAT32):
        for arch, rows in table.items():
            for tokens in (1, 16, 17, 64, 65, 256, 257, 10**6):
                chosen = settings(arch, table, tokens)
                assert tokens <= chosen.max_rows
                # A tile lies in one row of FP8 blocks.
                assert chosen.block_n in (64, 128)
            assert [row.max_rows for row in rows] == sorted({row.max_rows for row in rows})
    for row in (*DENSE["default"], *PACKED["default"]):
        assert row.block_n // 64 == row.num_warps // 4


@pytest.mark.parametrize(
    ("n", "k", "parts"),
    [
        (1024, 2048, 4),
        (4096, 4096, 2),
        (4096, 12288, 2),
        (24576, 4096, 1),
        (64, 512, 1),
        (1, 77, 1),
    ],
)
def test_parts_of_a_weight(n, k, parts):
    width = part_width(n, k)
    assert -(-k // width) == parts
    assert width % 256 == 0


def test_parts_are_programs_of_their_own_for_few_tokens_only(launches_of):
    (_, few, _, _), (_, adding, _, _) = launches_of("sm_90", "dense", 1, (1024, 2048))
    assert few == (16, 4)
    assert adding == (1, 1)
    ((_, many, _, constants),) = launches_of("sm_90", "dense", 1000, (1024, 2048))
    assert many == (8 * 8, 1)
    assert constants["PART"] == 512


def test_amd_instructions_do_not_follow_the_tile(launches_of):
    for tokens in (1, 1000):
        assert launches_of("gfx942", "int4", tokens)[0][3]["matrix_instr_nonkdim"] == 16


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.zeros(8), torch.zeros(4, 8), None, r"x must have shape \[T, 8\], got \(8,\)"),
        (torch.zeros(2, 9), torch.zeros(4, 8), None, r"x must have shape \(2, 8\), got \(2, 9\)"),
        (torch.zeros(2, 8).double(), torch.zeros(4, 8), None, "x must be one of .*float64"),
        (torch.zeros(2, 8), torch.zeros(4, 8).half(), None, "weight must be torch.float32"),
        (torch.zeros(2, 8), torch.zeros(8, 4).T, None, "weight must be contiguous"),
        (torch.zeros(2, 8), torch.zeros(4, 8), torch.zeros(5), r"bias must have shape \(4,\)"),
        (torch.zeros(2, 32), quantize_int8(torch.zeros(4, 64)), None, r"x must have shape \(2, 64"),
        (
            torch.zeros(2, 64),
            quantize_fp8(torch.zeros(4, 64, device="meta")),
            None,
            "weight must be on cpu, got meta",
        ),
    ],
)
def test_refuses_tensors_that_do_not_fit(x, weight, bias, message):
    with pytest.raises(KernelError, match=f"linear: {message}"):
        linear(x, weight, bias)
