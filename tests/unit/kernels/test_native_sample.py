"""sample in C++: the ids of the reference, whatever the parameters and whoever shares the work.

Cases computed by hand are in test_sample.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwell.kernels.errors import KernelError
from qwell.kernels.native.runner import ISAS, Runner
from qwell.kernels.native.sample import bind
from qwell.kernels.reference.sample import sample as reference

NATIVE = {isa: bind(Runner(threads=2, isa=isa)) for isa in ISAS}

each_isa = pytest.mark.parametrize("isa", NATIVE)

# Around the blocks and chunks in which rows are read.
SIZES = [1, 2, 127, 128, 129, 1000, 4095, 4096, 4097, 9000]


def _arguments(logits, seed=0, **fixed):
    """Random parameters for the rows of logits; `fixed` values replace them in all rows.

    Draws and top_p are random numbers of 53 bits: none meets a bound to within rounding.
    """
    rows, vocabulary = logits.shape
    generator = torch.Generator().manual_seed(seed)

    def column(values, dtype=torch.float64):
        choice = torch.randint(len(values), (rows,), generator=generator)
        return torch.tensor(values, dtype=dtype)[choice]

    def uniform():
        return torch.rand(rows, dtype=torch.float64, generator=generator)

    top_ks = [0, 1, 2, 20, min(500, vocabulary), vocabulary - 1, vocabulary, vocabulary + 7]
    arguments = {
        "temperature": column([0.0, 0.1, 0.6, 1.0, 3.0]),
        "top_k": column(top_ks, torch.int32),
        "top_p": torch.where(uniform() < 0.4, 1.0, uniform()),
        "min_p": torch.where(uniform() < 0.6, 0.0, uniform() ** 3),
        "typical_p": torch.where(uniform() < 0.6, 1.0, uniform()),
        "uniform": uniform(),
    }
    for name, value in fixed.items():
        arguments[name] = torch.full_like(arguments[name], value)
    return arguments


def _logits(rows, vocabulary, seed=0, size=3.0, ties=False):
    logits = size * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    return logits.round() if ties else logits


@st.composite
def calls(draw):
    """(logits, arguments); logits of any spread, perhaps with many equal ones or impossible ids."""
    vocabulary = draw(st.sampled_from(SIZES) | st.integers(1, 600))
    seed = draw(st.integers(0, 2**32))
    size = draw(st.sampled_from([0.01, 1.0, 3.0, 30.0, 1e4]))
    logits = _logits(draw(st.integers(0, 6)), vocabulary, seed, size, draw(st.booleans()))
    if draw(st.booleans()):
        logits[:, 1::3] = -torch.inf
    return logits, _arguments(logits, seed + 1)


def _reference(logits, arguments):
    if len(logits) == 0:
        return torch.empty(0, dtype=torch.int32)
    return reference(logits, **arguments)


@each_isa
@given(calls())
def test_ids_are_those_of_the_reference(isa, call):
    logits, arguments = call
    before = logits.clone()
    ids = NATIVE[isa](logits, **arguments)
    assert ids.dtype == torch.int32
    assert torch.equal(ids, _reference(logits, arguments))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("size", [1.0, 4.0])
def test_a_row_of_qwens_size_alone_and_among_others(threads, size):
    logits = _logits(12, 151936, size=size)
    arguments = _arguments(logits)
    sample = bind(Runner(threads))
    ids = sample(logits, **arguments)
    assert torch.equal(ids, reference(logits, **arguments))
    for row in range(len(logits)):
        alone = {name: values[row : row + 1] for name, values in arguments.items()}
        single = sample(logits[row : row + 1], **alone)
        assert torch.equal(single, ids[row : row + 1])


@each_isa
@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-40, 1e-3])
def test_cold_rows_take_the_first_maximum(isa, temperature):
    logits = _logits(4, 3000)
    logits[:, [1234, 2345]] = 20.0
    arguments = _arguments(logits, temperature=temperature, uniform=0.3)
    assert NATIVE[isa](logits, **arguments).tolist() == [1234] * 4


SETTINGS = [
    {"temperature": 0.0},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"top_k": 3, "top_p": 1.0, "min_p": 0.0},
    {"top_k": 0, "top_p": 0.9, "min_p": 0.0},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.1},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 0.5},
    {"top_k": 2000, "top_p": 0.5, "min_p": 0.01},
]


@each_isa
@pytest.mark.parametrize("settings", SETTINGS)
def test_nan_is_impossible(isa, settings):
    logits = _logits(8, 3000)
    arguments = _arguments(logits, **({"temperature": 1.0} | settings))
    logits[:, ::2] = -torch.inf
    expected = reference(logits, **arguments)
    logits[:, ::2] = torch.nan
    assert torch.equal(NATIVE[isa](logits, **arguments), expected)


@each_isa
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_without_a_distribution_still_give_an_id(isa, settings, value):
    """What it is when everything is NaN or infinite means nothing; an infinite one wins."""
    for size in SIZES:
        logits = torch.full((8, size), value)
        arguments = _arguments(logits, **({"temperature": 1.0} | settings))
        ids = NATIVE[isa](logits, **arguments)
        assert ((ids >= 0) & (ids < size)).all()
    logits = _logits(8, 3000)
    logits[:, 77] = torch.inf
    arguments = _arguments(logits, **({"temperature": 1.0} | settings))
    assert NATIVE[isa](logits, **arguments).tolist() == [77] * 8


LOGITS = _logits(2, 8)


@pytest.mark.parametrize(
    ("logits", "changes", "message"),
    [
        (torch.zeros(8), {}, r"logits must be torch.float32 of shape \[S, V >= 1\]"),
        (torch.zeros(2, 0), {}, r"logits must be torch.float32 of shape \[S, V >= 1\]"),
        (LOGITS.bfloat16(), {}, "logits must be torch.float32 .* got torch.bfloat16"),
        (torch.zeros(8, 2).T, {}, "logits must be contiguous"),
        (LOGITS.to("meta"), {}, "logits must be on the CPU, got meta"),
        (LOGITS, {"top_p": torch.ones(3).double()}, r"top_p must have shape \(2,\), got \(3,\)"),
        (LOGITS, {"top_p": torch.ones(2)}, "top_p must be torch.float64, got torch.float32"),
        (LOGITS, {"top_k": torch.ones(2).long()}, "top_k must be torch.int32, got torch.int64"),
        (LOGITS, {"uniform": torch.ones(4).double()[::2]}, "uniform must be contiguous"),
        (LOGITS, {"typical_p": torch.zeros(1, 2).double()}, r"typical_p must have shape \(2,\)"),
        (LOGITS, {"min_p": torch.ones(2).double().to("meta")}, "min_p must be on the CPU"),
    ],
)
def test_refuses_what_it_would_misread(logits, changes, message):
    with pytest.raises(KernelError, match=f"sample: {message}"):
        bind(Runner(1))(logits, **(_arguments(LOGITS) | changes))
