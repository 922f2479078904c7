"""sample in torch and in C++: cases computed by hand, and the distribution that they draw from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from qwell.kernels.native.runner import ISAS, Runner
from qwell.kernels.native.sample import bind
from qwell.kernels.reference.sample import sample as reference

SAMPLES = {"reference": reference} | {isa: bind(Runner(threads=2, isa=isa)) for isa in ISAS}

each = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


@dataclass(frozen=True)
class Row:
    """One row of a call; the defaults keep every id."""

    logits: list[float]
    uniform: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0


def draw(sample, rows: list[Row]) -> list[int]:
    def column(name, dtype=torch.float64):
        return torch.tensor([getattr(row, name) for row in rows], dtype=dtype)

    ids = sample(
        column("logits", torch.float32),
        column("temperature"),
        column("top_k", torch.int32),
        column("top_p"),
        column("min_p"),
        column("typical_p"),
        column("uniform"),
    )
    assert ids.dtype == torch.int32
    return ids.tolist()


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


HALVES = logs(0.125, 0.5, 0.25, 0.125)
FOUR = logs(0.4, 0.3, 0.2, 0.1)

CASES = {
    "greedy takes the first maximum": (Row([1, 3, 3, 2], temperature=0.0, uniform=0.99), 1),
    "greedy ignores truncation": (Row(FOUR, temperature=0.0, top_k=3, min_p=0.9), 0),
    "zero draws the first id": (Row(HALVES, uniform=0.0), 0),
    "ids ascend: below the first bound": (Row(HALVES, uniform=0.12), 0),
    "ids ascend: above the first bound": (Row(HALVES, uniform=0.13), 1),
    "ids ascend: below the second bound": (Row(HALVES, uniform=0.62), 1),
    "ids ascend: above the second bound": (Row(HALVES, uniform=0.63), 2),
    "almost one draws the last id": (Row(HALVES, uniform=1 - 2**-24), 3),
    "impossible ids are never drawn": (Row([0.0, -math.inf, 0.0], uniform=0.51), 2),
    "an impossible last id is not drawn": (Row([0.0, -math.inf], uniform=1 - 2**-24), 0),
    "an impossible first id is not drawn": (Row([-math.inf, 0.0], uniform=0.0), 1),
    "a bound belongs to the id above it": (Row([0.0, 0.0], uniform=0.5), 1),
    "temperature 1/2 squares: 16/17 below": (Row(logs(0.8, 0.2), 0.94, temperature=0.5), 0),
    "temperature 1/2 squares: 16/17 above": (Row(logs(0.8, 0.2), 0.95, temperature=0.5), 1),
    "temperature 2 takes roots: 4/7 below": (Row(logs(0.64, 0.36), 0.57, temperature=2.0), 0),
    "temperature 2 takes roots: 4/7 above": (Row(logs(0.64, 0.36), 0.58, temperature=2.0), 1),
    "top-k 1 is the maximum": (Row(HALVES, uniform=0.99, top_k=1), 1),
    "top-k 2 renormalises: 2/3 below": (Row(HALVES, uniform=0.66, top_k=2), 1),
    "top-k 2 renormalises: 2/3 above": (Row(HALVES, uniform=0.67, top_k=2), 2),
    "top-k keeps ties of the last": (Row([5, 0, 0, 0, -9], uniform=0.9999, top_k=2), 3),
    "top-k above the vocabulary keeps all": (Row(FOUR, uniform=0.95, top_k=9), 3),
    "top-p below the maximum keeps it": (Row(HALVES, uniform=0.99, top_p=0.01), 1),
    "top-p just reached by one": (Row(HALVES, uniform=0.99, top_p=0.49), 1),
    "top-p reached by two: 2/3 below": (Row(HALVES, uniform=0.66, top_p=0.51), 1),
    "top-p reached by two: 2/3 above": (Row(HALVES, uniform=0.67, top_p=0.51), 2),
    "top-p draws in the order of ids: 3/7 below": (Row(FOUR[::-1], 0.42, top_p=0.65), 2),
    "top-p draws in the order of ids: 3/7 above": (Row(FOUR[::-1], 0.43, top_p=0.65), 3),
    "top-p counts after top-k: 4/7 > 0.5": (Row(FOUR, uniform=0.99, top_k=2, top_p=0.5), 0),
    "top-p counts after temperature": (Row(FOUR, 0.99, temperature=0.25, top_p=0.7), 0),
    "min-p relative to the maximum": (Row(FOUR, uniform=0.99, min_p=0.45), 2),
    "min-p renormalises: 4/7 below": (Row(FOUR, uniform=0.57, min_p=0.7), 0),
    "min-p renormalises: 4/7 above": (Row(FOUR, uniform=0.58, min_p=0.7), 1),
    "min-p 1 keeps the maximum": (Row(FOUR, uniform=0.99, min_p=1.0), 0),
    # FOUR's surprises are 0.92, 1.20, 1.61 and 2.30, its entropy 1.28: ids 1, 2, 0, 3 in order.
    "typical-p takes the nearest to the entropy": (Row(FOUR, uniform=0.99, typical_p=0.29), 1),
    "typical-p adds the next: 3/5 below": (Row(FOUR, uniform=0.59, typical_p=0.31), 1),
    "typical-p adds the next: 3/5 above": (Row(FOUR, uniform=0.61, typical_p=0.31), 2),
    "typical-p may drop the most likely id": (Row(FOUR, uniform=0.0, typical_p=0.49), 1),
    "typical-p keeps it when it is needed": (Row(FOUR, uniform=0.0, typical_p=0.51), 0),
    "typical-p keeps what is equally near": (Row(HALVES, uniform=0.99, typical_p=0.76), 3),
    # Of 4/7 and 3/7, entropy 0.68, the first is nearer.
    "typical-p counts after top-k": (Row(FOUR, uniform=0.99, top_k=2, typical_p=0.5), 0),
    "typical-p counts after min-p": (Row(FOUR, uniform=0.99, min_p=0.7, typical_p=0.5), 0),
}


@each
@pytest.mark.parametrize(("row", "expected"), CASES.values(), ids=CASES)
def test_case_computed_by_hand(sample, row, expected):
    assert draw(sample, [row]) == [expected]


@each
def test_rows_do_not_influence_each_other(sample):
    cases = [(row, expected) for row, expected in CASES.values() if len(row.logits) == 4]
    assert len(cases) > 10
    assert draw(sample, [row for row, _ in cases]) == [expected for _, expected in cases]


@each
@pytest.mark.parametrize(
    ("settings", "probabilities"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 3}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]),
        ({"min_p": 0.3}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"typical_p": 0.45}, [0, 3 / 5, 2 / 5, 0]),
    ],
)
def test_draws_follow_the_distribution(sample, settings, probabilities):
    """Evenly spaced uniforms hit an id of probability p n p times, give or take one."""
    n = 500
    ids = draw(sample, [Row(FOUR, uniform=(i + 0.5) / n, **settings) for i in range(n)])
    for token, probability in enumerate(probabilities):
        assert abs(ids.count(token) - n * probability) <= 1
