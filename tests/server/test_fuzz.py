"""Bodies nobody would write: every one is answered, none with a 5xx, and the server lives."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import PATIENCE_S, ServerProcess

JSON = {"Content-Type": "application/json"}
PATHS = ["/v1/completions", "/v1/chat/completions"]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["say:hi", "<|im_end|>", "\x00", "user", -1, 2**63, 1e308, 128, ""])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"]) | values},
        optional={"content": values, "name": values, "tool_calls": values},
    ),
    max_size=3,
)
names = ["max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"]
names += ["stop", "n", "stream", "stream_options", "ignore_eos", "echo", "best_of", "logprobs"]
names += ["typical_p", "presence_penalty", "frequency_penalty", "allowed_token_ids"]
names += ["bad_token_ids", "stop_token_ids", "min_tokens", "include_stop_str_in_output"]
names += [
    "top_logprobs",
    "logit_bias",
    "suffix",
    "user",
    "tools",
    "metadata",
    "max_completion_tokens",
    "response_format",
    "structured_outputs",
    "thinking_budget",
    "zzz",
]
bodies = st.fixed_dictionaries(
    {"model": st.just("m") | values},
    optional={
        "prompt": st.just("say:hi") | values,
        "messages": messages | values,
        **dict.fromkeys(names, values),
    },
)
fuzzing = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def session() -> Any:
    with requests.Session() as session:
        yield session


def check_answered(server: ServerProcess, answer: requests.Response) -> None:
    assert answer.status_code < 500, answer.text
    assert server.process.poll() is None
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@fuzzing
@given(path=st.sampled_from(PATHS), body=bodies)
def test_json_bodies(
    server: ServerProcess, session: requests.Session, path: str, body: dict[str, Any]
) -> None:
    data = json.dumps(body).encode()

    answer = session.post(f"{server.url}{path}", data=data, headers=JSON, timeout=PATIENCE_S)

    check_answered(server, answer)


@fuzzing
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=200), cut=st.integers(0, 60))
def test_bytes(
    server: ServerProcess, session: requests.Session, path: str, body: bytes, cut: int
) -> None:
    data = b'{"model": "m", "prompt": "say:hi", "stop": ["x"], "seed": 5}'[:cut] + body

    answer = session.post(f"{server.url}{path}", data=data, headers=JSON, timeout=PATIENCE_S)

    check_answered(server, answer)


def test_the_engine_outlived_it_all(server: ServerProcess) -> None:
    assert server.health() == (200, "ok")
    assert "new engine" not in server.log
    assert "Traceback" not in server.log
