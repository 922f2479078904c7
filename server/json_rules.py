"""What a JSON text must keep to besides the grammar: bounded depth, no key twice in an object."""

from __future__ import annotations

import re

import msgspec

from qwell.runtime.errors import RequestError

MAX_DEPTH = 64

# Numbers, literals, commas and white space are skipped by the search for the next of these.
_TOKEN = re.compile(rb'"[^"]*"(\s*:)?|[{}\[\]]')


def check_json(text: bytes) -> None:
    """Refuse what decoders let pass and readers disagree on.

    `text` must be valid JSON; on anything else the result means nothing.

    Raises:
        RequestError: arrays and objects nested deeper than `MAX_DEPTH`, or an object that has a
            key twice; `param` is that key.
    """
    # Escapes of the same length that end no string; a run of backslashes starts with an escape.
    plain = text.replace(rb"\\", b"__").replace(rb"\"", b"__")
    keys_of_open: list[set[str]] = []
    for token in _TOKEN.finditer(plain):
        first = plain[token.start()]
        if first in b"{[":
            keys_of_open.append(set())
            if len(keys_of_open) > MAX_DEPTH:
                raise RequestError(
                    f"The request body is nested too deeply; at most {MAX_DEPTH} levels are allowed"
                )
        elif first in b"}]":
            keys_of_open.pop()
        elif token[1] is not None:
            key = msgspec.json.decode(text[token.start() : token.start(1)], type=str)
            if key in keys_of_open[-1]:
                raise RequestError(f"The key {key[:100]!r} is there twice", param=key[:100])
            keys_of_open[-1].add(key)
