"""A model of bytes, and an engine that runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grammars import byte_model

from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.loader import LoadedModel, load_model


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    return byte_model(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(options: EngineOptions) -> LoadedModel:
    return load_model(options)


@pytest.fixture(scope="module")
def engine(model: LoadedModel, options: EngineOptions) -> Iterator[Engine]:
    running = Engine(model, options)
    yield running
    running.close()
