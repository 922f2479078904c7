"""End-of-sequence ids and sampling defaults out of a checkpoint's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import ENDOFTEXT, IM_END, IM_START, tiny_backend

from qwell.runtime.checkpoint.generation_config import (
    GenerationDefaults,
    load_generation_defaults,
)
from qwell.runtime.errors import CheckpointError
from qwell.runtime.tokenizer import Tokenizer

TOKENIZER = Tokenizer(tiny_backend())


def load(
    folder: Path, generation: Any = None, config: Any = None, tokenizer: Tokenizer | None = None
) -> GenerationDefaults:
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        if value is not None:
            (folder / name).write_text(json.dumps(value))
    return load_generation_defaults(folder, tokenizer)


def test_files_that_are_missing_say_nothing(tmp_path: Path) -> None:
    assert load(tmp_path) == GenerationDefaults()
    assert load(tmp_path, tokenizer=TOKENIZER).eos_token_ids == (IM_END, ENDOFTEXT)


def test_values_are_read_as_they_are(tmp_path: Path) -> None:
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "min_p": 0,
        "eos_token_id": [7, 5],
        "max_new_tokens": 2048,
    }
    assert load(tmp_path, generation) == GenerationDefaults(
        eos_token_ids=(7, 5),
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=1.05,
        min_p=0.0,
    )


def test_null_is_silence(tmp_path: Path) -> None:
    generation = {"temperature": None, "top_k": None, "do_sample": None, "eos_token_id": None}
    assert load(tmp_path, generation, {"eos_token_id": None}) == GenerationDefaults()


def test_without_sampling_the_model_is_greedy(tmp_path: Path) -> None:
    generation = {"do_sample": False, "temperature": 0.7, "top_p": 0.8}
    assert load(tmp_path, generation) == GenerationDefaults(temperature=0.0, top_p=0.8)


def test_eos_is_the_union_of_all_files(tmp_path: Path) -> None:
    config = {"eos_token_id": [3, 7], "text_config": {"eos_token_id": 11}}
    defaults = load(tmp_path, {"eos_token_id": 7}, config, TOKENIZER)
    assert defaults.eos_token_ids == (7, 3, 11, IM_END, ENDOFTEXT)


def test_the_first_generation_stops_at_a_turn_of_its_own(tmp_path: Path) -> None:
    config = {"model_type": "qwen"}
    raw = load(tmp_path, {"chat_format": "raw"}, config, TOKENIZER)
    assert set(raw.eos_token_ids) == {ENDOFTEXT, IM_END}
    chat = load(tmp_path, {"chat_format": "chatml", "eos_token_id": ENDOFTEXT}, config, TOKENIZER)
    assert set(chat.eos_token_ids) == {ENDOFTEXT, IM_END, IM_START}


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ([], "must hold a JSON object"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": True}, "temperature must be a number, got True"),
        ({"temperature": -1}, r"temperature must be in \[0, 2\], got -1"),
        ({"top_p": -0.1}, "top_p must be in"),
        ({"top_p": float("nan")}, "top_p must be in"),
        ({"top_k": 20.0}, r"top_k must be an integer, got 20\.0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be"),
        ({"min_p": [0.1]}, "min_p must be a number"),
        ({"do_sample": 1}, "do_sample must be true or false, got 1"),
        ({"eos_token_id": "5"}, "eos_token_id must be a token id"),
        ({"eos_token_id": [5, None]}, "eos_token_id must be a token id"),
        ({"eos_token_id": -1}, "eos_token_id must be a token id"),
        ({"eos_token_id": True}, "eos_token_id must be a token id"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(
    tmp_path: Path, generation: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json:? {message}"):
        load(tmp_path, generation)


def test_a_wrong_eos_of_config_json_is_named_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/config\.json: eos_token_id"):
        load(tmp_path, config={"eos_token_id": 1.5})
