"""What a checkpoint says about generation: the ids that end a text, and sampling defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwell.runtime.checkpoint.json_object import read_json_object
from qwell.runtime.errors import CheckpointError, RequestError
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.tokenizer import Tokenizer

GENERATION_CONFIG_FILE = "generation_config.json"

# Files disagree: many list only the end of a document, though a chat turn ends with <|im_end|>.
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
# The first generation also stops where it would begin another turn by itself.
FIRST_GENERATION_END_TOKENS = (*END_TOKENS, "<|im_start|>")


@dataclass(frozen=True)
class GenerationDefaults:
    """Generation settings of a checkpoint; None where its files are silent.

    `eos_token_ids` is the union of all files and of the tokenizer's end tokens. A checkpoint
    that asks for greedy decoding has temperature 0.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None


def load_generation_defaults(folder: Path, tokenizer: Tokenizer | None) -> GenerationDefaults:
    """Read generation_config.json and the eos ids of config.json; either may be missing.

    Args:
        folder: the checkpoint.
        tokenizer: its tokenizer, to look up the end tokens that the files may omit; None for a
            checkpoint that has none.

    Raises:
        CheckpointError: a value of the wrong type or outside its range; file and key are named.
    """
    path = folder / GENERATION_CONFIG_FILE
    values = read_optional_json(path)
    do_sample = values.get("do_sample")
    if not isinstance(do_sample, bool | None):
        raise CheckpointError(f"{path}: do_sample must be true or false, got {do_sample!r}")
    sampling: dict[str, Any] = {
        "temperature": 0.0 if do_sample is False else _number(path, values, "temperature"),
        "top_p": _number(path, values, "top_p"),
        "top_k": _integer(path, values, "top_k"),
        "repetition_penalty": _number(path, values, "repetition_penalty"),
        "min_p": _number(path, values, "min_p"),
    }
    try:
        SamplingParams(**{key: value for key, value in sampling.items() if value is not None})
    except RequestError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return GenerationDefaults(eos_token_ids=_eos_token_ids(folder, tokenizer), **sampling)


def is_first_generation_chat(folder: Path) -> bool:
    """Whether this is a chat model of the first generation, whose ChatML is code, not a file."""
    return (
        read_optional_json(folder / "config.json").get("model_type") == "qwen"
        and read_optional_json(folder / GENERATION_CONFIG_FILE).get("chat_format") == "chatml"
    )


def read_optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} when there is no such file.

    Raises:
        CheckpointError: the file is there but holds no JSON object.
    """
    return read_json_object(path) if path.is_file() else {}


def _eos_token_ids(folder: Path, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    ids = list(_stated_eos(folder / GENERATION_CONFIG_FILE))
    ids += _stated_eos(folder / "config.json")
    if tokenizer is not None:
        first = is_first_generation_chat(folder)
        known = map(tokenizer.token_id, FIRST_GENERATION_END_TOKENS if first else END_TOKENS)
        ids += [token_id for token_id in known if token_id is not None]
    return tuple(dict.fromkeys(ids))


def _stated_eos(path: Path) -> Iterator[int]:
    config = read_optional_json(path)
    text_config = config.get("text_config")
    for values in (config, text_config if isinstance(text_config, dict) else {}):
        stated = values.get("eos_token_id")
        if stated is None:
            continue
        for token_id in stated if isinstance(stated, list) else [stated]:
            if type(token_id) is not int or token_id < 0:
                raise CheckpointError(
                    f"{path}: eos_token_id must be a token id or a list of them, got {stated!r}"
                )
            yield token_id


def _number(path: Path, values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise CheckpointError(f"{path}: {key} must be a number, got {value!r}")
    return float(value)


def _integer(path: Path, values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    if value is not None and type(value) is not int:
        raise CheckpointError(f"{path}: {key} must be an integer, got {value!r}")
    return value
