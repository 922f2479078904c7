"""Fused ops are for few launches: each is one, on every architecture's settings."""

from __future__ import annotations

import pytest

from qwell.bench.kernels.compile import compile_only
from qwell.bench.kernels.fused_cases import FUSED_CASES
from qwell.kernels.fused_ops import FUSED_OP_NAMES


@pytest.mark.parametrize("op", FUSED_OP_NAMES)
def test_a_fused_op_is_one_launch(op):
    for case in FUSED_CASES[op]("sm_90"):
        with compile_only("sm_90") as launches:
            case.run()
        assert [launch.kernel.name for launch in launches] == [f"{op}_kernel"]
