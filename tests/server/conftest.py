"""Servers for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from chat_templates import QWEN3, QWEN3_5, server_of
from client_environments import client_python
from serving import ServerProcess
from tiny_tokenizers import tiny_backend

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder without weights: a byte tokenizer and a ChatML template."""
    folder = tmp_path_factory.mktemp("text")
    tiny_backend().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


@pytest.fixture(scope="session")
def server(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with default options and the scripted engine, shared by tests that leave it as
    they found it."""
    log = tmp_path_factory.mktemp("server") / "log"
    with ServerProcess(text_folder, log) as running:
        yield running


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A scripted engine behind Qwen3's form of prompts and answers."""
    with server_of(QWEN3, tmp_path_factory.mktemp("qwen3")) as server:
        yield server


@pytest.fixture(scope="module")
def qwen3_5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The same with Qwen3.5's."""
    with server_of(QWEN3_5, tmp_path_factory.mktemp("qwen3_5")) as server:
        yield server


@pytest.fixture
def start_server(text_folder: Path, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers of the test's own; they end with it."""
    with ExitStack() as stack:

        def start(**options: Any) -> ServerProcess:
            options.setdefault("folder", text_folder)
            log = tmp_path / f"log{len(list(tmp_path.iterdir()))}"
            return stack.enter_context(ServerProcess(log=log, **options))

        yield start


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's client, without retries: what fails is to be seen."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def old_openai_python() -> Path:
    """A Python that has openai 0.28.1, in an environment of its own that later runs reuse."""
    return client_python("openai_0_28")
