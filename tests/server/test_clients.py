"""Programs that need no client of their own: what comes with the machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import requests
from serving import PATIENCE_S, ServerProcess

NODE = """
const url = process.argv[1];
async function post(path, body) {
  const response = await fetch(url + path, {
    method: 'POST',
    headers: {'Content-Type': 'application/json'},
    body: JSON.stringify(body),
  });
  let text = '';
  const decoder = new TextDecoder('utf-8', {fatal: true});
  for await (const piece of response.body) text += decoder.decode(piece, {stream: true});
  return [response.status, text];
}
async function main() {
  const plain = await post('/v1/completions', {model: 'm', prompt: 'say:hello'});
  console.log(plain[0], JSON.parse(plain[1]).choices[0].text);
  const messages = [{role: 'user', content: 'say:\\u4f60\\u597d'}];
  const stream = await post('/v1/chat/completions', {model: 'm', messages, stream: true});
  const events = stream[1].trim().split('\\n\\n').map(event => event.slice('data: '.length));
  const chunks = events.slice(0, -1).map(event => JSON.parse(event));
  console.log(stream[0], chunks.map(chunk => chunk.choices[0].delta.content ?? '').join(''));
  console.log(events.at(-1));
  const refused = await post('/v1/completions', {model: 'm', prompt: 'x', suffix: 'y'});
  console.log(refused[0], JSON.parse(refused[1]).error.param);
}
main();
"""


def run_program(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} must be installed for this test"
    return path


def test_node_fetch(server: ServerProcess) -> None:
    output = run_program(program("node"), "-e", NODE, server.url)

    assert output.splitlines() == ["200 hello", "200 你好", "[DONE]", "400 suffix"]


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_curl(server: ServerProcess, tmp_path: Path, size: int) -> None:
    # Over a megabyte curl first asks whether it may send the body (Expect: 100-continue).
    body = tmp_path / "body.json"
    prompts = ["say:hello", "x" * size]
    body.write_text(json.dumps({"model": "m", "prompt": prompts, "stream": True}))

    output = run_program(
        *(program("curl"), "--silent", "--no-buffer", f"{server.url}/v1/completions"),
        *("-H", "Content-Type: application/json", "--data-binary", f"@{body}"),
    )

    if size == 10:
        assert output.endswith("data: [DONE]\n\n")
    else:
        assert json.loads(output)["error"]["code"] == "context_length_exceeded"


def test_requests_reads_a_stream_line_by_line(server: ServerProcess) -> None:
    body = {"model": "m", "prompt": "say:hello", "stream": True}

    answer = requests.post(
        f"{server.url}/v1/completions", json=body, stream=True, timeout=PATIENCE_S
    )

    lines = [line for line in answer.iter_lines(decode_unicode=True) if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hello"
