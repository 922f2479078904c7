"""litellm, with qwell as an OpenAI-compatible server."""

import asyncio
import os
import unittest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list at its import

import litellm
from pydantic import BaseModel

SERVER = {"api_base": os.environ["QWELL_URL"] + "/v1", "api_key": "none", "num_retries": 0}
TEXT = "你好 👍"
CHAT = {
    "model": "openai/m",
    "messages": [{"role": "user", "content": f"say:{TEXT}"}],
    **SERVER,
}
PROMPT = {"model": "text-completion-openai/m", "prompt": f"say:{TEXT}", **SERVER}


class Chat(unittest.TestCase):
    def test_whole(self):
        answer = litellm.completion(**CHAT)

        self.assertEqual(answer.choices[0].message.content, TEXT)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.usage.completion_tokens, len(TEXT.encode()) + 1)

    def test_stream(self):
        stream = litellm.completion(**CHAT, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)

        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        whole = litellm.stream_chunk_builder(chunks)
        self.assertEqual((text, whole.choices[0].message.content), (TEXT, TEXT))
        self.assertEqual(whole.usage.completion_tokens, len(TEXT.encode()) + 1)

    def test_async(self):
        async def run():
            answer = await litellm.acompletion(**CHAT)
            stream = await litellm.acompletion(**CHAT, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return answer.choices[0].message.content, "".join(pieces)

        self.assertEqual(asyncio.run(run()), (TEXT, TEXT))

    def test_settings(self):
        fields = {"temperature": 0.25, "top_p": 0.5, "seed": 7, "max_tokens": 1000, "top_k": 3}
        messages = [{"role": "user", "content": "params"}]

        params = litellm.completion(**{**CHAT, "messages": messages}, **fields)

        for setting in ('"temperature":0.25', '"top_p":0.5', '"seed":7', '"top_k":3'):
            self.assertIn(setting, params.choices[0].message.content)

    def test_logprobs(self):
        answer = litellm.completion(**CHAT, logprobs=True, top_logprobs=2)

        tokens = answer.choices[0].logprobs.content
        self.assertEqual(
            bytes(byte for token in tokens[:-1] for byte in token.bytes).decode(), TEXT
        )


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


class Tools(unittest.TestCase):
    def setUp(self):
        self.messages = [{"role": "user", "content": f"say:Well.\n{CALL}\n{CALL}"}]
        self.request = {**CHAT, "messages": self.messages, "tools": [ADD], "tool_choice": "auto"}

    def assert_called(self, message):
        self.assertEqual(message.content, "Well.")
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
        self.assertEqual(calls, [("add", '{"a": 1, "b": 2}')] * 2)

    def test_calls_and_their_results(self):
        (choice,) = litellm.completion(**self.request).choices

        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assert_called(choice.message)
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": "say:3"}
            for call in choice.message.tool_calls
        ]
        messages = [*self.messages, choice.message.model_dump(), *results]
        answer = litellm.completion(**{**self.request, "messages": messages})
        self.assertEqual(answer.choices[0].message.content, "3")

    def test_streamed(self):
        chunks = list(litellm.completion(**self.request, stream=True))

        self.assert_called(litellm.stream_chunk_builder(chunks).choices[0].message)


class Sum(BaseModel):
    left: int
    right: int


class Structured(unittest.TestCase):
    def test_whole_and_streamed(self):
        messages = [{"role": "user", "content": 'say:{"left": 1, "right": 2}'}]
        request = {**CHAT, "messages": messages, "response_format": Sum}

        answer = litellm.completion(**request)
        chunks = list(litellm.completion(**request, stream=True))

        texts = [answer.choices[0].message.content]
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
        for text in texts:
            self.assertEqual(Sum.model_validate_json(text), Sum(left=1, right=2))


class Completions(unittest.TestCase):
    def test_whole(self):
        answer = litellm.text_completion(**PROMPT, n=2)

        self.assertEqual([choice.text for choice in answer.choices], [TEXT, TEXT])

    def test_stream(self):
        stream = litellm.text_completion(**PROMPT, stream=True)

        self.assertEqual("".join(chunk.choices[0].text or "" for chunk in stream), TEXT)

    def test_async(self):
        async def run():
            answer = await litellm.atext_completion(**PROMPT)
            return answer.choices[0].text

        self.assertEqual(asyncio.run(run()), TEXT)


class Errors(unittest.TestCase):
    def assert_refused(self, kind, content, **fields):
        with self.assertRaises(kind) as caught:
            messages = [{"role": "user", "content": content}]
            litellm.completion(**{**CHAT, "messages": messages}, max_retries=0, **fields)
        return caught.exception

    def test_a_bad_value(self):
        error = self.assert_refused(litellm.BadRequestError, "hi", temperature=-1)
        self.assertIn("temperature", str(error))

    def test_too_long_a_prompt(self):
        self.assert_refused(litellm.ContextWindowExceededError, "x" * 5000)

    def test_a_full_queue(self):
        self.assert_refused(litellm.RateLimitError, "full")


if __name__ == "__main__":
    unittest.main()
