"""The Triton sample against the reference, in the guarded interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from qwell.kernels.reference.sample import sample as reference
from qwell.kernels.triton import sample as module
from qwell.kernels.triton.configs.sample import Settings
from qwell.kernels.triton.sample import sample


@dataclass(frozen=True)
class Row:
    """Parameters of one row; the defaults keep every id."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0


SETTINGS = [
    Row(),
    Row(temperature=0.0),
    Row(temperature=0.0, typical_p=0.2),
    Row(temperature=0.6, top_k=20, top_p=0.95),
    Row(temperature=1e-5),
    Row(temperature=1e-40, top_p=0.5),
    Row(top_k=1),
    Row(top_k=7, typical_p=0.5),
    Row(top_k=300, min_p=0.01),
    Row(temperature=2.0, top_k=10**6),
    Row(top_p=0.8),
    Row(top_p=0.0),
    Row(top_p=0.999999),
    Row(min_p=0.2),
    Row(typical_p=0.3),
    Row(temperature=0.6, typical_p=0.9),
    Row(min_p=1.0, typical_p=0.5),
    Row(temperature=0.7, top_k=50, top_p=0.9, min_p=0.05, typical_p=0.8),
]


def parameters(rows, uniforms):
    def column(name, dtype=torch.float64):
        return torch.tensor([getattr(row, name) for row in rows], dtype=dtype)

    return {
        "temperature": column("temperature"),
        "top_k": column("top_k", torch.int32),
        "top_p": column("top_p"),
        "min_p": column("min_p"),
        "typical_p": column("typical_p"),
        "uniform": torch.tensor(uniforms, dtype=torch.float64),
    }


def given(rows, seed):
    """Arguments of sample for these rows, but for the logits."""
    draw = torch.Generator().manual_seed(seed)
    return parameters(rows, torch.rand(len(rows), generator=draw).tolist())


# Typical-p takes many passes, which the interpreter is slow at.
FAST = [row for row in SETTINGS if row.typical_p == 1.0]


# 151936 ids are Qwen3's; 9001 is no multiple of anything, and above a block.
@pytest.mark.parametrize(
    ("size", "rows"),
    [(1, FAST), (1000, SETTINGS), (9001, [*FAST, Row(typical_p=0.9)]), (151936, FAST[2::3])],
)
def test_equals_the_reference(size, rows, interp_guard):
    logits = 3 * torch.randn(len(rows), size, generator=torch.Generator().manual_seed(size))
    before = logits.clone()
    arguments = given(rows, seed=1)
    with interp_guard():
        ids = sample(logits, **arguments)
    assert ids.dtype == torch.int32
    assert torch.equal(logits, before)
    assert ids.tolist() == reference(logits, **arguments).tolist()


def test_ties_are_cut_like_the_reference(interp_guard):
    """Logits of five values: every threshold falls among hundreds of equal ones."""
    cuts = [Row(top_p=p / 16 + 0.01) for p in range(15)]
    cuts += [Row(top_k=k, top_p=0.9) for k in (1, 300, 700)] + [Row(min_p=0.3), Row(top_p=0.0)]
    cuts += [Row(typical_p=0.3), Row(typical_p=0.7)]
    draw = torch.Generator().manual_seed(0)
    logits = torch.randint(-2, 3, (len(cuts), 1000), generator=draw).float() / 2
    logits[:, ::7] *= -0.0
    arguments = given(cuts, seed=2)
    # The last ids kept are the ones that a cut at another place would drop.
    arguments["uniform"][::2] = 1 - 2**-20
    with interp_guard():
        ids = sample(logits, **arguments)
    assert ids.tolist() == reference(logits, **arguments).tolist()


def test_bits_depend_on_the_row_alone(interp_guard, monkeypatch):
    rows = SETTINGS[3::4]
    logits = 2 * torch.randn(len(rows), 1000, generator=torch.Generator().manual_seed(3))
    arguments = given(rows, seed=3)
    with interp_guard():
        together = sample(logits, **arguments)
        for s in range(len(rows)):
            alone = {name: values[s : s + 1] for name, values in arguments.items()}
            assert sample(logits[s : s + 1], **alone).tolist() == [together[s]]
        # Neither do block sizes matter, nor whether the candidates of a row fit their copy.
        for block, capacity in [(256, 16), (512, 1024)]:
            smaller = Settings(block, num_warps=1, capacity=capacity)
            monkeypatch.setattr(module, "settings", lambda _, smaller=smaller: smaller)
            assert torch.equal(sample(logits, **arguments), together)
    # Sums of floats would depend on the blocks that these very rows are summed in.
    weights = logits.exp()
    by_block = [weights.view(-1, n, 1000 // n).sum(2).sum(1) for n in (8, 125)]
    assert not torch.equal(*by_block)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the NaN that it is about
def test_ids_are_valid_whatever_the_logits(interp_guard):
    rows = [Row(), Row(temperature=0.0), Row(top_k=3), Row(top_p=0.5), Row(top_k=3, top_p=0.5)]
    odd = [torch.nan, torch.inf, -torch.inf]
    logits = torch.stack([torch.full((40,), value) for value in odd for _ in rows])
    mixed = torch.zeros(len(rows), 40)
    mixed[:, 3:9] = torch.nan
    logits = torch.cat([logits, mixed])
    with interp_guard():
        ids = sample(logits, **given(rows * 4, seed=4))
    assert all(0 <= i < 40 for i in ids.tolist())
    assert not set(range(3, 9)) & set(ids[-len(rows) :].tolist())


def test_no_rows(interp_guard):
    with interp_guard():
        assert sample(torch.zeros(0, 10), **given([], seed=5)).shape == (0,)
