"""The list of models, as /v1/models shows it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

# What the list holds when no name was chosen: clients written for it work with any checkpoint.
DEFAULT_MODEL_ID = "gpt-3.5-turbo"


class ModelCard(msgspec.Struct, kw_only=True):
    """One model. `created` is the Unix time of the answer; the last three are always null."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "owner"
    root: None = None
    parent: None = None
    permission: None = None


class ModelList(msgspec.Struct, kw_only=True):
    """All models."""

    object: str = "list"
    data: list[ModelCard]


def listed_ids(served_model_names: Sequence[str]) -> tuple[str, ...]:
    """The ids in the list: the chosen names, else the one that every client knows."""
    return tuple(served_model_names) or (DEFAULT_MODEL_ID,)
