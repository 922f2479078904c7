"""`qwell batch`: every line answered once, as the server would, however often the run is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import FAKE_WORKER, PATIENCE_S, ServerProcess

from qwell.cli import main
from qwell.cli.batch import run_batch
from qwell.cli.batch_files import BatchError, BatchLineError, BatchOutput, result_of
from qwell.runtime.engine_options import EngineOptions
from qwell.server.offline import OfflineAnswer, OfflineApi

RUN = """
import sys
from pathlib import Path
import msgspec
from qwell.cli.batch import run_batch
from qwell.runtime.engine_options import EngineOptions
options, source, target, *worker = sys.argv[1:]
run_batch(msgspec.json.decode(options, type=EngineOptions), Path(source), Path(target), worker)
"""
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class Files:
    """A batch's input and output."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.options = EngineOptions(model=str(model), device="cpu", max_num_seqs=4)
        self.source = folder / "in.jsonl"
        self.target = folder / "out.jsonl"

    def write(self, lines: Sequence[object]) -> None:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self.source.write_text("".join(text + "\n" for text in texts))

    def run(self) -> int:
        return run_batch(self.options, self.source, self.target, FAKE_WORKER)

    def start(self) -> subprocess.Popen[bytes]:
        options = msgspec.json.encode(self.options).decode()
        files = (str(self.source), str(self.target))
        return subprocess.Popen([sys.executable, "-c", RUN, options, *files, *FAKE_WORKER])

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.target.read_text().splitlines()]

    def texts(self) -> dict[str, str]:
        """Of completions that succeeded; no custom_id may have two results."""
        results = self.results()
        assert len({result["custom_id"] for result in results}) == len(results)
        return {
            result["custom_id"]: result["response"]["body"]["choices"][0]["text"]
            for result in results
            if result["response"]["status_code"] == 200
        }


@pytest.fixture
def files(text_folder: Path, tmp_path: Path) -> Files:
    return Files(text_folder, tmp_path)


def completion(name: str, prompt: object, url: str = COMPLETIONS, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "prompt": prompt, "max_tokens": 64, **fields}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def test_bodies_mean_what_they_mean_to_the_server(files: Files, server: ServerProcess) -> None:
    message = {"role": "user", "content": "say:hello"}
    bodies: list[tuple[str, Any]] = [
        (COMPLETIONS, {"model": "m", "prompt": ["say:one", "say:two"], "n": 2}),
        (COMPLETIONS, {"model": "m", "prompt": "params", "temperature": 0.5, "max_tokens": 400}),
        (COMPLETIONS, {"model": "m", "prompt": "say:", "echo": True}),
        (COMPLETIONS, {"model": "m", "prompt": "x", "max_tokens": 5000}),
        (COMPLETIONS, {"model": "m", "prompt": "x", "unknown": 1}),
        (COMPLETIONS, {"model": "m", "prompt": "x", "stream": "yes"}),
        (COMPLETIONS, []),
        (CHAT, {"model": "m", "messages": [message]}),
        (CHAT, {"model": "m", "messages": []}),
        ("/v1/nowhere", {}),
        ("/v1/models", {}),
    ]
    files.write(
        [
            {"custom_id": str(number), "method": "POST", "url": url, "body": body}
            for number, (url, body) in enumerate(bodies)
        ]
    )
    failed = files.run()

    results = {result["custom_id"]: result for result in files.results()}
    statuses = []
    for number, (url, body) in enumerate(bodies):
        answer = server.post(url, body)
        response = results[str(number)]["response"]
        statuses.append(response["status_code"])
        assert response["status_code"] == answer.status_code
        assert response["request_id"]
        assert results[str(number)]["error"] is None
        fresh = dict.fromkeys(("id", "created"))
        assert {**response["body"], **fresh} == {**answer.json(), **fresh}
    assert statuses == [200, 200, 200, 400, 400, 400, 400, 200, 400, 404, 405]
    assert failed == 7


def test_a_bad_line_is_an_error_and_no_end(files: Files) -> None:
    files.write(
        [
            "nonsense",
            '{"custom_id": "\ud83d"}'.encode("utf-8", "replace").decode(),
            completion("same", "say:first"),
            completion("same", "say:second"),
            "",
            {**completion("get", "x"), "method": "GET"},
            completion("elsewhere", "x", url="https://example.com"),
            completion("stream", "x", stream=True),
        ]
    )
    assert files.run() == 6

    found = {result["id"]: result for result in files.results()}
    codes = {name: result["error"] and result["error"]["code"] for name, result in found.items()}
    assert codes == {
        "batch_req_1": "invalid_json_line",
        "batch_req_2": "invalid_json_line",
        "batch_req_3": None,
        "batch_req_4": "duplicate_custom_id",
        "batch_req_6": "invalid_json_line",
        "batch_req_7": "invalid_url",
        "batch_req_8": "stream_not_allowed",
    }
    assert found["batch_req_3"]["response"]["body"]["choices"][0]["text"] == "first"


def test_a_run_that_was_killed_goes_on(files: Files) -> None:
    names = [f"request {number}" for number in range(40)]
    prompts = {name: f"slow:{name}" for name in names}
    # Two runs of which none can come to its end.
    held = [*names[:30], *["hold"] * 10]
    files.write([completion(name, prompts.get(p, p)) for name, p in zip(names, held, strict=True)])

    for _ in range(2):
        before = files.target.stat().st_size if files.target.exists() else 0
        process = files.start()
        deadline = time.monotonic() + PATIENCE_S
        while not files.target.exists() or files.target.stat().st_size <= before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)
        # As if it had been killed within a write.
        whole = files.target.read_bytes()
        files.target.write_bytes(whole + whole[: len(whole.splitlines()[0]) - 1])
    done = len(files.target.read_bytes().splitlines()) - 1
    assert 0 < done < len(names)
    kept = files.target.read_bytes().splitlines()[:done]

    files.write([completion(name, prompts[name]) for name in names])
    assert files.run() == 0

    assert files.target.read_bytes().splitlines()[:done] == kept
    assert files.texts() == {name: name for name in names}
    files.run()
    assert len(files.results()) == len(names)


@settings(max_examples=12)  # each waits for the disk
@given(st.lists(st.text(max_size=8), min_size=1, max_size=4), st.integers(0, 200))
def test_a_torn_line_is_cut_off(names: list[str], lost: int) -> None:
    results = [result_of(n, name, error=BatchLineError("c", "m")) for n, name in enumerate(names)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "out.jsonl"
        with BatchOutput(path) as output:
            output.append(results)
        whole = path.read_bytes()
        path.write_bytes(whole[: max(0, len(whole) - lost)])
        count = path.read_bytes().count(b"\n")

        with BatchOutput(path) as output:
            assert output.done == dict(enumerate(names[:count]))
            output.append(results[count:])
        assert path.read_bytes() == whole


def test_a_file_from_windows_is_one_like_any_other(files: Files) -> None:
    """With a byte-order mark, and carriage returns at the ends of lines."""
    lines = [completion("a", "say:one"), completion("b", "say:two")]
    text = "\ufeff" + "\r\n".join(json.dumps(line) for line in lines)
    files.source.write_bytes(text.encode())
    assert files.run() == 0
    assert files.texts() == {"a": "one", "b": "two"}


def test_lines_that_came_later_are_answered_too(files: Files) -> None:
    files.write([completion("a", "say:a")])
    files.run()
    files.write([completion("a", "say:a"), completion("b", "say:b")])
    files.run()
    assert files.texts() == {"a": "a", "b": "b"}


def test_a_line_that_ends_the_engine_takes_no_other_with_it(files: Files) -> None:
    others = [f"request {number}" for number in range(12)]
    lines = [completion(name, f"slow:{name}") for name in others]
    files.write([*lines[:3], completion("crash", "say:crash"), *lines[3:]])

    assert files.run() == 1

    assert files.texts() == {name: name for name in others}
    (failed,) = [result for result in files.results() if result["custom_id"] == "crash"]
    assert failed["response"]["status_code"] == 503
    assert failed["response"]["body"]["error"]["code"] == "engine_unavailable"


def test_a_full_queue_is_waited_for(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[bytes] = Counter()

    async def post(_: OfflineApi, path: str, body: bytes) -> OfflineAnswer:
        asked[body] += 1
        assert path == COMPLETIONS
        full = asked[body] < 3
        return OfflineAnswer(429 if full else 200, "id", b'{"error":{}}' if full else b"{}")

    monkeypatch.setattr(OfflineApi, "post", post)
    monkeypatch.setattr("qwell.cli.batch._RETRY_S", 0.001)
    files.write([completion(name, name) for name in "abc"])

    assert files.run() == 0
    assert list(asked.values()) == [3, 3, 3]
    assert [result["response"]["status_code"] for result in files.results()] == [200] * 3


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (b"my diary", "no result of a batch"),
        (b'{"a": 1}\n', "no result of a batch"),
        (b'{"id":"batch_req_1","custom_id":"other"}\n', "there is 'other', and 'a' here"),
        (b'{"id":"batch_req_9","custom_id":"a"}\n', "line 9, which the input lacks"),
    ],
)
def test_a_file_that_is_not_the_output_stays_as_it_is(
    files: Files, target: bytes, words: str
) -> None:
    files.write([completion("a", "say:a")])
    files.target.write_bytes(target)
    with pytest.raises(BatchError, match=words):
        files.run()
    assert files.target.read_bytes() == target


def test_two_runs_do_not_write_to_one_file(files: Files) -> None:
    files.write([completion("a", "say:a")])
    with BatchOutput(files.target), pytest.raises(BatchError, match="another run is writing"):
        files.run()
    files.run()
    assert files.texts() == {"a": "a"}


def test_errors_of_the_command_are_one_line(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["batch", str(files.source), str(files.target), "--model", files.options.model]
    assert main(command) == 1
    assert str(files.source) in capsys.readouterr().err.splitlines()[-1]
    assert not files.target.exists()
