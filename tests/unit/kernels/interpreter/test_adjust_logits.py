"""The Triton adjust_logits against the definition, in the guarded interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adjust_rows import Row, arguments, expected

from qwell.kernels.errors import KernelError
from qwell.kernels.triton.adjust_logits import adjust_logits

MANY = {i: (i % 4 - 1, 0.25 * (i % 3)) for i in range(0, 2600, 2)}
ROWS = [
    Row(),
    Row(listed={3: (0, 0.0), 5: (2, 0.0)}, repetition=1.3, presence=0.5, frequency=0.1),
    Row(listed={3: (0, 0.0)}, newest=3, repetition=0.8, frequency=1.7),
    Row(listed={3: (0, 0.0)}, newest=4, repetition=1.7, presence=-2.0),
    Row(newest=8, presence=2.0),
    Row(listed={2: (-1, -np.inf), 9: (-1, 100.0)}),
    Row(listed=MANY, newest=2500, repetition=1.1, presence=0.1, frequency=0.3),
    Row(listed=MANY, newest=2501, repetition=1.1, only_listed=True),
    Row(only_listed=True),
]


def test_equals_the_definition(interp_guard):
    logits = 3 * torch.randn(len(ROWS), 3001, generator=torch.Generator().manual_seed(0))
    wanted = [expected(logits[i].numpy(), row) for i, row in enumerate(ROWS)]
    with interp_guard():
        adjust_logits(logits, **arguments(ROWS))
    np.testing.assert_array_equal(logits.numpy(), np.array(wanted, dtype=np.float32))


def test_no_rows(interp_guard):
    with interp_guard():
        adjust_logits(torch.zeros(0, 10), **arguments([]))


def test_refuses_parameters_of_another_batch():
    with pytest.raises(KernelError, match=r"newest must have shape \(2,\), got \(1,\)"):
        adjust_logits(torch.zeros(2, 8), **arguments([Row()]) | {"cu_ids": torch.zeros(3).int()})
