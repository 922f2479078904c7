"""Prefixes that outlive their engine give the same tokens, or are not used at all."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from engines import start_engine

from qwell.runtime.engine import Engine
from qwell.runtime.sampling_params import SamplingParams

PROMPT = [(7 * i) % 190 for i in range(100)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, "qwen3")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prefixes.safetensors"


def start(folder: Path, file: Path, **options: object) -> Engine:
    return start_engine(folder, prefix_cache_file=str(file), **options)


def ask(engine: Engine, prompt: list[int] = PROMPT, salt: str = "") -> tuple[list[int], int]:
    """The tokens, and how many of the prompt's were found."""
    params = SamplingParams(max_tokens=12, temperature=0.7, seed=1)
    engine.add("a", prompt, params, cache_salt=salt)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    tokens = [token_id for output in outputs for token_id in output.token_ids]
    return tokens, sum(output.cached_tokens for output in outputs)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_prefixes_are_there_after_a_restart(folder: Path, file: Path, kv_cache_dtype: str) -> None:
    engine = start(folder, file, kv_cache_dtype=kv_cache_dtype)
    tokens, found = ask(engine)
    assert found == 0
    branch = ask(engine, PROMPT[:50] + PROMPT[:50])
    engine.close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = start(folder, file, kv_cache_dtype=kv_cache_dtype)
    assert ask(again) == (tokens, 96)
    assert ask(again, PROMPT[:50] + PROMPT[:50]) == (branch[0], 96)
    again.close()
    assert ask(start(folder, file, kv_cache_dtype=kv_cache_dtype)) == (tokens, 96)


def test_requests_that_run_at_the_end_are_aborted(folder: Path, file: Path) -> None:
    engine = start(folder, file)
    engine.add("long", PROMPT, SamplingParams(max_tokens=100))
    for _ in range(5):
        engine.step()
    engine.close()
    assert not engine.has_work
    assert ask(start(folder, file))[1] == 96


def test_salted_prefixes_stay_where_they_are(folder: Path, file: Path) -> None:
    engine = start(folder, file)
    ask(engine, salt="tenant")
    ask(engine, PROMPT[::-1])
    engine.close()
    again = start(folder, file)
    assert ask(again, salt="tenant")[1] == 0
    assert ask(again)[1] == 0
    assert ask(again, PROMPT[::-1])[1] == 96


def test_a_small_cache_takes_what_fits_half_of_it(folder: Path, file: Path) -> None:
    engine = start(folder, file)
    tokens, _ = ask(engine)
    engine.close()
    again = start(folder, file, kv_cache_tokens=256, max_model_len=160)
    assert again.num_free_blocks == 16
    assert ask(again) == (tokens, 96)
    again = start(folder, file, kv_cache_tokens=128, max_model_len=128)
    assert ask(again) == (tokens, 64)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged"),
        (lambda data: data[: len(data) // 2], ""),
        (lambda data: data[:0], ""),
        (lambda data: data[::-1], ""),
    ],
)
def test_a_damaged_file_is_not_used(folder, file, damage, told, caplog) -> None:
    engine = start(folder, file)
    tokens, _ = ask(engine)
    engine.close()
    file.write_bytes(damage(file.read_bytes()))
    again = start(folder, file)
    assert ask(again) == (tokens, 0)
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "the prefix cache starts empty" in line
    assert told in line


def test_a_file_of_another_model_is_not_used(folder, file, tmp_path, caplog) -> None:
    engine = start(folder, file)
    ask(engine)
    engine.close()
    make_checkpoint(tmp_path / "other", "qwen3", seed=1)
    assert ask(start(tmp_path / "other", file))[1] == 0
    assert ask(start(folder, file, weights="int8"))[1] == 0
    assert ask(start(folder, file, kv_cache_dtype="bfloat16"))[1] == 0
    assert caplog.text.count("another model") == 3
    assert ask(start(folder, file))[1] == 96


def test_a_file_from_before_config_json_was_edited_is_not_used(
    folder: Path, file: Path, tmp_path: Path
) -> None:
    """As by whoever turns YaRN on: weights are the same, but keys were rotated otherwise."""
    edited = tmp_path / "edited"
    edited.mkdir()
    (edited / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (edited / "config.json").write_text(json.dumps(config))
    engine = start(edited, file)
    ask(engine)
    engine.close()
    assert ask(start(edited, file))[1] == 96
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    config["rope_parameters"] |= yarn
    (edited / "config.json").write_text(json.dumps(config))
    assert ask(start(edited, file)) == (ask(start_engine(edited))[0], 0)


def test_a_file_that_cannot_be_written_is_told(folder: Path, tmp_path: Path, caplog) -> None:
    engine = start(folder, tmp_path / "none" / "file")
    assert "will not be kept" in caplog.text
    ask(engine)
    engine.close()
    assert "cannot be kept" in caplog.text
