"""Typed reading of a JSON file: absent, of the wrong type and unsupported are three errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwell.runtime.errors import (
    CheckpointError,
    ConfigKeyError,
    ConfigTypeError,
    UnsupportedModelError,
)

_ABSENT: Any = object()


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: no such file, not JSON, or not an object; the path is named.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


class JsonObject:
    """Keys of one object, read by type; whatever is not read can be refused at the end.

    Each getter takes the names a key has had, newest first. A null value counts as absent.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values = values
        self._read: set[str] = set()
        self.where = where

    def integer(self, *names: str, default: Any = _ABSENT, minimum: int = 1) -> Any:
        """An integer of at least `minimum`."""
        value = self._get(names, (int,), "an integer", default)
        if value is not default and value < minimum:
            raise UnsupportedModelError(
                f"{self._place(names)} is {value}; it must be at least {minimum}"
            )
        return value

    def number(self, *names: str, default: Any = _ABSENT) -> Any:
        """A finite number above 0, as float."""
        value = self._get(names, (int, float), "a number", default)
        if value is default:
            return value
        if not 0.0 < value < float("inf"):
            raise UnsupportedModelError(f"{self._place(names)} is {value}; it must be above 0")
        return float(value)

    def boolean(self, *names: str, default: Any = _ABSENT) -> Any:
        """True or false."""
        return self._get(names, (bool,), "true or false", default)

    def string(self, *names: str, default: Any = _ABSENT) -> Any:
        """A string."""
        return self._get(names, (str,), "a string", default)

    def strings(self, *names: str, default: Any = _ABSENT) -> Any:
        """A list of strings, as tuple."""
        value = self._get(names, (list,), "a list of strings", default)
        if value is default:
            return value
        if not all(isinstance(item, str) for item in value):
            raise ConfigTypeError(f"{self._place(names)} must be a list of strings, got {value!r}")
        return tuple(value)

    def child(self, *names: str) -> JsonObject | None:
        """A nested object, None when absent; an empty one counts as absent, too."""
        self._read.update(names)
        for name in names:
            value = self._get((name,), (dict,), "an object", None)
            if value:
                return JsonObject(value, self._place((name,)))
        return None

    def require(self, name: str, allowed: Sequence[Any], default: Any) -> None:
        """Refuse any value but the ones that the forward pass computes."""
        self._read.add(name)
        value = self._values.get(name)
        value = default if value is None else value
        # `1 == True` in Python, but a config that says 1 for true is of the wrong type.
        if not any(type(value) is type(item) and value == item for item in allowed):
            wanted = " or ".join(repr(item) for item in allowed)
            raise UnsupportedModelError(f"{self.where}: {name} is {value!r}; supported is {wanted}")

    def ignore(self, *names: str) -> None:
        """Keys that cannot change the logits."""
        self._read.update(names)

    def refuse_unread(self) -> None:
        """Refuse what nobody asked for: a key that is ignored may have changed the model.

        Null, false and what is empty are let pass, they switch a feature off.
        """
        off: tuple[Any, ...] = (None, False, "", [], {})
        unread = sorted(
            key
            for key, value in self._values.items()
            if key not in self._read and not any(type(value) is type(o) and value == o for o in off)
        )
        if unread:
            listed = ", ".join(f"{key}={self._values[key]!r}"[:80] for key in unread)
            raise UnsupportedModelError(
                f"{self.where}: unsupported settings: {listed}. qwell would have to ignore them; "
                "remove them only if they do not change the model"
            )

    def _get(self, names: Sequence[str], types: tuple[type, ...], wanted: str, default: Any) -> Any:
        self._read.update(names)
        for name in names:
            value = self._values.get(name)
            if value is None:
                continue
            sound = isinstance(value, types) and (bool in types or not isinstance(value, bool))
            if not sound:
                raise ConfigTypeError(f"{self.where}: {name} must be {wanted}, got {value!r}")
            return value
        if default is _ABSENT:
            raise ConfigKeyError(f"{self._place(names)} is missing; it must be {wanted}")
        return default

    def _place(self, names: Sequence[str]) -> str:
        return f"{self.where}: {names[0]}"
