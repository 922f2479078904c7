"""langchain-openai: ChatOpenAI and OpenAI."""

import asyncio
import os
import unittest

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

SERVER = {"base_url": os.environ["QWELL_URL"] + "/v1", "api_key": "none", "model": "m"}
TEXT = "你好 👍"
PROMPT = f"say:{TEXT}"


class Chat(unittest.TestCase):
    def setUp(self):
        self.chat = ChatOpenAI(**SERVER, max_retries=0)

    def test_invoke(self):
        answer = self.chat.invoke(
            [SystemMessage("be brief"), HumanMessage("hi"), AIMessage("yes?"), HumanMessage(PROMPT)]
        )

        self.assertEqual(answer.content, TEXT)
        self.assertEqual(answer.response_metadata["finish_reason"], "stop")
        self.assertEqual(answer.usage_metadata["output_tokens"], len(TEXT.encode()) + 1)

    def test_stream(self):
        whole = None
        for chunk in self.chat.stream(PROMPT, stream_usage=True):
            whole = chunk if whole is None else whole + chunk

        self.assertEqual(whole.content, TEXT)
        self.assertEqual(whole.response_metadata["finish_reason"], "stop")
        self.assertEqual(whole.usage_metadata["output_tokens"], len(TEXT.encode()) + 1)

    def test_batch(self):
        answers = self.chat.batch([f"say:{number}" for number in range(8)])

        self.assertEqual([answer.content for answer in answers], [*map(str, range(8))])

    def test_async(self):
        async def run():
            answer = await self.chat.ainvoke(PROMPT)
            pieces = [chunk.content async for chunk in self.chat.astream(PROMPT)]
            return answer.content, "".join(pieces)

        self.assertEqual(asyncio.run(run()), (TEXT, TEXT))

    def test_settings(self):
        chat = ChatOpenAI(
            **SERVER,
            temperature=0.25,
            top_p=0.5,
            seed=7,
            max_tokens=1000,
            stop=["never"],
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias={5: 1},
            extra_body={"top_k": 3},
        )

        params = chat.invoke("params").content

        for setting in ('"temperature":0.25', '"top_p":0.5', '"seed":7', '"top_k":3'):
            self.assertIn(setting, params)

    def test_logprobs(self):
        answer = self.chat.bind(logprobs=True, top_logprobs=2).invoke("say:ab")

        tokens = answer.response_metadata["logprobs"]["content"]
        self.assertEqual([token["token"] for token in tokens], ["a", "b", "<|im_end|>"])
        self.assertEqual({len(token["top_logprobs"]) for token in tokens}, {2})

    def test_too_long_a_prompt(self):
        with self.assertRaises(ContextOverflowError):
            self.chat.invoke("x" * 5000)

    def test_a_full_queue(self):
        with self.assertRaises(openai.RateLimitError):
            self.chat.invoke("full")


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"say:{a + b}"


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


class Tools(unittest.TestCase):
    def setUp(self):
        self.chat = ChatOpenAI(**SERVER, max_retries=0).bind_tools([add])

    def test_a_call_and_its_result(self):
        messages = [HumanMessage(f"say:Well.\n{CALL}\n{CALL}")]
        answer = self.chat.invoke(messages)

        self.assertEqual(answer.content, "Well.")
        self.assertEqual(answer.response_metadata["finish_reason"], "tool_calls")
        self.assertEqual([call["args"] for call in answer.tool_calls], [{"a": 1, "b": 2}] * 2)
        results = [add.invoke(call) for call in answer.tool_calls]
        final = self.chat.invoke([*messages, answer, *results])
        self.assertEqual(final.content, "3")

    def test_streamed(self):
        whole = None
        for chunk in self.chat.stream(f"say:{CALL}\n{CALL}"):
            whole = chunk if whole is None else whole + chunk

        calls = [(call["name"], call["args"]) for call in whole.tool_calls]
        self.assertEqual(calls, [("add", {"a": 1, "b": 2})] * 2)
        self.assertEqual(whole.invalid_tool_calls, [])


class Sum(BaseModel):
    """Two numbers to add."""

    left: int
    right: int


class Structured(unittest.TestCase):
    def setUp(self):
        self.chat = ChatOpenAI(**SERVER, max_retries=0)

    def test_json_schema(self):
        chat = self.chat.with_structured_output(Sum, strict=True)

        self.assertEqual(chat.invoke('say:{"left": 1, "right": 2}'), Sum(left=1, right=2))

    def test_json_mode(self):
        chat = self.chat.with_structured_output(Sum, method="json_mode")

        self.assertEqual(chat.invoke('say:{"left": 1, "right": 2}'), Sum(left=1, right=2))

    def test_a_call(self):
        chat = self.chat.with_structured_output(Sum, method="function_calling")
        call = '{"name": "Sum", "arguments": {"left": 1, "right": 2}}'

        answer = chat.invoke(f"say:<tool_call>\n{call}\n</tool_call>")

        self.assertEqual(answer, Sum(left=1, right=2))

    def test_streamed(self):
        *_, last = self.chat.with_structured_output(Sum).stream('say:{"left": 1, "right": 2}')

        self.assertEqual(last, Sum(left=1, right=2))


class Completions(unittest.TestCase):
    def test_invoke_and_stream(self):
        completions = OpenAI(**SERVER, max_retries=0)

        self.assertEqual(completions.invoke(PROMPT), TEXT)
        self.assertEqual("".join(completions.stream(PROMPT)), TEXT)

    def test_batch(self):
        completions = OpenAI(**SERVER, n=2, best_of=2)

        answer = completions.generate(["say:one", "say:two"])

        texts = [[choice.text for choice in choices] for choices in answer.generations]
        self.assertEqual(texts, [["one", "one"], ["two", "two"]])


if __name__ == "__main__":
    unittest.main()
