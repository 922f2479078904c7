from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwell.runtime.prompt_lookup import LEAST_MATCH, MOST_MATCH, PromptLookup


def lookup_of(ids: list[int]) -> PromptLookup:
    lookup = PromptLookup()
    lookup.extend(ids)
    return lookup


def test_what_followed_the_same_tokens_before_is_proposed():
    assert lookup_of([1, 2, 3, 4, 5, 9, 1, 2, 3]).propose(3) == [4, 5, 9]


def test_a_longer_match_is_believed_before_a_later_one():
    ids = [7, 1, 2, 3, 50, 8, 1, 2, 3, 60, 7, 1, 2, 3]
    assert lookup_of(ids).propose(1) == [50]


def test_of_equal_matches_the_later_one_is_believed():
    assert lookup_of([1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3]).propose(1) == [60]


def test_a_repetition_goes_on():
    assert lookup_of([1, 2, 3, 1, 2, 3]).propose(8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert lookup_of([5, 5, 5, 5]).propose(3) == [5, 5, 5]


def test_too_short_a_match_proposes_nothing():
    assert lookup_of([1, 2, 9, 4, 1, 2]).propose(4) == []
    assert lookup_of([1]).propose(4) == []
    assert lookup_of([]).propose(4) == []


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 20), st.data())
def test_proposals_equal_a_plain_search(ids, count, data):
    cut = data.draw(st.integers(0, len(ids)))
    lookup = PromptLookup()
    lookup.extend(ids[:cut])
    lookup.extend(ids[cut:])
    assert lookup.propose(count) == plain_search(ids, count)


def plain_search(ids: list[int], count: int) -> list[int]:
    for length in range(MOST_MATCH, LEAST_MATCH - 1, -1):
        end = ids[len(ids) - length :]
        for start in range(len(ids) - length - 1, -1, -1):
            if len(end) == length and ids[start : start + length] == end:
                text = list(ids)
                for i in range(count):
                    text.append(text[start + length + i])
                return text[len(ids) :]
    return []


def test_a_long_sequence_grows_token_by_token():
    ids = [i * i % 1000 for i in range(3000)]
    lookup = PromptLookup()
    for token_id in ids:
        lookup.extend([token_id])
    assert len(lookup) == 3000
    assert lookup.propose(5) == lookup_of(ids).propose(5)
