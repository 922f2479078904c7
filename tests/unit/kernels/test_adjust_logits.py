"""adjust_logits in torch and in C++ against its definition, id by id in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adjust_rows import Row, arguments, expected, rows
from hypothesis import given
from hypothesis import strategies as st

from qwell.kernels.errors import KernelError
from qwell.kernels.native.adjust_logits import bind
from qwell.kernels.native.runner import Runner
from qwell.kernels.reference.adjust_logits import adjust_logits as reference

IMPLEMENTATIONS = {"reference": reference, "native": bind(Runner(threads=2))}

each = pytest.mark.parametrize("adjust_logits", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


@each
@given(st.lists(rows(40), max_size=6), st.integers(0, 2**32))
def test_every_id_is_what_the_definition_says(adjust_logits, listed: list[Row], seed: int):
    logits = 3 * torch.randn(len(listed), 40, generator=torch.Generator().manual_seed(seed))
    wanted = [expected(logits[i].numpy(), row) for i, row in enumerate(listed)]
    adjust_logits(logits, **arguments(listed))
    np.testing.assert_array_equal(logits.numpy(), np.reshape(wanted, (len(listed), 40)))


@each
@pytest.mark.parametrize(
    ("row", "changed"),
    [
        (Row(listed={1: (0, 0.0)}, repetition=4.0), {1: 0.5}),
        (Row(listed={0: (0, 0.0)}, repetition=4.0), {0: -4.0}),
        (Row(listed={1: (0, 0.0)}, presence=1.0, frequency=1.0), {}),
        (Row(listed={1: (3, 0.0)}, presence=0.5), {1: 1.5}),
        (Row(listed={1: (3, 0.0)}, frequency=0.5), {1: 0.5}),
        (Row(listed={1: (3, 0.0)}, newest=1, frequency=0.5), {1: 0.0}),
        (Row(newest=1, frequency=0.5), {1: 1.5}),
        (Row(listed={2: (-1, 7.0)}), {2: 7.0}),
        (Row(listed={2: (-1, -np.inf)}), {2: -np.inf}),
        (Row(listed={1: (1, 1.0)}, repetition=2.0, presence=0.5, frequency=0.25), {1: 1.25}),
        (Row(listed={1: (-1, 0.0)}, only_listed=True), {0: -np.inf, 2: -np.inf}),
    ],
)
def test_case_computed_by_hand(adjust_logits, row: Row, changed: dict[int, float]):
    logits = torch.tensor([[-1.0, 2.0, 0.0]])
    adjust_logits(logits, **arguments([row]))
    assert logits.tolist() == [[changed.get(i, x) for i, x in enumerate([-1.0, 2.0, 0.0])]]


LOGITS = torch.zeros(2, 8)


@pytest.mark.parametrize(
    ("logits", "changes", "message"),
    [
        (torch.zeros(8), {}, r"logits must be torch.float32 of shape \[S, V >= 1\]"),
        (LOGITS, {"counts": torch.zeros(3).int()}, r"counts must have shape \(0,\), got \(3,\)"),
        (LOGITS, {"cu_ids": torch.zeros(2).int()}, r"cu_ids must have shape \(3,\), got \(2,\)"),
        (LOGITS, {"newest": torch.zeros(2)}, "newest must be torch.int32, got torch.float32"),
        (LOGITS, {"biases": torch.zeros(0)}, "biases must be torch.float64, got torch.float32"),
        (
            LOGITS,
            {"only_listed": torch.zeros(2).int().to("meta")},
            "only_listed must be on the CPU",
        ),
    ],
)
def test_refuses_what_it_would_misread(logits, changes, message):
    with pytest.raises(KernelError, match=f"adjust_logits: {message}"):
        bind(Runner(1))(logits, **(arguments([Row(), Row()]) | changes))
