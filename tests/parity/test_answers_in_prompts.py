"""What a model wrote, sent back as the message that was made of it, is what it wrote.

So the next turn finds the blocks of the last one in the prefix cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from qwell.runtime.chat_template import load_chat_template
from qwell.runtime.tokenizer import Tokenizer
from qwell.server.answer.forms import answer_form, call_format
from qwell.server.protocol.chat_answer import ChoiceParts, whole_message
from qwell.server.protocol.chat_messages import Message, template_messages
from qwell.server.protocol.tools import FunctionSpec, ToolUse

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = ToolUse([FunctionSpec("weather", parameters=CITY), FunctionSpec("now")])
CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln \\"am Rhein\\""}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


def sent_back(folder: Path, written: str, *, thinks: bool) -> str:
    """The prompt of the turn after `written`, which answers both calls in it."""
    template, tokenizer = load_chat_template(folder), Tokenizer.from_dir(folder)
    assert template is not None
    user = Message(role="user", content="How warm is it?")

    def prompt(*messages: Message) -> str:
        shown = template_messages([user, *messages], template.source)
        ids = template.encode(shown, tokenizer, tools=TOOLS.for_template)
        return tokenizer.decode(ids, skip_special=False)

    calls = call_format(template, TOOLS)
    form = answer_form(prompt(), thinks=thinks, calls=calls, one_call=False)
    parts = ChoiceParts(form, legacy=False)
    # The way of a token's text: marks are kept, the end of the turn is not.
    text = tokenizer.decode(tokenizer.encode(f"{written}<|im_end|>"))
    answer: dict[str, Any] = msgspec.to_builtins(
        whole_message([*parts.push(text), *parts.finish()])
    )
    results = [
        Message(role="tool", tool_call_id=call["id"], content="21") for call in answer["tool_calls"]
    ]
    before, after = prompt(), prompt(msgspec.convert(answer, Message), *results)
    assert after.startswith(before)
    return after.removeprefix(before)


@pytest.mark.parametrize("spoken", ["", "Let me look.\n"])
def test_qwen2_5(qwen2_5_dir: Path, spoken: str) -> None:
    after = sent_back(qwen2_5_dir, spoken + CALLS, thinks=False)
    assert after.startswith(f"{spoken}{CALLS}<|im_end|>\n")


@pytest.mark.parametrize("spoken", ["", "Let me look.\n"])
def test_qwen3(qwen3_dir: Path, spoken: str) -> None:
    written = f"<think>\nHm.\nIt is asked.\n</think>\n\n{spoken}{CALLS}"
    assert sent_back(qwen3_dir, written, thinks=True).startswith(f"{written}<|im_end|>\n")
