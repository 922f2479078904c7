"""rope on CPUs against its definition in float64, and the places in the cache that it writes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwell.kernels.errors import KernelError
from qwell.kernels.native.paged import BLOCK_SIZE
from qwell.kernels.native.rope import bind
from qwell.kernels.native.runner import ISAS, Runner
from qwell.kernels.reference.rope import rope as reference

EPS = 1e-6
NATIVE = {isa: bind(Runner(threads=2, isa=isa)) for isa in ISAS}
native = NATIVE[next(iter(ISAS))]
CACHE_DTYPES = [torch.float32, torch.bfloat16, torch.float16]

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
        """(q, k_cache, v_cache)."""
        shape = (self.num_blocks, self.num_kv_heads)
        k_cache = torch.full((*shape, self.head_dim, BLOCK_SIZE), torch.nan, dtype=self.dtype).mT
        v_cache = torch.full((*shape, BLOCK_SIZE, self.head_dim), torch.nan, dtype=self.dtype)
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
        return q, k_cache, v_cache


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
    rounding = torch.finfo(step.dtype)
    tolerance = tolerance + rounding.eps * k.abs() + rounding.smallest_normal * rounding.eps
    assert_within(k_cache[block, :, offset], k[kept], tolerance[kept])
    assert_within(v_cache[block, :, offset], v[kept].float().to(step.dtype), 0.0)
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
