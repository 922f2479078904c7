"""The recorded draw: the ids of the op itself, whatever was drawn before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwell.kernels.native.runner import Runner
from qwell.kernels.native.sample import bind
from qwell.runtime.recorded_draw import RecordedDraw

MOST_ROWS, VOCABULARY = 5, 300

rows = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.5, 1.3]),
        "top_k": st.sampled_from([0, 1, 20]),
        "top_p": st.sampled_from([0.3, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05]),
        "typical_p": st.sampled_from([0.7, 1.0]),
        "uniform": st.floats(0.0, 1.0, exclude_max=True),
    }
)


class Logits:
    """Stands in for a recorded forward pass."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(3)
        self.result = 3 * torch.randn(MOST_ROWS, VOCABULARY, generator=draw)
        self._views = {count: self.result[:count] for count in range(MOST_ROWS + 1)}

    def first(self, rows: int) -> torch.Tensor:
        return self._views[rows]


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(2)


@settings(max_examples=50)
@given(st.lists(st.lists(rows, min_size=1, max_size=MOST_ROWS), min_size=1, max_size=4))
def test_whatever_was_drawn_before(runner: Runner, steps: list[list[dict[str, float]]]) -> None:
    sample, logits = bind(runner), Logits()
    recorded = RecordedDraw(sample, runner, logits)
    for step in steps:
        lists = {name: [row[name] for row in step] for name in step[0]}
        columns = {
            name: torch.tensor(values, dtype=torch.int32 if name == "top_k" else torch.float64)
            for name, values in lists.items()
        }
        is_greedy = not any(lists["temperature"])
        drawn = recorded.run(len(step), None if is_greedy else lists)
        assert drawn == sample(logits.first(len(step)), **columns).tolist()


def test_it_serves_the_logits_of_its_forward_pass_alone(runner: Runner) -> None:
    logits = Logits()
    recorded = RecordedDraw(bind(runner), runner, logits)
    assert recorded.serves(logits.first(3), 3)
    assert not recorded.serves(logits.result.index_select(0, torch.tensor([2, 0, 1])), 3)
    assert not recorded.serves(logits.result[1:4], 3)
