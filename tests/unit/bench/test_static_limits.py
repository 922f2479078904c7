"""Limits that every kernel keeps at every row of its launch table, on Hopper.

`qwell bench kernels --static --arch all` holds all architectures to the same limits.
"""

from __future__ import annotations

import os

import pytest

from qwell.bench.kernels.cases import CASES
from qwell.bench.kernels.static import static_report


@pytest.fixture(scope="module")
def report():
    return static_report(["sm_90"], tuple(CASES), workers=os.cpu_count() or 1)


@pytest.mark.parametrize("op", CASES)
def test_kernels_keep_the_limits(op, report):
    rows = [row for row in report if row.op == op]
    assert rows
    assert [f"{row}: {fault}" for row in rows for fault in row.faults] == []
