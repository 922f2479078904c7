"""The `llm` command line, configured by its extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

MODELS = """
- model_id: qwell
  model_name: m
  api_base: {url}/v1
  supports_tools: true
  supports_schema: true
- model_id: qwell-completions
  model_name: m
  api_base: {url}/v1
  completion: true
"""
FOLDER = Path("llm")
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
ADD = """
def add(a: int, b: int) -> str:
    "Add two numbers"
    return f"say:{a + b}"
"""


def llm(*arguments):
    """What `llm` prints, as a user of its own folder."""
    variables = {"LLM_USER_PATH": str(FOLDER.resolve()), "OPENAI_API_KEY": "none"}
    return subprocess.run(
        [Path(sys.executable).with_name("llm"), *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


class Llm(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        FOLDER.mkdir()
        models = MODELS.format(url=os.environ["QWELL_URL"])
        (FOLDER / "extra-openai-models.yaml").write_text(models)

    def assert_prints(self, done, text):
        self.assertEqual((done.stdout, done.returncode), (f"{text}\n", 0), done.stderr)

    def test_streamed(self):
        self.assert_prints(llm("-m", "qwell", "say:你好 👍"), "你好 👍")

    def test_whole(self):
        self.assert_prints(llm("-m", "qwell", "--no-stream", "say:你好 👍"), "你好 👍")

    def test_completions(self):
        self.assert_prints(llm("-m", "qwell-completions", "say:你好 👍"), "你好 👍")

    def test_usage_in_its_log(self):
        llm("-m", "qwell", "-s", "be brief", "say:hello")

        (entry,) = json.loads(llm("logs", "list", "--json", "-n", "1").stdout)
        self.assertEqual(entry["response"], "hello")
        self.assertEqual(entry["output_tokens"], len("hello") + 1)

    def test_options(self):
        options = ("-o", "temperature", "0.25", "-o", "max_tokens", "1000", "-o", "seed", "7")
        params = json.loads(llm("-m", "qwell", *options, "params").stdout)

        self.assertEqual((params["temperature"], params["seed"]), (0.25, 7))

    def test_tools(self):
        for how in ((), ("--no-stream",)):
            self.assert_prints(llm("-m", "qwell", *how, "--functions", ADD, f"say:{CALL}"), "3")

    def test_schema(self):
        schema = ("--schema", "left int, right int")
        for how in ((), ("--no-stream",)):
            done = llm("-m", "qwell", *how, *schema, 'say:{"left": 1, "right": 2}')
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(json.loads(done.stdout), {"left": 1, "right": 2})

    def test_an_error(self):
        done = llm("-m", "qwell", "-o", "max_tokens", "100000", "hi")

        self.assertNotEqual(done.returncode, 0)
        self.assertIn("context length is 4096 tokens", done.stderr)


if __name__ == "__main__":
    unittest.main()
