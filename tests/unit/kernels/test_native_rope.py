"""rope on CPUs against its definition in float64, and the places in the cache that it writes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwell.kernels.cache import Cache, Int8Cache, quantize_vectors
from qwell.kernels.errors import KernelError
from qwell.kernels.native.paged import BLOCK_SIZE
from qwell.kernels.native.rope import bind
from qwell.kernels.native.runner import ISAS, Runner
from qwell.kernels.reference.rope import rope as reference

EPS = 1e-6
NATIVE = {isa: bind(Runner(threads=2, isa=isa)) for isa in ISAS}
native = NATIVE[next(iter(ISAS))]
CACHE_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]

each_isa = pytest.mark.parametrize("isa", NATIVE)


@dataclass
class Step:
    """Arguments of rope but for the caches, which are NaN before."""

    qkv: Tensor
    positions: Tensor
    cos_sin: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    slot_mapping: Tensor
    num_kv_heads: int
    num_blocks: int
    dtype: torch.dtype

    @property
    def head_dim(self) -> int:
        return self.cos_sin.shape[1]

    def run(self, rope) -> tuple[Tensor, Tensor, Tensor]:
        """(q, k_cache, v_cache), the caches as `read` shows them."""
        k_cache = self.nan_cache(torch.empty(self.head_dim, BLOCK_SIZE).mT)
        v_cache = self.nan_cache(torch.empty(BLOCK_SIZE, self.head_dim))
        q = rope(
            self.qkv,
            self.positions,
            self.cos_sin,
            self.q_norm,
            self.k_norm,
            EPS,
            k_cache,
            v_cache,
            self.slot_mapping,
        )
        return q, read(k_cache), read(v_cache)

    def nan_cache(self, block: Tensor) -> Cache:
        """A cache that holds nothing, its blocks laid out like `block`."""
        shape = (self.num_blocks, self.num_kv_heads)
        empty = block.expand(*shape, *block.shape)
        if self.dtype != torch.int8:
            return torch.full_like(empty, torch.nan, dtype=self.dtype)
        values = torch.full_like(empty, 99, dtype=torch.int8)
        return Int8Cache(values, torch.full((*shape, BLOCK_SIZE), torch.nan))


def read(cache: Cache) -> Tensor:
    """What a cache holds; in fp32 where that is not a tensor."""
    return dense(cache.values, cache.scales) if isinstance(cache, Int8Cache) else cache


def dense(values: Tensor, scales: Tensor) -> Tensor:
    return values.float() * scales.unsqueeze(-1)


@st.composite
def steps(draw):
    tokens = draw(st.sampled_from([1, 2, 15, 16, 17, 40]))
    group, num_kv_heads = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    head_dim = draw(st.one_of(st.sampled_from([8, 40, 64, 80, 96, 128, 256]), st.integers(1, 70)))
    head_dim += head_dim % 2
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    num_blocks = -(-tokens // BLOCK_SIZE) + 1
    slots = torch.randperm(num_blocks * BLOCK_SIZE, generator=generator)[:tokens]
    if draw(st.booleans()):
        slots[torch.rand(tokens, generator=generator) < 0.5] = -1
    width = (group + 2) * num_kv_heads * head_dim
    angles = 100 * torch.rand(64, head_dim // 2, generator=generator)
    norms = (None, None)
    if draw(st.booleans()):
        norms = tuple(torch.rand(2, head_dim, generator=generator) + 0.5)
    return Step(
        qkv=10.0 ** draw(st.integers(-3, 3)) * torch.randn(tokens, width, generator=generator),
        positions=torch.randint(64, (tokens,), generator=generator, dtype=torch.int32),
        cos_sin=torch.cat((angles.cos(), angles.sin()), dim=1),
        q_norm=norms[0],
        k_norm=norms[1],
        slot_mapping=slots.to(torch.int32),
        num_kv_heads=num_kv_heads,
        num_blocks=num_blocks,
        dtype=draw(st.sampled_from(CACHE_DTYPES)),
    )


def normed(heads: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return heads
    return heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + EPS) * weight.double()


def rotated(heads: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Heads [T, H, D] turned as complex numbers, and the largest that an element may be off."""
    low, high = heads.chunk(2, dim=-1)
    cos, sin = step.cos_sin[step.positions].double().unsqueeze(1).chunk(2, dim=-1)
    turned = torch.complex(low, high) * torch.complex(cos, sin)
    sizes = torch.cat(((low * cos).abs() + (high * sin).abs(),) * 2, dim=-1)
    sizes = torch.maximum(sizes, torch.cat(((high * cos).abs() + (low * sin).abs(),) * 2, dim=-1))
    # Roundings of the norm: 32 partial sums of the squares, their tree, mean, root, inverse and two
    # products; and of the rotation: products and sum.
    roundings = (heads.shape[-1] / 32 + 16) + 3
    return torch.cat((turned.real, turned.imag), dim=-1), (
        roundings * torch.finfo(torch.float32).eps / 2 * sizes
    )


def rounding_of(k: Tensor, tolerance: Tensor, step: Step) -> Tensor:
    """How far writing k to the cache may move what is within a tolerance of it."""
    if step.dtype == torch.int8:
        # Half a scale, and the roundings of scale, quotient and product.
        scale = (k.abs() + tolerance).amax(dim=-1, keepdim=True) / 127
        return (0.5 + 127 * 3 * torch.finfo(torch.float32).eps / 2) * scale
    rounding = torch.finfo(step.dtype)
    return rounding.eps * k.abs() + rounding.smallest_normal * rounding.eps


@each_isa
@settings(deadline=None)
@given(steps())
def test_equals_definition(isa, nan_empty, assert_within, step):
    heads = step.qkv.double().view(len(step.qkv), -1, step.head_dim)
    num_heads = heads.shape[1] - 2 * step.num_kv_heads
    q, k, v = heads.split((num_heads, step.num_kv_heads, step.num_kv_heads), dim=1)
    with nan_empty():
        out, k_cache, v_cache = step.run(NATIVE[isa])
    assert_within(out, *rotated(normed(q, step.q_norm), step))

    k, tolerance = rotated(normed(k, step.k_norm), step)
    kept = step.slot_mapping >= 0
    block = step.slot_mapping[kept] // BLOCK_SIZE
    offset = step.slot_mapping[kept] % BLOCK_SIZE
    assert_within(
        k_cache[block, :, offset], k[kept], (tolerance + rounding_of(k, tolerance, step))[kept]
    )
    v = v[kept].float()
    stored = dense(*quantize_vectors(v)) if step.dtype == torch.int8 else v.to(step.dtype)
    assert_within(v_cache[block, :, offset], stored, 0.0)
    k_cache[block, :, offset] = v_cache[block, :, offset] = torch.nan
    assert k_cache.isnan().all()
    assert v_cache.isnan().all()


@settings(deadline=None)
@given(steps())
def test_every_isa_gives_the_same_bits(step):
    first, *others = [step.run(rope) for rope in NATIVE.values()]
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@settings(deadline=None)
@given(steps())
def test_without_norms_equals_the_reference(step):
    plain = replace(step, q_norm=None, k_norm=None)
    for a, b in zip(plain.run(native), plain.run(reference), strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@each_isa
@settings(deadline=None)
@given(steps())
def test_bits_of_a_token_depend_on_nothing_else(isa, step):
    q, k_cache, v_cache = step.run(NATIVE[isa])
    for token, slot in enumerate(step.slot_mapping.tolist()):
        rows = slice(token, token + 1)
        alone = replace(
            step,
            qkv=step.qkv[rows].contiguous(),
            positions=step.positions[rows].contiguous(),
            slot_mapping=step.slot_mapping[rows].contiguous(),
        )
        own_q, own_k, own_v = alone.run(NATIVE[isa])
        assert torch.equal(own_q[0], q[token])
        if slot >= 0:
            block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
            assert torch.equal(own_k[block, :, offset], k_cache[block, :, offset])
            assert torch.equal(own_v[block, :, offset], v_cache[block, :, offset])


@each_isa
def test_int8_keeps_zeros_and_gives_up_what_is_not_finite(isa):
    step = make_vectors(
        [
            [0.0, -0.0, 0.0, 0.0],
            [127.0, -63.5, 62.5, 0.4],  # ties go to even integers
            [1.0, torch.inf, 1.0, 1.0],
            [1.0, 1.0, torch.nan, 1.0],
            [190 * 2.0**-149, -(2.0**-149), 0.0, 0.0],  # a scale of 1.496 is 1 of 2^-149
        ]
    )
    for cache in step.run(NATIVE[isa])[1:]:
        written = cache[0, 0, :5]
        assert written[0].tolist() == [0.0] * 4
        assert written[1].tolist() == [127.0, -64.0, 62.0, 0.0]
        assert written[2:4].isnan().all()
        assert written[4].tolist() == [127 * 2.0**-149, -(2.0**-149), 0.0, 0.0]


def make_vectors(vectors: list[list[float]]) -> Step:
    """Tokens whose key, which is not rotated, and value for one head are each a vector."""
    tokens, head_dim = len(vectors), len(vectors[0])
    return Step(
        qkv=torch.tensor(vectors).repeat(1, 3),
        positions=torch.zeros(tokens, dtype=torch.int32),
        cos_sin=torch.tensor([[1.0] * (head_dim // 2) + [0.0] * (head_dim // 2)]),
        q_norm=None,
        k_norm=None,
        slot_mapping=torch.arange(tokens, dtype=torch.int32),
        num_kv_heads=1,
        num_blocks=1,
        dtype=torch.int8,
    )


def _with(**changes) -> dict[str, object]:
    return {
        "qkv": torch.zeros(3, 8 * 4),
        "positions": torch.zeros(3, dtype=torch.int32),
        "cos_sin": torch.zeros(5, 4),
        "q_norm": None,
        "k_norm": None,
        "eps": EPS,
        "k_cache": torch.zeros(1, 2, 4, BLOCK_SIZE).mT,
        "v_cache": torch.zeros(1, 2, BLOCK_SIZE, 4),
        "slot_mapping": torch.zeros(3, dtype=torch.int32),
    } | changes


ODD = {
    "k_cache": torch.zeros(1, 2, 3, BLOCK_SIZE).mT,
    "v_cache": torch.zeros(1, 2, BLOCK_SIZE, 3),
    "qkv": torch.zeros(3, 8 * 3),
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (_with(qkv=torch.zeros(3, 32).half()), "qkv must be torch.float32 of 2 dimensions"),
        (_with(qkv=torch.zeros(3, 33)), r"qkv must have \(Hq \+ 2 Hkv\) D features"),
        (_with(qkv=torch.zeros(3, 16)), r"qkv must have \(Hq \+ 2 Hkv\) D features"),
        (_with(qkv=torch.zeros(3, 28)), r"qkv must have \(Hq \+ 2 Hkv\) D features"),
        (_with(**ODD), "k_cache must have an even D, got 3"),
        (_with(k_cache=torch.zeros(1, 2, BLOCK_SIZE, 4)), "k_cache must be a transposed view"),
        (_with(positions=torch.zeros(2, dtype=torch.int32)), r"positions must have shape \(3,"),
        (_with(slot_mapping=torch.zeros(3)), "slot_mapping must be torch.int32"),
        (_with(cos_sin=torch.zeros(5, 6)), r"cos_sin must have shape \(5, 4\)"),
        (_with(q_norm=torch.zeros(4).half()), "q_norm must be torch.float32"),
        (_with(k_norm=torch.zeros(5)), r"k_norm must have shape \(4,\)"),
    ],
)
def test_refuses_what_it_cannot_read(arguments, message):
    with pytest.raises(KernelError, match=f"rope: {message}"):
        native(**arguments)
