"""openai 0.28.1, the client of the time when Qwen's first demo server was written."""

import asyncio
import json
import os
import unittest

import openai

openai.api_base = os.environ["QWELL_URL"] + "/v1"
openai.api_key = "none"

PROMPT = {"model": "m", "prompt": "say:你好 👍"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "say:你好 👍"}]}
TEXT = "你好 👍"


class Completions(unittest.TestCase):
    def test_whole(self):
        answer = openai.Completion.create(**PROMPT, n=2)

        self.assertEqual([choice.text for choice in answer.choices], [TEXT, TEXT])
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.usage.completion_tokens, 2 * (len(TEXT.encode()) + 1))

    def test_stream(self):
        chunks = list(openai.Completion.create(**PROMPT, stream=True))

        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks), TEXT)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")

    def test_async(self):
        async def run():
            answer = await openai.Completion.acreate(**PROMPT)
            stream = await openai.Completion.acreate(**PROMPT, stream=True)
            texts = [chunk.choices[0].text async for chunk in stream]
            return answer.choices[0].text, "".join(texts)

        self.assertEqual(asyncio.run(run()), (TEXT, TEXT))

    def test_echo_with_logprobs(self):
        answer = openai.Completion.create(
            model="m", prompt=[*b"xyz"], echo=True, logprobs=1, max_tokens=0
        )

        logprobs = answer.choices[0].logprobs
        self.assertEqual(logprobs.tokens, ["x", "y", "z"])
        self.assertEqual(logprobs.text_offset, [0, 1, 2])
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertEqual(logprobs.top_logprobs[2]["z"], logprobs.token_logprobs[2])


class Chat(unittest.TestCase):
    def test_whole(self):
        (choice,) = openai.ChatCompletion.create(**CHAT).choices

        self.assertEqual(choice.message.to_dict_recursive()["role"], "assistant")
        self.assertEqual(choice.message.content, TEXT)

    def test_stream(self):
        chunks = list(openai.ChatCompletion.create(**CHAT, stream=True))

        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        deltas = [chunk.choices[0].delta.get("content", "") for chunk in chunks]
        self.assertEqual("".join(deltas), TEXT)

    def test_async(self):
        async def run():
            answer = await openai.ChatCompletion.acreate(**CHAT)
            stream = await openai.ChatCompletion.acreate(**CHAT, stream=True)
            deltas = [chunk.choices[0].delta.get("content", "") async for chunk in stream]
            return answer.choices[0].message.content, "".join(deltas)

        self.assertEqual(asyncio.run(run()), (TEXT, TEXT))


ADD = {
    "name": "add",
    "description": "Add two numbers",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


class Functions(unittest.TestCase):
    def setUp(self):
        self.messages = [{"role": "user", "content": f"say:{CALL}"}]
        self.request = {"model": "m", "functions": [ADD], "function_call": "auto"}

    def test_a_call_and_its_result(self):
        (choice,) = openai.ChatCompletion.create(messages=self.messages, **self.request).choices

        self.assertEqual(choice.finish_reason, "function_call")
        call = choice.message.function_call
        self.assertEqual((call.name, json.loads(call.arguments)), ("add", {"a": 1, "b": 2}))
        result = {"role": "function", "name": "add", "content": "say:3"}
        messages = [*self.messages, choice.message.to_dict_recursive(), result]
        answer = openai.ChatCompletion.create(messages=messages, **self.request)
        self.assertEqual(answer.choices[0].message.content, "3")

    def test_streamed(self):
        stream = openai.ChatCompletion.create(messages=self.messages, stream=True, **self.request)
        chunks = [chunk.choices[0] for chunk in stream]

        calls = [call for chunk in chunks if (call := chunk.delta.get("function_call"))]
        self.assertEqual("".join(call.get("name", "") for call in calls), "add")
        arguments = "".join(call.get("arguments", "") for call in calls)
        self.assertEqual(json.loads(arguments), {"a": 1, "b": 2})
        self.assertEqual(chunks[-1].finish_reason, "function_call")


class Models(unittest.TestCase):
    def test_list_and_retrieve(self):
        (card,) = openai.Model.list().data

        self.assertEqual(openai.Model.retrieve(card.id).id, card.id)


class Errors(unittest.TestCase):
    def test_a_field_that_is_not_served(self):
        with self.assertRaises(openai.error.InvalidRequestError) as caught:
            openai.Completion.create(model="m", prompt="x", suffix="y")
        self.assertEqual(caught.exception.param, "suffix")

    def test_an_unknown_model(self):
        with self.assertRaises(openai.error.InvalidRequestError) as caught:
            openai.Model.retrieve("gpt-17")
        self.assertEqual(caught.exception.http_status, 404)
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_a_full_queue(self):
        with self.assertRaises(openai.error.RateLimitError) as caught:
            openai.Completion.create(model="m", prompt="full")
        self.assertGreater(int(caught.exception.headers["retry-after"]), 0)


if __name__ == "__main__":
    unittest.main()
