"""Depth and duplicate keys of JSON, beside Python's own reading of the same text."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from serving import PATIENCE_S, ServerProcess, error_of

from qwell.runtime.errors import RequestError
from qwell.server.json_rules import MAX_DEPTH, check_json

texts = st.text(alphabet='ab"\\{}[]:, \n/\u00e9\U0001f600', max_size=6)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
# Objects as lists of pairs: those of Python could not have a key twice.
pairs = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.tuples(texts, inner), max_size=3).map(lambda items: {"pairs": items})
    ),
    max_leaves=12,
)


def spelt(value: Any, ascii_only: bool) -> str:
    if isinstance(value, dict):
        members = (
            f"{json.dumps(key, ensure_ascii=ascii_only)} : {spelt(member, ascii_only)}"
            for key, member in value["pairs"]
        )
        return "{" + " ,".join(members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(spelt(item, ascii_only) for item in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def has_duplicates(text: str) -> bool:
    found = False

    def hook(items: list[tuple[str, Any]]) -> None:
        nonlocal found
        found |= len({key for key, _ in items}) < len(items)

    json.loads(text, object_pairs_hook=hook)
    return found


@given(value=pairs, ascii_only=st.booleans())
def test_duplicate_keys_are_found_and_nothing_else(value: Any, ascii_only: bool) -> None:
    text = spelt(value, ascii_only)
    if has_duplicates(text):
        with pytest.raises(RequestError, match="twice"):
            check_json(text.encode())
    else:
        check_json(text.encode())


def test_one_key_in_two_spellings() -> None:
    with pytest.raises(RequestError, match="twice") as caught:
        check_json(b'{"seed": 1, "s\\u0065ed": 2}')

    assert caught.value.param == "seed"


@pytest.mark.parametrize("brackets", [b"[]", b"{}"])
def test_depth(brackets: bytes) -> None:
    left, right = brackets[:1], brackets[1:]
    middle = b'"a":' if left == b"{" else b""

    check_json((left + middle) * (MAX_DEPTH - 1) + brackets + right * (MAX_DEPTH - 1))
    with pytest.raises(RequestError, match="64 levels"):
        check_json((left + middle) * MAX_DEPTH + brackets + right * MAX_DEPTH)


@pytest.mark.parametrize("padding", [0, 1_000_000])
def test_the_server_names_the_key(server: ServerProcess, padding: int) -> None:
    body = b'{"model": "m", "prompt": "x", "seed": 1, "seed": 2' + b" " * padding + b"}"
    headers = {"Content-Type": "application/json"}

    answer = requests.post(
        f"{server.url}/v1/completions", data=body, headers=headers, timeout=PATIENCE_S
    )

    assert error_of(answer, 400)["param"] == "seed"
