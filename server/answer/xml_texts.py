"""Texts that a schema says more of, as regexes: values of the XML-like format have no quotes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a schema may have that says no more of a text than that it is one.
ANNOTATIONS = frozenset({"type", "title", "description", "default", "examples"})
_LENGTHS = frozenset({"minLength", "maxLength"})
# Well beyond it llguidance runs out of fuel in the midst of a text, and lets nothing follow.
_MOST_CHARS = 256
_DATE = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](\.[0-9]{{1,6}})?(Z|[+-]{_CLOCK})"
_HEX = "[0-9a-fA-F]"
_FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": f"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
}
_END = r"\n<\/parameter>"


def held_text(schema: Mapping[str, Any]) -> str | None:
    """The terminal of a text with its closing tag, held to all that `schema` says; None if it
    cannot be."""
    said = schema.keys() - ANNOTATIONS
    if schema.get("type") != "string":
        return None
    if said == {"format"} and isinstance(schema["format"], str) and schema["format"] in _FORMATS:
        return f"/{_FORMATS[schema['format']]}{_END}/"
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    if not said <= _LENGTHS or not _is_length(least) or not (most == "" or _is_length(most)):
        return None
    # The text ends with the first closing tag.
    return rf"/(?s:.{{{least},{most}}}){_END}/ & ~/(?s:.*)<\/parameter>(?s:.+)/"


def _is_length(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_CHARS
