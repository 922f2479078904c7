"""litellm, with qwell as an OpenAI-compatible server."""

import asyncio
import os
import unittest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list at its import

import litellm

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
