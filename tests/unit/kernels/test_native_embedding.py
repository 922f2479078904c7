"""embedding in C++: rows of plain and packed tables, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwell.kernels.errors import KernelError
from qwell.kernels.native.embedding import bind
from qwell.kernels.native.packed import ALIGNMENT, GROUP, PANEL_ROWS, PackedWeight
from qwell.kernels.native.runner import Runner
from qwell.kernels.native.silu_mul import bind as bind_silu_mul
from qwell.kernels.quantize import quantize_int4, quantize_int8
from qwell.kernels.reference.embedding import embedding as reference
from qwell.kernels.weights import unpack

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PACKED_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

native = bind(Runner(threads=2))


def _table(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def _ids(*ids):
    return torch.tensor(ids, dtype=torch.int32)


def _packed(format_name, data, rows, columns):
    """Bytes of panels, copied to where a PackedWeight may begin."""
    flat = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    room = torch.empty(flat.size + ALIGNMENT, dtype=torch.uint8)
    start = -room.data_ptr() % ALIGNMENT
    aligned = room[start : start + flat.size]
    aligned.copy_(torch.from_numpy(flat))
    return PackedWeight(format_name, aligned, rows, columns)


def _panels(matrix):
    """[N, K] -> [panels, 16, K], padded with zero rows."""
    padded = np.pad(matrix, ((0, -len(matrix) % PANEL_ROWS), (0, 0)))
    return padded.reshape(-1, PANEL_ROWS, matrix.shape[1])


def _pack_floats(format_name, table):
    """A packed table, and W."""
    exact = table.to(PACKED_DTYPES[format_name])
    panels = _panels(exact.view(torch.int32 if format_name == "f32" else torch.int16).numpy())
    if format_name == "bf16":
        pairs = np.pad(panels, ((0, 0), (0, 0), (0, panels.shape[2] % 2)))
        data = pairs.reshape(*pairs.shape[:2], -1, 2).transpose(0, 2, 1, 3)
    else:
        data = panels.transpose(0, 2, 1)
    return _packed(format_name, data, *table.shape), exact.float()


def _pack_ints(format_name, table):
    """A packed table quantised by kernels/quantize.py, and W."""
    bits = 8 if format_name == "int8" else 4
    weight = quantize_int8(table) if bits == 8 else quantize_int4(table)
    codes = _panels(unpack(weight.words, bits, weight.columns).numpy())
    codes = codes.reshape(len(codes), PANEL_ROWS, -1, GROUP)
    if bits == 8:
        lines = codes.reshape(*codes.shape[:3], 8, 4)
    else:
        low, high = np.split(codes.reshape(*codes.shape[:3], 8, 4), 2, axis=3)
        lines = low | high << 4
    lines = lines.transpose(0, 2, 3, 1, 4).reshape(len(codes), codes.shape[2], -1)
    scales = _panels(weight.scales.T.numpy()).transpose(0, 2, 1)
    data = np.concatenate([np.ascontiguousarray(scales).view(np.uint8), lines], axis=2)
    return _packed(format_name, data, *table.shape), weight.dequantize()


def _pack(format_name, table):
    pack = _pack_floats if format_name in PACKED_DTYPES else _pack_ints
    return pack(format_name, table)


@st.composite
def calls(draw, column_step=1):
    """(ids, float table)"""
    rows, columns = draw(st.integers(1, 40)), column_step * draw(st.integers(1, 100 // column_step))
    ids = draw(st.lists(st.integers(0, rows - 1), max_size=20))
    return _ids(*ids), _table(rows, columns, draw(st.integers(0, 2**32)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(calls())
def test_rows_of_a_tensor(dtype, nan_empty, call):
    ids, table = call[0], call[1].to(dtype)
    with nan_empty():
        y = native(ids, table)
    assert y.dtype == torch.float32
    assert torch.equal(y, reference(ids, table).float())


@pytest.mark.parametrize("format_name", PACKED_DTYPES)
@given(calls())
def test_rows_of_packed_floats(format_name, nan_empty, call):
    ids, table = call
    packed, exact = _pack(format_name, table)
    with nan_empty():
        y = native(ids, packed)
    assert torch.equal(y, exact[ids])


@pytest.mark.parametrize("format_name", ["int8", "int4"])
@given(calls(column_step=GROUP))
def test_rows_of_packed_integers(format_name, nan_empty, call):
    ids, table = call
    packed, exact = _pack(format_name, table)
    with nan_empty():
        y = native(ids, packed)
    assert torch.equal(y, exact[ids])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("format_name", ["f32", "bf16", "f16", "int8", "int4"])
def test_rows_are_the_same_however_they_are_shared_out(threads, format_name):
    packed, exact = _pack(format_name, _table(50, 1024))
    ids = torch.randint(50, (333,), dtype=torch.int32)
    assert torch.equal(bind(Runner(threads))(ids, packed), exact[ids])


def test_every_float16_and_bfloat16_is_widened_exactly():
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(256, 256)
    ids = torch.arange(256, dtype=torch.int32)
    for format_name in ("f16", "bf16"):
        table = patterns.view(PACKED_DTYPES[format_name])
        packed, _ = _pack(format_name, table)
        for y in (native(ids, table), native(ids, packed)):
            torch.testing.assert_close(y, table.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_replay_looks_up_the_ids_of_its_time(threads):
    """Both uses of a step: rows of the table for its tokens, and of the result for its logits."""
    runner = Runner(threads)
    embedding, silu_mul = bind(runner), bind_silu_mul(runner)
    packed, exact = _pack("int8", _table(64, 2048))
    ids, logit_rows = torch.zeros(9, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    replay = runner.record(
        lambda: embedding(logit_rows, silu_mul(embedding(ids, packed))), ids, logit_rows
    )
    for tokens, rows in ((9, [8, 0, 3]), (1, [0]), (5, [4, 4]), (2, [])):
        ids[:tokens] = torch.randint(64, (tokens,))
        logit_rows[: len(rows)] = _ids(*rows)
        result = replay(tokens, len(rows))
        expected = bind_silu_mul(Runner(1))(exact[ids[:tokens]])[rows]
        assert torch.equal(result, expected)


IDS = _ids(0, 0, 0)


@pytest.mark.parametrize(
    ("ids", "table", "message"),
    [
        (IDS, torch.zeros(8), r"table must have shape \[V, d >= 1\]"),
        (IDS, torch.zeros(8, 0), r"table must have shape \[V, d >= 1\]"),
        (IDS, torch.zeros(8, 2).int(), r"table must have .* got \(8, 2\) of torch.int32"),
        (IDS, torch.zeros(2, 8).T, "table must be contiguous"),
        (IDS, torch.zeros(8, 2).to("meta"), "table must be on the CPU, got meta"),
        (IDS.long(), torch.zeros(8, 2), r"ids must be contiguous int32 \[T\], got torch.int64"),
        (IDS[::2], torch.zeros(8, 2), r"ids must be contiguous int32 \[T\]"),
        (IDS[None], torch.zeros(8, 2), r"ids must be contiguous int32 \[T\]"),
        (IDS.to("meta"), torch.zeros(8, 2), "ids must be on the CPU, got meta"),
    ],
)
def test_refuses_what_it_would_misread(ids, table, message):
    with pytest.raises(KernelError, match=f"embedding: {message}"):
        native(ids, table)
