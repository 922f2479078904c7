"""Native ops now and on tape: the same bits, and memory that is reused but never shared."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from qwell.kernels.native.arena import Arena
from qwell.kernels.native.rms_norm import bind
from qwell.kernels.native.runner import Runner


def norms(runner, x, weight, depth):
    """depth norms after one another, each with the one before as residual."""
    rms_norm = bind(runner)
    residual = None
    for _ in range(depth):
        x, residual = rms_norm(x, weight, 1e-6, residual)
    return x


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_replay_has_the_bits_of_ops_run_one_by_one(threads):
    runner = Runner(threads)
    weight = torch.randn(4096)
    x, rows = torch.randn(33, 4096), torch.empty(4, dtype=torch.int32)
    replay = runner.record(lambda: norms(runner, x, weight, 20), x, rows)
    assert len(replay) == 20
    for tokens in (33, 1, 7):
        x.normal_()
        expected = norms(Runner(1), x[:tokens].clone(), weight, 20)
        replay(tokens, 0)
        assert torch.equal(replay.result[:tokens], expected)


def test_a_forked_child_computes():
    runner = Runner(3)
    x, weight = torch.randn(64, 4096), torch.randn(4096)
    expected = norms(runner, x, weight, 3)
    child = os.fork()
    if child == 0:
        # Not compared by torch, whose own threads a child lacks: it would wait for them.
        same = np.array_equal(norms(runner, x, weight, 3).numpy(), expected.numpy())
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(norms(runner, x, weight, 3), expected)


def test_an_arena_reuses_what_was_dropped_and_only_that():
    arena = Arena()
    first = arena.empty((8, 16), torch.float32)
    view = first.view(16, 8)[1:]
    address = first.data_ptr()
    del first
    second = arena.empty((8, 16), torch.float32)
    assert second.data_ptr() != address
    del view
    assert arena.empty((4, 16), torch.bfloat16).data_ptr() == address
    assert arena.nbytes == 2 * 8 * 16 * 4
