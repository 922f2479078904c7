"""The op set: the one list of names, signatures, shapes and dtypes.

Letters: T tokens of all sequences of a step, S sequences, d hidden size, Hq query heads,
Hkv key/value heads, D head_dim, I MLP width, V vocabulary rows, N and K matrix sides,
P positions. Activations are [T, features] in the model dtype; indices are int32.

Paged cache, one pair a layer: k_cache, v_cache [num_blocks, Hkv, block_size, D], in the model dtype
on GPUs, on CPUs in any of float32, bfloat16 and float16, rounded when written, or as the integers
and scales of an Int8Cache (kernels/cache.py). An implementation says which it takes. On CPUs
k_cache is a view of memory in which the last two dimensions are swapped (kernels/native/paged.py).
Token t of a step is written to slot_mapping[t] = block * block_size + offset, or nowhere if
that is -1. A sequence with seq_lens 0 has no keys: its rows are zero. Captured steps are padded
with such tokens and sequences.
Sequence s owns query rows cu_seqlens_q[s] .. cu_seqlens_q[s + 1] and, when its queries run,
seq_lens[s] cached tokens, the new ones included, found through block_table[s].
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

from torch import Tensor

from qwell.kernels.cache import Cache
from qwell.kernels.weights import Weight


@dataclass(frozen=True)
class Extent:
    """Bounds of a step that the host knows: launches are sized without asking the device.

    Attributes:
        num_decodes: leading sequences with exactly one query; the others may have more.
        max_query_len: most queries of a sequence.
        max_seq_len: at least the largest of seq_lens.
    """

    num_decodes: int
    max_query_len: int
    max_seq_len: int


class Embedding(Protocol):
    def __call__(self, ids: Tensor, table: Weight) -> Tensor:
        """Rows of table [V, d] for ids [T] -> [T, d], in the model dtype.

        A table that is not a Tensor means its exact values, as a weight of linear does. An
        implementation says which formats it reads. Ids are not checked. The rows of logits are
        gathered by it too: the table may be activations.
        """


class RmsNorm(Protocol):
    def __call__(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """s = x + residual (x if None), y = s * rsqrt(mean(s^2) + eps) * weight -> (y, s).

        x, residual [T, N], weight [N]. The sum is rounded to the model dtype, the mean is
        taken in fp32, the normalised value is rounded to the model dtype before the weight
        is applied (Hugging Face's Qwen2RMSNorm; arXiv 1910.07467).
        """


class Linear(Protocol):
    def __call__(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """x [T, K] times weight [N, K] transposed, plus bias [N] -> [T, N]; fp32 accumulation.

        A weight that is not a Tensor of the model dtype is in a format of kernels/weights.py
        and means its exact values; activations are not quantised.
        """


class Rope(Protocol):
    def __call__(
        self,
        qkv: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        k_cache: Cache,
        v_cache: Cache,
        slot_mapping: Tensor,
    ) -> Tensor:
        """Split qkv [T, (Hq + 2 Hkv) D], norm and rotate q and k, cache k and v -> q [T, Hq, D].

        q_norm, k_norm [D] are RMS weights applied per head before the rotation, or both None.
        cos_sin [P, D] fp32 holds cos of D/2 frequencies, then sin; pairs are (j, j + D/2).
        Rotation in fp32, one rounding to the model dtype (arXiv 2104.09864).
        """


class Attention(Protocol):
    def __call__(
        self,
        q: Tensor,
        k_cache: Cache,
        v_cache: Cache,
        block_table: Tensor,
        cu_seqlens_q: Tensor,
        seq_lens: Tensor,
        extent: Extent,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """Causal softmax(scale q k^T) v over the paged cache: q [T, Hq, D] -> [T, Hq * D].

        Query i of sequence s stands at position seq_lens[s] - (number of its queries) + i and
        sees keys 0..position, with a window only the last `window` of them. Query head h reads
        key/value head h // (Hq / Hkv).
        """


class SiluMul(Protocol):
    def __call__(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up for gate_up [T, 2 I] = gate | up -> [T, I]; in fp32, rounded once."""


class AdjustLogits(Protocol):
    def __call__(
        self,
        logits: Tensor,
        ids: Tensor,
        counts: Tensor,
        biases: Tensor,
        cu_ids: Tensor,
        newest: Tensor,
        repetition_penalty: Tensor,
        presence_penalty: Tensor,
        frequency_penalty: Tensor,
        only_listed: Tensor,
    ) -> None:
        """Penalise, bias and ban ids of fp32 logits [S, V] in place; rows do not meet.

        Row s lists ids[cu_ids[s]:cu_ids[s + 1]], each at most once. counts says how often an id
        was generated, -1 if it is not in the prompt either; biases (float64) what is added to its
        logit, -inf bans it. newest [S] is the id generated last where counts do not have it yet,
        listed or not, else -1. Penalties are float64 [S]; all but these and biases are int32.

        Order: repetition penalty of ids with count >= 0 (logit / penalty if >= 0, else * penalty;
        CTRL, arXiv 1909.05858), - frequency_penalty * count - presence_penalty of those with
        count > 0, + bias, each step rounded to fp32. Where only_listed is not 0, ids that are not
        listed get -inf.
        """


class Sample(Protocol):
    def __call__(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        typical_p: Tensor,
        uniform: Tensor,
    ) -> Tensor:
        """Next ids [S] from fp32 logits [S, V]; every parameter is [S], row s alone decides id s.

        Order: temperature, top-k (0 keeps all; ties of the k-th stay), top-p (the smallest set
        reaching it, at least one), min-p, typical-p, then the inverse of the cumulative
        distribution at uniform[s] in [0, 1), ids in ascending order. Temperature 0 takes the first
        maximum.

        Typical-p (arXiv 2202.00666; 1 keeps all) keeps the ids whose -log(probability) is nearest
        to the entropy: as many as reach it, and those as near, in fp32, as the last of these.
        """


MAX_TOP_LOGPROBS = 20
"""Most ids that logprobs names for a row: what the OpenAI API allows."""


class Logprobs(Protocol):
    def __call__(self, logits: Tensor, ids: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
        """log_softmax of fp32 logits [S, V] -> (of ids [S], top ids [S, top], theirs [S, top]).

        0 <= top <= min(V, MAX_TOP_LOGPROBS). The most likely id comes first, of equally likely
        ones the lower; ids are int32, log-probabilities fp32.
        """


@dataclass(frozen=True)
class Ops:
    """One implementation of every op, chosen when a model is built."""

    embedding: Embedding
    rms_norm: RmsNorm
    linear: Linear
    rope: Rope
    attention: Attention
    silu_mul: SiluMul
    adjust_logits: AdjustLogits
    sample: Sample
    logprobs: Logprobs


OP_NAMES = tuple(field.name for field in fields(Ops))

_ON_LOGITS = ("adjust_logits", "sample", "logprobs")

FORWARD_OP_NAMES = tuple(op for op in OP_NAMES if op not in _ON_LOGITS)
"""Those that a model's forward pass consists of."""
