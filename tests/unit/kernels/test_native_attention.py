"""attention on CPUs against its definition in float64, and bits that depend on nothing else."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwell.kernels.cache import Cache, Int8Cache, quantize_vectors
from qwell.kernels.errors import KernelError
from qwell.kernels.native.attention import bind
from qwell.kernels.native.paged import BLOCK_SIZE
from qwell.kernels.native.runner import ISAS, Runner
from qwell.kernels.ops import Extent

NATIVE = {isa: bind(Runner(threads=2, isa=isa)) for isa in ISAS}
native = NATIVE[next(iter(ISAS))]
CACHE_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
HEAD_DIMS = [8, 16, 40, 64, 80, 96, 128, 256]
EXTENT = Extent(num_decodes=0, max_query_len=1, max_seq_len=1)  # sizes launches; not read here

each_isa = pytest.mark.parametrize("isa", NATIVE)


@dataclass
class Step:
    """Sequences over a paged cache in which whatever they do not own is NaN."""

    counts: list[int]  # queries of a sequence
    lengths: list[int]
    q: Tensor
    k_cache: Cache
    v_cache: Cache
    block_table: Tensor
    window: int | None = None

    @property
    def scale(self) -> float:
        return self.q.shape[2] ** -0.5

    def run(self, attention, q: Tensor | None = None) -> Tensor:
        starts = [0, *itertools.accumulate(self.counts)]
        return attention(
            self.q if q is None else q,
            self.k_cache,
            self.v_cache,
            self.block_table,
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(self.lengths, dtype=torch.int32),
            EXTENT,
            self.scale,
            self.window,
        )

    def part(self, s: int, first: int, last: int) -> Step:
        """The queries first .. last - 1 of a sequence as a step of their own."""
        start = sum(self.counts[:s]) + first
        return Step(
            counts=[last - first],
            lengths=[self.lengths[s] - self.counts[s] + last],
            q=self.q[start : start + last - first].contiguous(),
            k_cache=self.k_cache,
            v_cache=self.v_cache,
            block_table=self.block_table[s : s + 1].contiguous(),
            window=self.window,
        )


def make_step(
    counts: list[int],
    lengths: list[int],
    *,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    seed: int = 0,
) -> Step:
    draw = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    num_blocks = sum(blocks) + 1
    order = (torch.randperm(num_blocks - 1, generator=draw) + 1).to(torch.int32)
    # Padded with block 0, which is NaN.
    table = torch.zeros(len(lengths), max(blocks) + 1, dtype=torch.int32)
    caches = torch.full((2, num_blocks, num_kv_heads, BLOCK_SIZE, head_dim), torch.nan)
    used = 0
    for s, length in enumerate(lengths):
        table[s, : blocks[s]] = order[used : used + blocks[s]]
        used += blocks[s]
        position = torch.arange(length)
        block = table[s, position // BLOCK_SIZE]
        tokens = torch.randn(length, 2, num_kv_heads, head_dim, generator=draw)
        caches[:, block, :, position % BLOCK_SIZE] = tokens
    q = torch.randn(sum(counts), num_heads, head_dim, generator=draw)
    return Step(counts, lengths, q, *caches_of(*caches, dtype), table, window)


def caches_of(k: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Cache, Cache]:
    """The same values as the native ops take them; NaN in int8 is a scale."""
    if dtype != torch.int8:
        return k.to(dtype).mT.contiguous().mT, v.to(dtype)
    (k, k_scales), (v, v_scales) = quantize_vectors(k), quantize_vectors(v)
    return Int8Cache(k.mT.contiguous().mT, k_scales), Int8Cache(v, v_scales)


def read(cache: Cache) -> Tensor:
    """What a cache holds, in float64."""
    if isinstance(cache, Int8Cache):
        return cache.values.double() * cache.scales.double().unsqueeze(-1)
    return cache.double()


@st.composite
def steps(draw):
    """Prefill, decode, chunks over a cached prefix and padding, in any order."""
    group = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 12]))
    num_kv_heads = draw(st.integers(1, 3))
    queries_and_prefix = st.one_of(
        st.tuples(st.just(1), st.integers(0, 700)),
        st.tuples(st.integers(2, 40), st.integers(0, 100)),
        st.tuples(st.just(17), st.just(0)),
    )
    sequences = draw(st.lists(queries_and_prefix, min_size=1, max_size=4))
    counts = [queries for queries, _ in sequences]
    lengths = [queries + prefix for queries, prefix in sequences]
    if draw(st.booleans()):
        padded = draw(st.integers(0, len(counts)))
        counts.insert(padded, draw(st.integers(1, 3)))
        lengths.insert(padded, 0)
    return make_step(
        counts,
        lengths,
        heads=(group * num_kv_heads, num_kv_heads),
        head_dim=draw(st.sampled_from(HEAD_DIMS)),
        dtype=draw(st.sampled_from(CACHE_DTYPES)),
        window=draw(st.one_of(st.none(), st.integers(1, 600))),
        seed=draw(st.integers(0, 2**32)),
    )


def rounds(isa: str, step: Step) -> bool:
    """Whether queries and weights are rounded to bfloat16, for dot products of pairs."""
    return isa == "avx512_bf16" and getattr(step.k_cache, "dtype", None) == torch.bfloat16


def definition(step: Step, rounded: bool = False) -> tuple[Tensor, Tensor]:
    """attention in float64, and how far that of fp32 may be from it.

    With `rounded` queries are rounded to bfloat16, and weights may be.
    """
    outputs, tolerances = [], []
    ends = list(itertools.accumulate(step.counts))
    for s, (end, count, length) in enumerate(zip(ends, step.counts, step.lengths, strict=True)):
        if length == 0:
            outputs.append(torch.zeros(count, step.q[0].numel(), dtype=torch.float64))
            tolerances.append(torch.zeros_like(outputs[-1]))
            continue
        q = step.q[end - count : end].double() * step.scale
        if rounded:
            q = (step.q[end - count : end] * step.scale).bfloat16().double()
        group = q.shape[1] // step.k_cache.shape[1]
        blocks = step.block_table[s, : -(-length // BLOCK_SIZE)]
        k, v = (
            read(cache)[blocks].transpose(0, 1).flatten(1, 2)[:, :length]
            for cache in (step.k_cache, step.v_cache)
        )
        k, v = (x.repeat_interleave(group, dim=0) for x in (k, v))
        position = torch.arange(length - count, length).unsqueeze(1)
        hidden = torch.arange(length) > position
        if step.window is not None:
            hidden |= torch.arange(length) <= position - step.window
        scores = torch.einsum("nhd,hld->hnl", q, k).masked_fill(hidden, -torch.inf)
        weights = scores.softmax(-1)
        mixed = torch.einsum("hnl,hld->nhd", weights, v)
        # Relative errors of a weight, in roundings: of each product and sum of its score, and of
        # a key's scale, in absolute terms of the score; of exp, there and where a later maximum
        # rescales it, once a step of 64 keys and once a split of 512; of a value's scale; of each
        # addition. Twice: in sum and total.
        sizes = torch.einsum("nhd,hld->hnl", q.abs(), k.abs()).amax(dim=(0, 2))
        rescaled = 4 * (length / 64 + length / 512 + 2)
        roundings = 2 * ((q.shape[2] + 3) * sizes + length + 1 + rescaled)
        eps = torch.finfo(torch.float32).eps / 2
        outputs.append(mixed.flatten(1))
        bound = roundings * eps * v.abs().max()
        if isinstance(step.k_cache, Int8Cache):
            # Queries and weights become whole numbers of 16 bits: an element of a query is off by
            # 2^-16 of the largest one, and each weight by that of the largest of its 64 keys.
            scores_off = (q.abs().amax(dim=(1, 2)) * k.abs().sum(-1).max()) * 2
            bound = bound + (scores_off + 64) * 2**-16 * v.abs().max()
        bound = bound.unsqueeze(1)
        tolerances.append(bound.expand_as(outputs[-1]))
        if rounded:
            # Sum and total have the same roundings, so what all values share is not moved.
            apart = (v.unsqueeze(1) - mixed.transpose(0, 1).unsqueeze(2)).abs()
            moved = torch.einsum("hnl,hnld->nhd", weights, apart)
            half = torch.finfo(torch.bfloat16).eps / 2
            tolerances[-1] = tolerances[-1] + half / (1 - half) * moved.flatten(1)
    return torch.cat(outputs), torch.cat(tolerances)


@each_isa
@settings(deadline=None)
@given(steps())
def test_equals_definition(isa, nan_empty, assert_within, step):
    expected, tolerance = definition(step, rounds(isa, step))
    with nan_empty():
        out = step.run(NATIVE[isa])
    assert_within(out, expected, tolerance)


@each_isa
@settings(deadline=None)
@given(steps())
def test_bits_do_not_depend_on_chunks_or_batch(isa, step):
    together = step.run(NATIVE[isa])
    start = 0
    for s, count in enumerate(step.counts):
        cuts = sorted({0, count // 3, count - 1, count})
        for first, last in itertools.pairwise(cuts):
            alone = step.part(s, first, last).run(NATIVE[isa]) if step.lengths[s] else 0.0
            assert same_bits(together[start + first : start + last], alone)
        start += count


@each_isa
def test_bits_of_a_long_context_do_not_depend_on_chunks_or_batch(isa):
    step = make_step([130, 1], [1150, 1025], heads=(14, 2), head_dim=64, dtype=torch.bfloat16)
    together = step.run(NATIVE[isa])
    assert same_bits(together[130:], step.part(1, 0, 1).run(NATIVE[isa]))
    for query in (0, 1, 63, 64, 100, 129):
        assert same_bits(
            together[query : query + 1], step.part(0, query, query + 1).run(NATIVE[isa])
        )


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize(
    ("counts", "lengths", "heads"),
    [
        ([1], [1100], (4, 2)),  # splits of few tiles
        ([1] * 9, list(range(1030, 1300, 30)), (4, 2)),  # tiles enough
        ([1] * 9, [1100, *[5] * 8], (4, 2)),  # tiles enough, but for the long one
        ([200], [900], (4, 1)),
    ],
)
def test_bits_do_not_depend_on_threads(threads, counts, lengths, heads):
    step = make_step(counts, lengths, heads=heads, dtype=torch.float16)
    assert same_bits(step.run(bind(Runner(threads))), step.run(native))


@settings(deadline=None)
@given(steps())
def test_fusing_instruction_sets_give_the_same_bits(step):
    fusing = [isa for isa in ISAS if isa != "portable" and not rounds(isa, step)]
    first, *others = [step.run(NATIVE[isa]) for isa in fusing]
    for other in others:
        assert same_bits(first, other)


def same_bits(a: Tensor, b: Tensor | float) -> bool:
    """Equal, signs of zeros included."""
    b = torch.as_tensor(b).expand_as(a)
    return torch.equal(a.view(torch.int32), b.contiguous().view(torch.int32))


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("special", [torch.inf, torch.nan])
def test_a_token_that_broke_changes_no_earlier_one(isa, special, dtype):
    step = make_step([40], [40], head_dim=64, dtype=dtype)
    whole = step.run(NATIVE[isa])
    block, offset = step.block_table[0, 30 // BLOCK_SIZE], 30 % BLOCK_SIZE
    for cache in (step.k_cache, step.v_cache):
        numbers = cache.scales if isinstance(cache, Int8Cache) else cache
        numbers[block, :, offset] = special
    broken = step.run(NATIVE[isa])
    assert same_bits(broken[:30], whole[:30])
    assert broken[30:].isnan().all()


@each_isa
def test_sums_of_integers_lose_little_beside_an_int8_cache(isa):
    exact = make_step([1], [1000], head_dim=128)
    step = make_step([1], [1000], head_dim=128, dtype=torch.int8)
    expected, _ = definition(step)
    lost_by_cache = (expected - definition(exact)[0]).norm()
    assert (step.run(NATIVE[isa]) - expected).norm() < lost_by_cache / 100


@each_isa
@pytest.mark.parametrize(
    ("of_queries", "of_values"), [(0.0, 1.0), (1e-36, 1.0), (1.0, 0.0), (1.0, 1e-25), (1.0, 1e30)]
)
def test_integers_stand_for_numbers_of_any_size(isa, of_queries, of_values, assert_within):
    step = make_step([3], [80], head_dim=64, dtype=torch.int8)
    step.q *= of_queries
    step.v_cache.scales.mul_(of_values)
    assert_within(step.run(NATIVE[isa]), *definition(step))


@each_isa
def test_large_scores_do_not_overflow(isa, assert_within):
    step = make_step([3], [80], head_dim=64)
    step.q *= 300.0
    expected, _ = definition(step)
    # The largest score is so far ahead of the next that the softmax is one of its values.
    assert_within(step.run(NATIVE[isa]), expected, 1e-3)


def test_a_replay_reads_the_sequences_anew():
    step = make_step([1, 3, 1], [700, 30, 9], seed=1)
    rows, seqs = 8, 6
    q = torch.zeros(rows, *step.q.shape[1:])
    starts = torch.zeros(seqs + 1, dtype=torch.int32)
    lengths = torch.zeros(seqs, dtype=torch.int32)
    table = torch.zeros(seqs, step.block_table.shape[1], dtype=torch.int32)
    runner = Runner(threads=2)
    attention = bind(runner)

    def forward() -> Tensor:
        caches = (step.k_cache, step.v_cache)
        return attention(q, *caches, table, starts, lengths, EXTENT, step.scale)

    replay = runner.record(forward, tokens=q, logits=torch.zeros(1))
    # The replay's rows of logits are its rows of tokens here.
    for chosen in ([0, 1, 2], [1], [2, 0]):
        parts = [step.part(s, 0, step.counts[s]) for s in chosen]
        tokens = sum(part.counts[0] for part in parts)
        q[:tokens] = torch.cat([part.q for part in parts])
        starts.fill_(tokens)
        starts[: len(parts)] = torch.tensor(
            [0, *itertools.accumulate(part.counts[0] for part in parts)][:-1]
        )
        lengths[: len(parts)] = torch.tensor([part.lengths[0] for part in parts])
        table[: len(parts)] = torch.cat([part.block_table for part in parts])
        replayed = replay(tokens, tokens).clone()
        assert same_bits(replayed, torch.cat([part.run(native) for part in parts]))


def test_refuses_heads_whose_sums_of_integers_may_overflow():
    step = make_step([1], [5], head_dim=520, dtype=torch.int8)
    with pytest.raises(KernelError, match="heads of an Int8Cache may have 512 elements, got 520"):
        step.run(native)


def _int8_cache(
    values: torch.dtype = torch.int8, scales: torch.dtype = torch.float32, tokens: int = 16
) -> Int8Cache:
    return Int8Cache(
        torch.zeros(2, 2, 16, 32, dtype=values), torch.zeros(2, 2, tokens, dtype=scales)
    )


def _with(**changes) -> dict[str, object]:
    step = make_step([1], [5])
    return {
        "q": step.q,
        "k_cache": step.k_cache,
        "v_cache": step.v_cache,
        "block_table": step.block_table,
        "cu_seqlens_q": torch.tensor([0, 1], dtype=torch.int32),
        "seq_lens": torch.tensor([5], dtype=torch.int32),
        "extent": EXTENT,
        "scale": 1.0,
    } | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (_with(q=torch.zeros(1, 4, 32).half()), "q must be torch.float32 of 3 dimensions"),
        (_with(q=torch.zeros(1, 4, 64)[..., ::2]), "q must be contiguous"),
        (_with(q=torch.zeros(1, 3, 32)), r"q must have a multiple of 2 heads, of 32 elements"),
        (_with(k_cache=torch.zeros(2, 2, 16, 32)), "k_cache must be a transposed view"),
        (_with(k_cache=torch.zeros(2, 2, 8, 32)), r"k_cache must have shape .* 16, D\]"),
        (_with(v_cache=torch.zeros(2, 2, 32, 16).mT), "v_cache must be contiguous"),
        (_with(v_cache=torch.zeros(2, 2, 16, 32).half()), "v_cache must be like k_cache"),
        (_with(v_cache=torch.zeros(2, 2, 16, 32).int()), "v_cache must be an Int8Cache or one of"),
        (_with(v_cache=torch.zeros(2, 2, 16, 32, dtype=torch.int8)), "v_cache must be an Int8Cac"),
        (_with(v_cache=_int8_cache()), "v_cache must be like k_cache, torch.float32"),
        (_with(v_cache=_int8_cache(values=torch.int16)), "v_cache must have torch.int8 values"),
        (_with(v_cache=_int8_cache(scales=torch.float16)), "scales of v_cache must be contiguous"),
        (_with(v_cache=_int8_cache(tokens=8)), r"scales of v_cache must be .* \(2, 2, 16\)"),
        (_with(seq_lens=torch.tensor([5])), "seq_lens must be torch.int32"),
        (_with(seq_lens=torch.tensor([5, 5], dtype=torch.int32)), r"seq_lens must have shape \(1,"),
        (_with(block_table=torch.zeros(2, dtype=torch.int32)), "block_table must have shape"),
        (_with(cu_seqlens_q=torch.zeros(1, dtype=torch.int32)), "cu_seqlens_q must have shape"),
        (_with(window=0), "window must be positive or None, got 0"),
    ],
)
def test_refuses_what_it_cannot_read(arguments, message):
    with pytest.raises(KernelError, match=f"attention: {message}"):
        native(**arguments)
