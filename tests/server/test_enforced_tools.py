"""Calls that have to come, and are held to their schemas: a grammar sees to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chat_templates import QWEN2_5, QWEN3_5, server_of
from checkpoints import make_checkpoint
from serving import ServerProcess
from tiny_tokenizers import TOOL_CALL, tiny_backend
from tool_requests import CLOCK, allowed, called, choice_of, say

JUDGE = {
    "name": "judge",
    "parameters": {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}, "scale": {"enum": ["C", "F"]}},
        "required": ["sure", "scale"],
        "additionalProperties": False,
    },
}


class TestEnforced:
    """Calls of models that compute, and know nothing."""

    @pytest.fixture(scope="class", params=[QWEN2_5, QWEN3_5], ids=["json", "xml"])
    @classmethod
    def model(
        cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[ServerProcess]:
        folder = tmp_path_factory.mktemp("model") / "checkpoint"
        backend = tiny_backend()
        backend.add_tokens(["<think>", "</think>"])
        make_checkpoint(folder, vocab_size=backend.get_vocab_size(), max_position_embeddings=1024)
        with server_of(request.param, folder, worker=(), backend=backend) as server:
            yield server

    def check(self, choice: dict[str, Any], finish_reason: str = "tool_calls") -> None:
        assert choice["finish_reason"] == finish_reason
        assert choice["message"]["content"] is None
        for name, arguments in called(choice["message"]):
            assert name in ("judge", "clock")
            assert arguments == {} or set(arguments) == {"sure", "scale"}
            assert name == "clock" or arguments["scale"] in ("C", "F")

    def body(self, **fields: Any) -> dict[str, Any]:
        # Arguments that may be anything would go on for as long as a random model likes.
        none = {"type": "object", "additionalProperties": False}
        functions = (JUDGE, {**CLOCK, "parameters": none})
        tools = [{"type": "function", "function": function} for function in functions]
        return say("x", tools=tools, seed=1, thinking_budget=3, max_tokens=300, **fields)

    def test_some_call_is_made(self, model: ServerProcess) -> None:
        choice = choice_of(model, self.body(tool_choice="required", parallel_tool_calls=False))

        self.check(choice)
        assert len(called(choice["message"])) == 1

    def test_the_named_call_is_made(self, model: ServerProcess) -> None:
        choice = choice_of(
            model, self.body(tool_choice={"type": "function", "function": {"name": "judge"}})
        )

        self.check(choice)
        assert [name for name, _ in called(choice["message"])] == ["judge"]

    def test_the_named_function_is_called(self, model: ServerProcess) -> None:
        body = self.body(functions=[JUDGE, CLOCK], function_call={"name": "judge"})
        del body["tools"]
        choice = choice_of(model, body)

        assert choice["finish_reason"] == "function_call"
        call = choice["message"]["function_call"]
        assert call["name"] == "judge"
        assert set(json.loads(call["arguments"])) == {"sure", "scale"}

    @pytest.mark.parametrize("mode", ["auto", "required"])
    def test_only_allowed_tools_are_called(self, model: ServerProcess, mode: str) -> None:
        bias = {str(TOOL_CALL): 100}  # so that it calls whenever it may
        body = self.body(
            logit_bias=bias, parallel_tool_calls=False, tool_choice=allowed(mode, "judge")
        )

        for seed in range(2):
            choice = choice_of(model, body | {"seed": seed})
            assert choice["finish_reason"] == "tool_calls"
            assert [name for name, _ in called(choice["message"])] == ["judge"]

    def test_strict_functions_are_held_to_their_schemas(self, model: ServerProcess) -> None:
        bias = {str(TOOL_CALL): 100}  # so that it calls whenever it may
        strict = {"type": "function", "function": {**JUDGE, "strict": True}}
        body = self.body(logit_bias=bias, parallel_tool_calls=False) | {"tools": [strict]}

        ((name, arguments),) = called(choice_of(model, body)["message"])

        assert name == "judge"
        assert arguments["scale"] in ("C", "F")
