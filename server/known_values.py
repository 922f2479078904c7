"""Which values a field may have, by the type that its request is decoded as."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeGuard

import msgspec.inspect as types

_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")


def known_values(request_type: object, path: str) -> list[str]:
    """What may stand at `path`, as msgspec writes it, where only some texts may; else nothing.

    Where an object may stand there as well, the last one says so.
    """
    kinds = _alternatives([types.type_info(request_type)])
    tags: list[object] = []
    for step in _STEP.findall(path):
        tags = [kind.tag for kind in kinds if _has_tag(kind, step)]
        kinds = _alternatives(part for kind in kinds for part in _parts(kind, step))
    literals = [kind for kind in kinds if isinstance(kind, types.LiteralType)]
    values = list(map(repr, [*tags, *(value for kind in literals for value in kind.values)]))
    has_object = any(isinstance(kind, types.StructType) for kind in kinds)
    return [*values, "an object"] if values and has_object else values


def _alternatives(kinds: Iterable[types.Type]) -> list[types.Type]:
    each = (kind.types if isinstance(kind, types.UnionType) else (kind,) for kind in kinds)
    return [kind for some in each for kind in some]


def _has_tag(kind: types.Type, step: str) -> TypeGuard[types.StructType]:
    return isinstance(kind, types.StructType) and kind.tag_field == step


def _parts(kind: types.Type, step: str) -> list[types.Type]:
    """The type of one step into a value of this type; none where there is no such step."""
    if isinstance(kind, types.StructType):
        return [field.type for field in kind.fields if field.encode_name == step]
    if isinstance(kind, types.ListType) and step.startswith("["):
        return [kind.item_type]
    return []
