"""`qwell bench serve`: what it asks, what it sees, how it takes turns."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import openai_stub
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_stub import OpenAIStub, chunked, event, stream, stream_events, whole

from qwell.bench.serving.client import Client, Outcome, connect
from qwell.bench.serving.http_client import Address, ServingError
from qwell.bench.serving.load import Load, run_load
from qwell.bench.serving.memory import memory_of
from qwell.bench.serving.prompts import Lengths, Turn, conversations
from qwell.bench.serving.results import Figures, Limits, Percentiles
from qwell.bench.serving.run import Plan, measure
from qwell.bench.serving.servers import Running, StartedServer
from qwell.cli import main

STUB = f"{shlex.quote(sys.executable)} {shlex.quote(openai_stub.__file__)} {{port}}"
TURN = Turn(text="time and again", ids=(1, 2, 3), output_tokens=3)
ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
CHAT_END = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})


def ask(answer: bytes, endpoint: Any = "completions", **fields: Any) -> tuple[Outcome, str]:
    """What a client makes of an answer."""

    async def reply(_: dict[str, Any]) -> bytes:
        return answer

    async def run() -> tuple[Outcome, str]:
        async with OpenAIStub(reply) as stub:
            return await Client(stub.address, endpoint, "m", **fields).ask(TURN, [])

    return asyncio.run(run())


@given(st.lists(st.integers(0, 400), max_size=5))
def test_an_answer_is_read_however_it_is_cut_into_chunks(cuts: list[int]) -> None:
    data = b"".join(stream_events(["one ", "two ", "thrée"], tokens=5))
    places = sorted({min(cut, len(data)) for cut in cuts})
    chunks = [
        data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)
    ]

    outcome, text = ask(chunked(*chunks))

    assert text == "one two thrée"
    assert outcome.error is None
    assert (outcome.prompt_tokens, outcome.output_tokens) == (7, 5)
    assert 0 < outcome.first_token <= outcome.total


def test_a_server_that_counts_no_tokens_has_its_pieces_counted() -> None:
    events = [
        event({"choices": [{"index": 0, "text": "a"}]}),
        event({"choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]}),
    ]
    assert ask(chunked(*events))[0].output_tokens == 2


def test_the_role_of_a_chat_answer_is_no_token() -> None:
    content = event({"choices": [{"index": 0, "delta": {"content": "hi"}}]})
    ticks = iter(range(100))

    outcome, text = ask(chunked(ROLE, content, CHAT_END), "chat", clock=lambda: next(ticks))

    assert text == "hi"
    # The clock is read at the start, at the content and at the end.
    assert (outcome.first_token, outcome.total) == (1, 2)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (whole(429, {"error": {"message": "full"}}), "429"),
        (whole(503, {}), "503"),
        (chunked(event({"choices": [{"text": "a"}]})), "cut"),
        (chunked(b"data: [DONE]\n\n"), "cut"),
        (stream()[:150], "cut"),
        (b"", "cut"),
        (chunked(event({"error": {"message": "died"}})), "error event"),
        (chunked(b"data: {\n\n"), "not understood"),
        (b"SSH-2.0\r\n\r\n", "not understood"),
    ],
)
def test_failures_are_told_apart(answer: bytes, kind: str) -> None:
    assert ask(answer)[0].error == kind


def test_nobody_there() -> None:
    client = Client(Address("127.0.0.1", 1), "completions", "m")
    assert asyncio.run(client.ask(TURN, []))[0].error == "unreachable"
    with pytest.raises(ServingError, match="cannot be reached"):
        asyncio.run(connect(client.address, "completions"))


@pytest.mark.parametrize(
    ("refused", "sends_ids", "ignores_eos"),
    [((), True, True), (("ids",), False, True), (("ids", "ignore_eos"), False, False)],
)
def test_a_server_is_asked_in_a_way_that_it_takes(
    refused: tuple[str, ...], sends_ids: bool, ignores_eos: bool
) -> None:
    async def reply(body: dict[str, Any]) -> bytes:
        has = {"ids": isinstance(body["prompt"], list), "ignore_eos": "ignore_eos" in body}
        return whole(400, {}) if any(has[name] for name in refused) else stream()

    async def run() -> Client:
        async with OpenAIStub(reply) as stub:
            return await connect(stub.address, "completions")

    client = asyncio.run(run())
    assert (client.model, client.sends_ids, client.ignores_eos) == ("stub", sends_ids, ignores_eos)


def test_a_closed_loop_has_as_many_requests_running_as_clients() -> None:
    running = most = 0

    async def reply(_: dict[str, Any]) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return stream()

    outcomes = load_on(reply, Load(clients=3), requests=9)
    assert [outcome.error for outcome in outcomes] == [None] * 9
    assert most == 3


def test_an_open_loop_does_not_wait_for_answers() -> None:
    arrived = 0
    all_there = asyncio.Event()

    async def reply(_: dict[str, Any]) -> bytes:
        nonlocal arrived
        arrived += 1
        if arrived == 6:
            all_there.set()
        # Whoever waited for an answer before sending the next would wait for ever.
        await asyncio.wait_for(all_there.wait(), 60)
        return stream()

    outcomes = load_on(reply, Load(rate=1000.0), requests=6)
    assert [outcome.error for outcome in outcomes] == [None] * 6


def test_a_turn_follows_the_answer_to_the_one_before() -> None:
    bodies: list[dict[str, Any]] = []

    async def reply(body: dict[str, Any]) -> bytes:
        bodies.append(body)
        content = event({"choices": [{"index": 0, "delta": {"content": f"answer {len(bodies)}"}}]})
        return chunked(ROLE, content, CHAT_END)

    outcomes = load_on(reply, Load(clients=1), 1, dataset="chat", endpoint="chat")

    assert [outcome.turn for outcome in outcomes] == [0, 1, 2]
    # An answer that ended and went on would lack its end in the messages of the next turn.
    assert all(body["min_tokens"] == body["max_tokens"] for body in bodies)
    messages = [body["messages"] for body in bodies]
    for before, after in itertools.pairwise(messages):
        assert after[: len(before)] == before
    assert [message["role"] for message in messages[2]] == [
        "system", "user", "assistant", "user", "assistant", "user"
    ]  # fmt: skip
    assert messages[2][2]["content"] == "answer 1"


def load_on(
    reply: openai_stub.Reply, load: Load, requests: int, dataset: Any = "random", **fields: Any
) -> list[Outcome]:
    async def run() -> list[Outcome]:
        async with OpenAIStub(reply) as stub:
            client = Client(stub.address, **{"endpoint": "completions", "model": "m", **fields})
            asked = conversations(dataset, Lengths(), requests, "0")
            outcomes, seconds = await run_load(client, load, asked, "0")
            assert seconds > 0
            return outcomes

    return asyncio.run(run())


@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from(["random", "repetitive"]))
def test_lengths_stay_within_the_spread(size: int, spread: float, dataset: Any) -> None:
    lengths = Lengths(input_tokens=size, output_tokens=size, spread=spread)
    for conversation in conversations(dataset, lengths, 8, "seed"):
        (turn,) = conversation.turns
        for length in (len(turn.ids), len(turn.text.split()), turn.output_tokens):
            assert max(1, (1 - spread) * size - 1) <= length <= (1 + spread) * size + 1


def test_the_same_seed_asks_the_same_and_another_does_not() -> None:
    first, same, other = (conversations("random", Lengths(), 4, seed) for seed in "aab")
    assert first == same
    assert not {c.turns[0].ids[:4] for c in first} & {c.turns[0].ids[:4] for c in other}


def test_repetitive_prompts_repeat_and_random_ones_do_not() -> None:
    (repetitive,) = conversations("repetitive", Lengths(input_tokens=96), 1, "0")
    (random,) = conversations("random", Lengths(input_tokens=96), 1, "0")
    for turn, repeats in ((repetitive.turns[0], True), (random.turns[0], False)):
        assert (turn.ids[:48] == turn.ids[48:]) is repeats


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_percentiles_are_those_of_numpy(values: list[float]) -> None:
    found = Percentiles.of(values)
    assert found is not None
    expected = np.percentile(values, [50, 90, 99])
    np.testing.assert_allclose([found.p50, found.p90, found.p99], expected, rtol=1e-9)


def test_figures_count_what_succeeded() -> None:
    def outcome(first: float, tokens: int, total: float, turn: int = 0) -> Outcome:
        return Outcome(turn=turn, first_token=first, total=total, output_tokens=tokens)

    outcomes = [
        outcome(0.1, 11, 1.1),
        outcome(0.3, 11, 1.3, turn=1),
        outcome(0.1, 11, 5.1),  # 0.5 s a token
        outcome(0.1, 1, 0.1),
        Outcome(turn=0, error="429"),
    ]
    figures = Figures.of(outcomes, 10.0, Limits(first_token=0.2, between_tokens=0.2))

    assert (figures.requests, figures.succeeded, figures.errors) == (5, 4, {"429": 1})
    assert figures.request_rate == 0.4
    assert figures.output_tokens_per_second == 3.4
    assert figures.goodput == 0.2
    assert figures.between_tokens is not None
    assert figures.between_tokens.p50 == pytest.approx(0.1)
    second = figures.first_token_by_turn[1]
    assert second is not None
    assert second.p50 == 0.3


def test_memory_counts_what_a_process_and_its_children_hold() -> None:
    code = "import subprocess, sys; x = b'x' * (50 << 20); print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"

    async def run() -> tuple[int, int]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", parent),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        await process.stdout.readline()
        usage = memory_of(process.pid)
        await process.communicate(b"\n")
        return usage.resident, usage.anonymous

    resident, anonymous = asyncio.run(run())
    assert 50 << 20 < anonymous < 100 << 20
    assert resident > anonymous


def test_two_servers_take_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, picture = tmp_path / "results.json", tmp_path / "picture.png"
    options = ["--url", STUB, "--compare", STUB, "--runs", "2", "--rate", "50,100"]

    files = ["--json", str(results), "--plot", str(picture)]
    status = main(["bench", "serve", *options, "--requests", "4", *files])

    assert status == 0
    report = json.loads(results.read_text())
    for load, rate in zip(report["loads"], (50.0, 100.0), strict=True):
        assert load["load"]["rate"] == rate
        for server in ("server", "peer"):
            runs = load["runs"][server]
            assert [len(run["outcomes"]) for run in runs] == [4, 4]
            assert all(run["memory"]["start"]["resident"] > 1 << 20 for run in runs)
        assert load["figures"]["peer"]["succeeded"] == 8
        ratio = load["ratios"]["output_tokens_per_second"]
        assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "100 requests/s  peer    8 of 8" in capsys.readouterr().out


def test_turns_are_those_of_one_server_after_the_other() -> None:
    log: list[str] = []

    class Logged(StartedServer):
        @contextlib.asynccontextmanager
        async def run(self) -> AsyncIterator[Running]:
            async with super().run() as running:
                log.append(f"{self.name} starts")
                yield running
            log.append(f"{self.name} ends")

    async def run() -> list[tuple[str, Load]]:
        servers = [Logged(name, tuple(shlex.split(STUB))) for name in "ab"]
        loads = (Load(clients=1), Load(clients=2))
        plan = Plan("random", Lengths(), "completions", loads, requests=1, runs=2, seed=0)
        return [(run.server, run.load) async for run in measure(servers, plan)]

    order = asyncio.run(run())

    assert [server for server, _ in order] == ["a", "a", "b", "b"] * 2
    assert [load.clients for _, load in order] == [1, 2] * 4
    assert log == ["a starts", "a ends", "b starts", "b ends"] * 2


def test_tables_of_conversations(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dataset", "chat", "--turns", "2", "--endpoint", "completions"]
    servers = ["--url", STUB, "--compare", STUB]
    assert main(["bench", "serve", *servers, "--requests", "2", *options]) == 0

    tables = [table.splitlines() for table in capsys.readouterr().out.split("\n\n")]
    headings = [re.split("  +", table[0]) for table in tables]
    assert headings[0][-1] == "client CPU"
    turns = ["TTFT ms, turn 1", "TTFT ms, turn 2", "cached, turn 1", "cached, turn 2"]
    assert headings[1] == ["load", "server", *turns]
    assert re.split("  +", tables[1][1])[-2:] == ["43%", "43%"]
    assert headings[2][-2:] == ["TTFT p50, turn 1", "TTFT p50, turn 2"]
    assert headings[3][2] == "start: resident MB"
    for table, heading in zip(tables, headings, strict=True):
        for row in table[1:]:
            assert len(re.split("  +", row)) == len(heading)


def test_a_plot_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "qwell.bench.serving.plot", raising=False)

    assert main(["bench", "serve", "--url", STUB, "--plot", "x.png"]) == 1
    assert "pip install 'qwell[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--url", "ftp://x"], "{port}"),
        (["--url", "https://x"], "must be like http://127.0.0.1:8000"),
        (["--url", "no-such-program-anywhere {port}"], "cannot be run"),
        (["--url", f"{sys.executable} -c 'print(1/0)' {{port}}"], "ZeroDivisionError"),
    ],
)
def test_servers_that_cannot_be_measured(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *options]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--url", "http://x", "--model", "y"], "leave out --model"),
        (["--rate", "0"], "above 0"),
        (["--rate", "1", "--clients", "1"], "not allowed with"),
        (["--spread", "2"], "0 to 1"),
    ],
)
def test_options_that_make_no_sense(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "serve", *options])
    assert words in capsys.readouterr().err
