"""Calls of every op as a step of a model makes them, with what each moves and computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qwell.bench.kernels.models import Model
from qwell.bench.work import weight_bytes
from qwell.kernels.ops import MAX_TOP_LOGPROBS, OP_NAMES, Extent
from qwell.kernels.quantize import quantize_fp8, quantize_int4, quantize_int8
from qwell.kernels.weights import Weight

EPS = 1e-6
PAGE = 16


@dataclass(frozen=True)
class Call:
    """An op's arguments, and what is known of the work.

    Attributes:
        bytes_moved: between memory and chip, if each input and output goes once.
        flops: multiplications and additions, both counted.
        written: places of the arguments that the op writes to, beside what it returns.
        limit: most error that is right: in machine epsilons of the result's dtype, of the
            value or the root mean square of its row where that is larger. Half of one is the
            rounding of the result; ops that round to the model dtype on their way have more.
        differing: share of the integers of a result that may differ.
        baseline: what torch itself offers for the same result, with its name.
    """

    op: str
    case: str
    arguments: tuple[Any, ...]
    bytes_moved: int
    flops: int = 0
    written: tuple[int, ...] = ()
    limit: float = 1.0
    differing: float = 0.0
    baseline: tuple[str, Callable[[], object]] | None = None


@dataclass(frozen=True)
class Step:
    """Tokens of a step: sequence s has `queries[s]` new ones, `lengths[s]` with those before.

    Sequences with one query come first.
    """

    name: str
    model: Model
    queries: tuple[int, ...]
    lengths: tuple[int, ...]


def decode(model: Model, batch: int, context: int) -> Step:
    """One token for each of `batch` sequences that are `context` tokens long then."""
    name = f"{model.name} decode {batch}x{context}"
    return Step(name, model, (1,) * batch, (context,) * batch)


def prefill(model: Model, tokens: int) -> Step:
    """One prompt."""
    return Step(f"{model.name} prefill {tokens}", model, (tokens,), (tokens,))


class Calls:
    """Makes the calls of a step on a device, in a model dtype, from a seed."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self._device = device
        self._dtype = dtype
        self._draw = torch.Generator(device).manual_seed(seed)

    def of(self, step: Step, ops: Sequence[str] = OP_NAMES) -> Iterator[Call]:
        """Calls of these ops; made one by one, because together they could fill a GPU."""
        makers = {
            "embedding": (self._embedding,),
            "rms_norm": (self._rms_norm,),
            "linear": (self._linear, self._packed_linear),
            "rope": (self._rope,),
            "attention": (self._attention,),
            "silu_mul": (self._silu_mul,),
            "adjust_logits": (self._adjust_logits,),
            "sample": (self._sample,),
            "logprobs": (self._logprobs,),
        }
        for op in ops:
            for make in makers[op]:
                yield from make(step)

    def _normal(self, *shape: int, deviation: float = 1.0) -> Tensor:
        drawn = torch.empty(shape, dtype=self._dtype, device=self._device)
        return drawn.normal_(0.0, deviation, generator=self._draw)

    def _ids(self, below: int, count: int) -> Tensor:
        return torch.randint(
            below, (count,), generator=self._draw, dtype=torch.int32, device=self._device
        )

    def _ints(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self._device)

    def _size(self, *counts: int) -> int:
        return self._dtype.itemsize * sum(counts)

    def _limit(self, epsilons: float) -> float:
        """In fp32 the reference has no more digits than the op: two orders of a sum differ.

        By the root of its length, 4864 terms by some 60 epsilons; TF32 would by thousands.
        """
        return 256 * epsilons if self._dtype == torch.float32 else epsilons

    def _embedding(self, step: Step) -> Iterator[Call]:
        model, tokens = step.model, sum(step.queries)
        table = self._normal(model.vocabulary, model.hidden)
        ids = self._ids(model.vocabulary, tokens)
        moved = self._size(2 * tokens * model.hidden)
        baseline = ("F.embedding", lambda: F.embedding(ids, table))
        yield Call("embedding", step.name, (ids, table), moved, limit=0.0, baseline=baseline)

    def _rms_norm(self, step: Step) -> Iterator[Call]:
        width, tokens = step.model.hidden, sum(step.queries)
        x, residual = self._normal(tokens, width), self._normal(tokens, width)
        weight = self._normal(width)
        moved = self._size(2 * tokens * width, width)
        # Rounded: the sum, the normalised value, the product with the weight.
        yield Call(
            "rms_norm",
            step.name,
            (x, weight, EPS),
            moved,
            limit=self._limit(2.0),
            baseline=("F.rms_norm", lambda: F.rms_norm(x, (width,), weight, EPS)),
        )
        yield Call(
            "rms_norm",
            f"{step.name} + residual",
            (x, weight, EPS, residual),
            moved + self._size(2 * tokens * width),
            limit=self._limit(2.0),
            baseline=("add, F.rms_norm", lambda: F.rms_norm(x + residual, (width,), weight, EPS)),
        )

    def _linear(self, step: Step) -> Iterator[Call]:
        for name, n, k in matrices(step.model):
            yield self._linear_call(step, name, self._normal(n, k, deviation=k**-0.5), n, k)

    def _packed_linear(self, step: Step) -> Iterator[Call]:
        name, n, k = next(shape for shape in matrices(step.model) if shape[0] == "gate_up")
        weight = self._normal(n, k, deviation=k**-0.5)
        for kind, quantize in (
            ("int8", quantize_int8),
            ("int4", quantize_int4),
            ("fp8", quantize_fp8),
        ):
            yield self._linear_call(step, f"{name} {kind}", quantize(weight), n, k, weight)

    def _linear_call(
        self, step: Step, name: str, weight: Weight, n: int, k: int, plain: Tensor | None = None
    ) -> Call:
        tokens = sum(step.queries)
        x = self._normal(tokens, k)
        dense = weight if isinstance(weight, Tensor) else plain
        assert dense is not None, "a packed weight comes with the one that it was made from"
        # A row of logits for each sequence is all that a step asks of the head.
        if name == "head":
            x = x[: len(step.queries)]
        return Call(
            "linear",
            f"{step.name} {name}",
            (x, weight),
            weight_bytes(weight) + self._size(len(x) * (n + k)),
            2 * len(x) * n * k,
            limit=self._limit(1.0),
            baseline=("cuBLAS", lambda: F.linear(x, dense)),
        )

    def _cache(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and a block table that scatters each sequence over the pool."""
        blocks = [-(-length // PAGE) for length in step.lengths]
        order = torch.randperm(sum(blocks), generator=self._draw, device=self._device)
        table = torch.zeros(len(blocks), max(blocks), dtype=torch.int32, device=self._device)
        for row, own in zip(table, order.split(blocks), strict=True):
            row[: len(own)] = own
        shape = (sum(blocks), step.model.kv_heads, PAGE, step.model.head_dim)
        return self._normal(*shape), self._normal(*shape), table

    def _rope(self, step: Step) -> Iterator[Call]:
        model, tokens = step.model, sum(step.queries)
        k_cache, v_cache, table = self._cache(step)
        positions = self._ints(
            [
                position
                for count, length in zip(step.queries, step.lengths, strict=True)
                for position in range(length - count, length)
            ]
        )
        row = torch.repeat_interleave(
            torch.arange(len(step.queries), device=self._device), self._ints(step.queries)
        )
        slots = table[row, positions // PAGE] * PAGE + positions % PAGE
        angle = torch.rand(
            max(step.lengths), model.head_dim // 2, generator=self._draw, device=self._device
        )
        cos_sin = torch.cat((angle.cos(), angle.sin()), dim=1)
        width = (model.heads + 2 * model.kv_heads) * model.head_dim
        norms = self._normal(model.head_dim), self._normal(model.head_dim)
        yield Call(
            "rope",
            step.name,
            (
                self._normal(tokens, width),
                positions,
                cos_sin,
                *norms,
                EPS,
                k_cache,
                v_cache,
                slots.to(torch.int32),
            ),
            self._size(2 * tokens * width) + 4 * tokens * model.head_dim,
            written=(6, 7),
            # Two roundings of the norm, one of the rotation, whose two terms may cancel.
            limit=self._limit(4.0),
        )

    def _attention(self, step: Step) -> Iterator[Call]:
        model, tokens = step.model, sum(step.queries)
        k_cache, v_cache, table = self._cache(step)
        q = self._normal(tokens, model.heads, model.head_dim)
        starts = [sum(step.queries[:s]) for s in range(len(step.queries) + 1)]
        scale = model.head_dim**-0.5
        # Query i of n, in a sequence of L, meets L - n + 1 + i keys.
        met = sum(
            n * (length - n) + n * (n + 1) // 2
            for n, length in zip(step.queries, step.lengths, strict=True)
        )
        cached = sum(step.lengths) * 2 * model.kv_heads * model.head_dim
        yield Call(
            "attention",
            step.name,
            (
                q,
                k_cache,
                v_cache,
                table,
                self._ints(starts),
                self._ints(step.lengths),
                Extent(
                    num_decodes=step.queries.count(1),
                    max_query_len=max(step.queries),
                    max_seq_len=max(step.lengths),
                ),
                scale,
            ),
            self._size(2 * q.numel(), cached),
            4 * met * model.heads * model.head_dim,
            # Probabilities are rounded before they meet the values.
            limit=self._limit(4.0),
            baseline=self._sdpa(step, scale),
        )

    def _sdpa(self, step: Step, scale: float) -> tuple[str, Callable[[], object]] | None:
        """torch's attention over keys that lie in one piece, for steps that it can express."""
        count, length = step.queries[0], step.lengths[0]
        whole = set(zip(step.queries, step.lengths, strict=True)) == {(count, length)}
        if not whole or count not in (1, length):
            return None
        model, batch = step.model, len(step.queries)
        q = self._normal(batch, model.heads, count, model.head_dim)
        k, v = (self._normal(batch, model.kv_heads, length, model.head_dim) for _ in range(2))

        def run() -> object:
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=count > 1, scale=scale, enable_gqa=True
            )

        return "SDPA", run

    def _silu_mul(self, step: Step) -> Iterator[Call]:
        mlp, tokens = step.model.mlp, sum(step.queries)
        x = self._normal(tokens, 2 * mlp)
        baseline = ("F.silu, mul", lambda: F.silu(x[:, :mlp]) * x[:, mlp:])
        yield Call(
            "silu_mul",
            step.name,
            (x,),
            self._size(3 * tokens * mlp),
            limit=self._limit(1.0),
            baseline=baseline,
        )

    def _logits(self, step: Step) -> Tensor:
        shape = (len(step.queries), step.model.vocabulary)
        return torch.randn(shape, generator=self._draw, device=self._device) * 4.0

    def _adjust_logits(self, step: Step) -> Iterator[Call]:
        logits = self._logits(step)
        rows, vocabulary = logits.shape
        listed = min(1000, vocabulary // 2)
        ids = torch.arange(listed, dtype=torch.int32, device=self._device)
        penalty = torch.ones(rows, dtype=torch.float64, device=self._device)
        # Ids in the prompt alone, generated ones, and ones that are only biased, take turns.
        counts = ids % 5 - 1
        yield Call(
            "adjust_logits",
            step.name,
            (
                logits,
                ids.repeat(rows),
                counts.repeat(rows),
                torch.randn(
                    rows * listed, generator=self._draw, dtype=torch.float64, device=self._device
                ),
                self._ints([listed * s for s in range(rows + 1)]),
                self._ids(vocabulary, rows),
                penalty * 1.3,
                penalty * 0.5,
                penalty * 0.2,
                torch.zeros(rows, dtype=torch.int32, device=self._device),
            ),
            # A listed logit is read and written, and moves a sector of 32 bytes each time.
            (2 * 32 + 16) * rows * listed,
            written=(0,),
        )

    def _sample(self, step: Step) -> Iterator[Call]:
        logits = self._logits(step)
        rows = len(logits)
        # Rows take turns: greedy, plain, top-k and top-p, with typical-p and with min-p.
        kinds = torch.arange(rows, device=self._device) % 4

        def parameter(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)[kinds]

        yield Call(
            "sample",
            step.name,
            (
                logits,
                parameter(0.0, 1.0, 0.7, 0.6),
                parameter(0, 0, 50, 20, dtype=torch.int32),
                parameter(1.0, 1.0, 0.9, 0.95),
                parameter(0.0, 0.0, 0.0, 0.05),
                parameter(1.0, 1.0, 0.9, 1.0),
                torch.rand(rows, generator=self._draw, dtype=torch.float64, device=self._device),
            ),
            4 * logits.numel() + 4 * rows,
            # Where the draw falls within rounding of the border between two ids.
            differing=0.02,
            baseline=(
                "softmax, multinomial",
                lambda: torch.multinomial(logits.softmax(dim=-1), 1),
            ),
        )

    def _logprobs(self, step: Step) -> Iterator[Call]:
        logits = self._logits(step)
        ids = self._ids(step.model.vocabulary, len(logits))
        top = min(MAX_TOP_LOGPROBS, step.model.vocabulary)
        yield Call(
            "logprobs",
            step.name,
            (logits, ids, top),
            4 * logits.numel() + 8 * len(logits) * (top + 1),
            # The sum of exp over the vocabulary is taken in fp32.
            limit=16.0,
            baseline=("log_softmax, topk", lambda: logits.log_softmax(dim=-1).topk(top)),
        )


def matrices(model: Model) -> tuple[tuple[str, int, int], ...]:
    """(name, N, K) of every linear of a layer, and of the head."""
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    return (
        ("qkv", q + 2 * kv, model.hidden),
        ("o", model.hidden, q),
        ("gate_up", 2 * model.mlp, model.hidden),
        ("down", model.hidden, model.mlp),
        ("head", model.vocabulary, model.hidden),
    )
