"""Answers of a given form, over the wire: response_format, structured_outputs, thinking_budget."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest
from checkpoints import make_checkpoint
from serving import ServerProcess
from tiny_tokenizers import IM_END, tiny_backend
from tokenizers import AddedToken

from qwell.runtime.errors import RequestError
from qwell.runtime.grammar import Grammar
from qwell.runtime.tokenizer import Tokenizer
from qwell.server import grammar_checker

MESSAGES: Any = [{"role": "user", "content": "abc"}]
AB = {"structured_outputs": {"regex": "[ab]{3}"}}
# The variable tells whether the prompt opens the block, closes it, or leaves it to the model.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
    "{% if messages[0].content == 'think' %}<think>\n{% endif %}"
    "{% if messages[0].content == 'answer' %}<think>\n\n</think>\n\n{% endif %}"
)


def write_text_side(folder: Path) -> int:
    """Tokenizer and template of a model that thinks; the size of its vocabulary."""
    backend = tiny_backend()
    marks = [AddedToken(mark, normalized=False) for mark in ("<think>", "</think>")]
    backend.add_tokens(marks)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": IM_END}))
    return backend.get_vocab_size()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, "qwen3", vocab_size=300, max_position_embeddings=1024)
    write_text_side(folder)
    return folder


@pytest.fixture(scope="module")
def real(folder: Path) -> Iterator[ServerProcess]:
    log = folder.with_name("log")
    with ServerProcess(folder, log, worker=()) as running:
        yield running


@pytest.fixture(scope="module")
def ai(real: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def scripted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(folder, tmp_path_factory.mktemp("scripted") / "log") as running:
        yield running


def chat(server: ServerProcess, content: str = "answer", **fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
    return server.post("/v1/chat/completions", body)


def content(server: ServerProcess, about: str = "answer", **fields: Any) -> str:
    answer = chat(server, about, seed=1, **fields)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return str(choice["message"]["content"])


class Weather(pydantic.BaseModel):
    city: Literal["Oslo", "Rome"]
    degrees: int = pydantic.Field(ge=-50, le=50)
    rain: bool | None


def test_a_pydantic_model_comes_back(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.parse(
        model="m",
        messages=[{"role": "user", "content": "answer"}],
        response_format=Weather,
        max_tokens=300,
        n=3,
        seed=1,
    )
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Weather)


def test_json_objects(real: ServerProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert isinstance(json.loads(content(real, response_format=wanted))["a"], bool)
    for same in (schema, json.dumps(schema)):
        outputs = {"json": same}
        assert isinstance(json.loads(content(real, structured_outputs=outputs))["a"], bool)
        assert isinstance(json.loads(content(real, guided_json=same))["a"], bool)
    # Of all objects the shortest comes first where nothing but the form is liked.
    likes = {"logit_bias": {str(ord("{")): 90, str(ord("}")): 100}}
    assert json.loads(content(real, response_format={"type": "json_object"}, **likes)) == {}
    assert json.loads(content(real, structured_outputs={"json_object": True}, **likes)) == {}


@pytest.mark.parametrize(
    ("outputs", "pattern"),
    [
        ({"regex": "[0-9]{2}"}, "[0-9]{2}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "x" /[yz]/'}, "x[yz]"),
        ({"grammar": 'root ::= "x" tail\ntail ::= [yz]'}, "x[yz]"),
    ],
)
def test_both_endpoints_take_structured_outputs(
    real: ServerProcess, outputs: dict[str, Any], pattern: str
) -> None:
    assert re.fullmatch(pattern, content(real, structured_outputs=outputs))
    answer = real.complete(["abc", "de"], n=2, structured_outputs=outputs, logprobs=1)
    assert len(answer["choices"]) == 4
    for choice in answer["choices"]:
        assert re.fullmatch(pattern, choice["text"])
        assert choice["finish_reason"] == "stop"
    older = {f"guided_{name}": value for name, value in outputs.items()}
    assert re.fullmatch(pattern, real.complete("abc", **older)["choices"][0]["text"])


def test_a_stream_is_the_plain_answer(ai: openai.OpenAI) -> None:
    asked: Any = {"model": "m", "messages": MESSAGES, "seed": 4, "max_tokens": 50, "logprobs": True}
    plain = ai.chat.completions.create(**asked, extra_body=AB).choices[0]
    chunks = [*ai.chat.completions.create(**asked, stream=True, extra_body=AB)]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == plain.message.content
    logprobs = [chunk.choices[0].logprobs for chunk in chunks]
    tokens = [token for scores in logprobs if scores for token in scores.content or ()]
    assert plain.logprobs is not None
    assert tokens == plain.logprobs.content


def test_no_token_left_is_an_error_of_the_request(real: ServerProcess) -> None:
    answer = chat(real, allowed_token_ids=[ord("x")], **AB)
    assert answer.status_code == 400
    assert "no token is left" in answer.json()["error"]["message"]
    stream = chat(real, allowed_token_ids=[ord("x")], stream=True, **AB)
    assert "no token is left" in stream.text
    assert stream.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("about", ["think", "either", "answer"])
def test_the_grammar_is_for_the_answer_alone(real: ServerProcess, folder: Path, about: str) -> None:
    start = Tokenizer.from_dir(folder).token_id("<think>")
    opens = {"logit_bias": {str(start): 100 if about == "either" else -100}}
    answer = chat(real, about, thinking_budget=5, **opens, **AB).json()
    message = answer["choices"][0]["message"]
    assert re.fullmatch("[ab]{3}", message["content"])
    assert ("reasoning_content" in message) is (about != "answer")
    counted = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    most = 5 + len("<\n>\n\n")
    assert counted == 0 if about == "answer" else 0 < counted <= most


def test_a_budget_alone_ends_the_thoughts(real: ServerProcess, folder: Path) -> None:
    marks = [Tokenizer.from_dir(folder).token_id(mark) for mark in ("<think>", "</think>")]
    never = {str(token_id): -100 for token_id in (*marks, IM_END)}
    answer = chat(real, "think", thinking_budget=7, max_tokens=30, logit_bias=never, seed=1)
    message = answer.json()["choices"][0]["message"]
    assert message["content"]
    assert message["reasoning_content"]
    assert answer.json()["usage"]["completion_tokens"] == 30


def test_what_reaches_the_engine(scripted: ServerProcess) -> None:
    def params(about: str, **fields: Any) -> dict[str, Any]:
        body = {"model": "m", "messages": [{"role": "user", "content": about}], **fields}
        body["messages"].append({"role": "user", "content": "params"})
        answer = scripted.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        message = answer.json()["choices"][0]["message"]
        return dict(json.loads(message["content"] or message["reasoning_content"]))

    assert params("think")["thinking"] is None
    assert params("think", thinking_budget=9)["thinking"]["opened"] is True
    assert params("think", thinking_budget=9)["thinking"]["budget"] == 9
    assert params("either", thinking_budget=0)["thinking"]["opened"] is False
    assert params("answer", thinking_budget=9)["thinking"] is None
    assert params("either", **AB)["grammar"] == {"kind": "regex", "text": "[ab]{3}"}
    assert params("think", **AB)["thinking"]["budget"] is None


def test_a_model_without_thoughts_has_no_budget(server: ServerProcess) -> None:
    answer = chat(server, thinking_budget=5)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "thinking_budget"


def schema_format(schema: object) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    }


SCHEMA = "response_format.json_schema.schema"
FAULTS: list[tuple[dict[str, Any], str, str]] = [
    (schema_format({"type": "text"}), SCHEMA, "Invalid type"),
    (schema_format({"type": "string", "pattern": "(a"}), SCHEMA, "unclosed group"),
    (schema_format({"type": "array", "uniqueItems": True}), SCHEMA, "uniqueItems"),
    (schema_format({"$ref": "http://example.org/"}), SCHEMA, "example.org"),
    (schema_format({"$ref": "#"}), SCHEMA, "cannot be used"),
    (schema_format([]), SCHEMA, "object"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must have"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
    ({"response_format": {"type": "json_object"}, **AB}, "structured_outputs", "give one"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "unclosed group"),
    ({"structured_outputs": {"grammar": "start: b"}}, "structured_outputs.grammar", "unknown name"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "length"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", ""),
    ({"guided_regex": "a", **AB}, "guided_regex", "give one"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "give one"),
    ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
    ({"guided_json": "{"}, "guided_json", "no text of a JSON schema"),
    ({"guided_json": "[]"}, "guided_json", "no text of a JSON schema"),
    ({"structured_outputs": {"json": "x"}}, "structured_outputs.json", "no text of a JSON schema"),
    ({"guided_json": '{"type": "text"}'}, "guided_json", "cannot be used"),
    ({"guided_decoding_backend": "auto"}, "guided_decoding_backend", ""),
]


@pytest.mark.parametrize(("fields", "param", "message"), FAULTS)
def test_faults_are_refused_by_name(
    server: ServerProcess, fields: dict[str, Any], param: str, message: str
) -> None:
    answer = chat(server, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


# Each would take a compiler in the server's own process far too long, or end that process.
TRAPS = {
    "too deep": {
        "grammar": "".join(f"a{i}: a{i + 1}\n" for i in range(5000)) + 'start: a0\na5000: "x"'
    },
    "too slow": {"json": {"allOf": [{"type": "integer", "multipleOf": p} for p in (10007, 10009)]}},
}


@pytest.mark.parametrize(
    ("trap", "message"), [("too deep", "nested too deep"), ("too slow", "more than 2 s")]
)
def test_a_grammar_that_takes_too_much_costs_only_its_request(
    start_server: Callable[..., ServerProcess], trap: str, message: str
) -> None:
    running = start_server()
    answer = chat(running, structured_outputs=TRAPS[trap])
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert chat(running).status_code == 200
    assert running.health() == (200, "ok")
    assert "Traceback" not in running.log


def test_a_check_ends_with_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    create = asyncio.create_subprocess_exec

    async def noted(*command: Any, **pipes: Any) -> asyncio.subprocess.Process:
        started.append(await create(*command, **pipes))
        return started[0]

    async def leave_early() -> None:
        monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
        schema = Grammar("json_schema", json.dumps(TRAPS["too slow"]["json"]))
        check = asyncio.create_task(grammar_checker.GrammarChecker().check(schema, "p"))
        while not started:
            await asyncio.sleep(0.01)
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check

    asyncio.run(leave_early())
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "repeat", ["a{1,1000000000}", "(.*a){100}", "((((a{1,99}){1,99}){1,99}){1,99})"]
)
def test_repetition_does_not_blow_up(real: ServerProcess, repeat: str) -> None:
    answer = real.complete("abc", structured_outputs={"regex": repeat}, max_tokens=8, seed=1)
    assert re.fullmatch(".{0,8}", answer["choices"][0]["text"], re.DOTALL)


def test_the_last_grammars_checked_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    async def problem_of(grammar: Grammar) -> str:
        started.append(grammar.text)
        return "bad" if grammar.text == "b" else ""

    monkeypatch.setattr(grammar_checker, "_problem_of", problem_of)

    async def check() -> None:
        checker = grammar_checker.GrammarChecker()
        a = [checker.check(Grammar("regex", "a"), "p") for _ in range(5)]
        await asyncio.gather(*a)
        for _ in range(2):
            with pytest.raises(RequestError, match="p cannot be used: bad"):
                await checker.check(Grammar("regex", "b"), "p")
        assert started == ["a", "b"]
        for i in range(300):
            await checker.check(Grammar("regex", str(i)), "p")
        await checker.check(Grammar("regex", "a"), "p")
        assert started.count("a") == 2

    asyncio.run(check())
