"""Calls of the fused linear ops, as a step of a few decodes makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from qwell.bench.gpu.calls import EPS, Call, Calls, Step
from qwell.kernels.fused_ops import Splits
from qwell.kernels.triton.configs.attention_decode import SPLIT

FUSED_LINEARS = ("norm_linear", "merge_linear_add", "norm_linear_silu_mul", "linear_add")


class FusedCalls(Calls):
    """Those of steps whose sequences, at most MAX_FUSED_TOKENS, have one new token each."""

    def of(self, step: Step, ops: Sequence[str] = FUSED_LINEARS) -> Iterator[Call]:
        """Calls of these ops, one each."""
        makers = {
            "norm_linear": self._norm_linear,
            "merge_linear_add": self._merge_linear_add,
            "norm_linear_silu_mul": self._norm_linear_silu_mul,
            "linear_add": self._linear_add,
        }
        for op in ops:
            yield makers[op](step)

    def _norm_linear(self, step: Step) -> Call:
        model = step.model
        n = (model.heads + 2 * model.kv_heads) * model.head_dim
        return self._of_hidden("norm_linear", step, n, n)

    def _norm_linear_silu_mul(self, step: Step) -> Call:
        mlp = step.model.mlp
        return self._of_hidden("norm_linear_silu_mul", step, 2 * mlp, mlp)

    def _of_hidden(self, op: str, step: Step, n: int, width: int) -> Call:
        """A norm and a weight [n, hidden], that give `width` columns."""
        tokens, k = len(step.queries), step.model.hidden
        weight = self._normal(n, k, deviation=k**-0.5)
        return Call(
            op,
            f"{step.name} {op}",
            (self._normal(tokens, k), self._normal(k), EPS, weight),
            self._size(n * k, k, tokens * (k + width)),
            2 * tokens * n * k,
            # The product of gate and up has the errors of both.
            limit=self._limit(2.0 if width < n else 1.0),
        )

    def _linear_add(self, step: Step) -> Call:
        tokens, n, k = len(step.queries), step.model.hidden, step.model.mlp
        return Call(
            "linear_add",
            f"{step.name} linear_add",
            (
                self._normal(tokens, k),
                self._normal(n, k, deviation=k**-0.5),
                self._normal(tokens, n),
            ),
            self._size(n * k, tokens * (k + 2 * n)),
            2 * tokens * n * k,
            limit=self._limit(1.0),
        )

    def _merge_linear_add(self, step: Step) -> Call:
        model, tokens = step.model, len(step.queries)
        n, k = model.hidden, model.heads * model.head_dim
        shape = (tokens, -(-max(step.lengths) // SPLIT), model.heads)
        values = torch.randn((*shape, model.head_dim), generator=self._draw, device=self._device)
        # A greatest score, and a sum of weights of which the greatest is 1.
        scores = torch.randn(shape, generator=self._draw, device=self._device)
        sums = 1 + torch.rand(shape, generator=self._draw, device=self._device)
        splits = Splits(
            # A split's values are not divided by its sum yet.
            values=values * sums[..., None],
            stats=torch.stack((scores, sums), dim=-1),
            seq_lens=self._ints(step.lengths),
            window=None,
        )
        return Call(
            "merge_linear_add",
            f"{step.name} merge_linear_add",
            (splits, self._normal(n, k, deviation=k**-0.5), self._normal(tokens, n)),
            self._size(n * k, 2 * tokens * n) + 4 * (values.numel() + 2 * scores.numel()),
            2 * tokens * n * k,
            limit=self._limit(1.0),
        )
