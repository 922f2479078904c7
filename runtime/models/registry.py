"""From the `architectures` of a config.json to the family that computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwell.runtime.checkpoint.config import ModelConfig
from qwell.runtime.checkpoint.json_object import JsonObject, read_json_object
from qwell.runtime.errors import UnsupportedModelError
from qwell.runtime.models import qwen, qwen2, qwen3
from qwell.runtime.models.dense import TensorNames


@dataclass(frozen=True)
class Family:
    """What a family adds to the dense decoder."""

    read_config: Callable[[JsonObject], ModelConfig]
    names: TensorNames


FAMILIES = {
    family.ARCHITECTURE: Family(family.read_config, family.NAMES) for family in (qwen, qwen2, qwen3)
}


def read_model_config(folder: Path) -> tuple[Family, ModelConfig]:
    """The family and the config of a checkpoint folder.

    Raises:
        CheckpointError: config.json is absent, damaged, lacks a key or has one of wrong type.
        UnsupportedModelError: another family, or a setting that qwell does not compute.
    """
    path = folder / "config.json"
    config = JsonObject(read_json_object(path), str(path))
    architectures = config.strings("architectures")
    for name in architectures:
        if name in FAMILIES:
            return FAMILIES[name], FAMILIES[name].read_config(config)
    raise UnsupportedModelError(
        f"{path}: architectures is {list(architectures)}; supported are {', '.join(FAMILIES)}"
    )
