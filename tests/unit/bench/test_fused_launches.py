"""Fused ops are for few launches: each is one, on every architecture's settings."""

from __future__ import annotations

import pytest
import torch
from composed_ops import ComposedOps
from small_config import SMALL

from qwell.bench.checkpoints import true_config
from qwell.bench.gpu.model import random_model, step_batch
from qwell.bench.kernels.compile import compile_only
from qwell.bench.kernels.fused_cases import FUSED_CASES
from qwell.kernels.fused_ops import FUSED_OP_NAMES
from qwell.kernels.registry import build_ops


@pytest.mark.parametrize("op", FUSED_OP_NAMES)
def test_a_fused_op_is_one_launch(op):
    for case in FUSED_CASES[op]("sm_90"):
        with compile_only("sm_90") as launches:
            case.run()
        assert [launch.kernel.name for launch in launches] == [f"{op}_kernel"]


@torch.inference_mode()
def test_a_measured_model_runs_the_fused_ops_it_is_given():
    cpu = torch.device("cpu")
    composed = ComposedOps(build_ops(cpu, torch.float32))
    config = true_config("qwen3-0.6b") | SMALL | {"vocab_size": 256}
    ops = build_ops(cpu, torch.float32)
    model = random_model(config, ops, 512, 256, torch.float32, cpu, composed.fused())
    step = step_batch(cpu, [(39, 40)] * 2, [40] * 2)
    assert model.decoder.forward(step, model.cache).shape == (2, 256)
    assert composed.calls == dict.fromkeys(FUSED_OP_NAMES, 2)
