"""/tokenize and /detokenize: what /v1/completions would make of a text, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import FAKE_WORKER, ServerProcess, error_of
from tiny_tokenizers import ENDOFTEXT, IM_END, backend_with_beginning, tiny_backend

VOCAB_SIZE = tiny_backend().get_vocab_size()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="abc \u4f60\U0001f600\x00", max_size=20))
def test_there_and_back(server: ServerProcess, text: str) -> None:
    encoded = server.post("/tokenize", {"model": "m", "prompt": text}).json()
    decoded = server.post("/detokenize", {"model": "m", "tokens": encoded["tokens"]}).json()

    assert decoded == {"prompt": text}
    assert encoded["count"] == len(encoded["tokens"])
    assert encoded["max_model_len"] == 4096
    assert encoded["token_strs"] is None


def test_the_count_is_that_of_usage(server: ServerProcess) -> None:
    text = "say:abc abc \u4f60<|im_end|>"

    count = server.post("/tokenize", {"prompt": text}).json()["count"]

    assert server.complete(text)["usage"]["prompt_tokens"] == count


def test_texts_of_tokens(server: ServerProcess) -> None:
    body = {"prompt": "abc\u4f60<|im_end|>", "return_token_strs": True, "add_special_tokens": True}

    answer = server.post("/tokenize", body).json()

    assert answer["token_strs"] == ["abc", "\ufffd", "\ufffd", "<|im_end|>"]
    assert answer["tokens"][-1] == IM_END


def test_a_prompt_begins_as_the_tokenizer_has_it(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    folder = tmp_path / "begins"
    folder.mkdir()
    backend_with_beginning().save(str(folder / "tokenizer.json"))
    server = start_server(folder=folder)

    def tokens(**fields: object) -> object:
        return server.post("/tokenize", {"prompt": "abc", **fields}).json()["tokens"]

    plain = tiny_backend().encode("abc").ids
    assert tokens() == [ENDOFTEXT, *plain]
    assert tokens(add_special_tokens=False) == plain
    answer = server.complete("abc", max_tokens=1, return_token_ids=True)
    assert answer["choices"][0]["prompt_token_ids"] == [ENDOFTEXT, *plain]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [1, 2**70]}, "tokens[1]"),
        ("/detokenize", {"tokens": [0, VOCAB_SIZE]}, "tokens[1]"),
    ],
)
def test_refusals(server: ServerProcess, path: str, body: dict[str, Any], param: str) -> None:
    assert error_of(server.post(path, body), 400)["param"] == param


def test_models_and_loading(start_server: Callable[..., ServerProcess], tmp_path: Any) -> None:
    server = start_server(served_model_names=("qwen",))
    for path, body in [("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})]:
        assert server.post(path, {**body, "model": "qwen"}).status_code == 200
        assert error_of(server.post(path, {**body, "model": "m"}), 404)["param"] == "model"

    gate = tmp_path / "gate"
    loading = start_server(worker=[*FAKE_WORKER, "--load-until", str(gate)], ready=False)
    assert error_of(loading.post("/tokenize", {"prompt": "x"}), 503)["code"] == "model_loading"
