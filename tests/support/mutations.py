"""Requests that began as good ones and were spoilt, the same ones for the same seed."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass, field
from typing import Any

import msgspec

from qwell.server.protocol.chat import ChatRequest
from qwell.server.protocol.completions import CompletionRequest
from qwell.server.protocol.tokenize import DetokenizeRequest, TokenizeRequest

GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "model": "m",
        "prompt": "say:hi",
        "max_tokens": 8,
        "temperature": 0.5,
        "stop": ["x", "yz"],
        "logit_bias": {"5": 1.5},
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/v1/chat/completions": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "call f"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "done"},
            {"role": "user", "content": [{"type": "text", "text": "say:hi"}]},
        ],
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        ],
        "tool_choice": "auto",
        "chat_template_kwargs": {"enable_thinking": False},
        "n": 2,
        "seed": 5,
        "stop": "x",
        "top_logprobs": 0,
    },
    "/tokenize": {"prompt": "a text", "return_token_strs": True},
    "/detokenize": {"tokens": [97, 98, 99]},
}
_TYPES = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_FIELDS = {
    path: [known.name for known in msgspec.structs.fields(kind)] for path, kind in _TYPES.items()
}
_SCALARS: list[Any] = [
    *(None, True, False, 0, -0.0, 1, -1, 2, 16, 129, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30),
    *(0.5, -1e-300, 1e308, 5e-324, "", "x", "0", "null", "\x00", "\x1b[31m\r\n", "\u202e", "é" * 9),
    *("👩‍👩‍👧", "\ufffe", "<|im_end|>", "{{ 7 * 7 }}", "../../etc/passwd", "a" * 5000, "none"),
    *("auto", "required", "json_object", "json_schema", "user", "tool", "function", "(a+)+$"),
]
_PIECES = [
    *(b"NaN", b"-Infinity", b"1e999", b"-", b"01", b"1.", b"9" * 400, b'"\\ud800"', b"\xff\xfe"),
    *(b"\xef\xbb\xbf", b"\x00", b"[" * 70, b"{" * 70, b'"', b"\\", b"\\u12", b",", b":", b"}"),
    *(b'"model":"m",', b"/**/", b"'", b"true", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b" " * 999),
]
_HEADERS: list[tuple[str, str]] = [
    *(("Content-Type", "application/json; charset=latin-1"), ("Content-Type", "text/plain")),
    *(("Content-Encoding", "gzip"), ("X-Request-Id", "a\tb"), ("X-Request-Id", "x" * 500)),
    *(("Accept", "*/*;q=nonsense"), ("Accept", "application/openmetrics-text; version=x")),
    *(("Authorization", "Bearer \xfc"), ("Authorization", "Basic ???"), ("Cookie", "=;=")),
    *(("Expect", "200-maybe"), ("Origin", "null"), ("Range", "bytes=0-"), ("Te", "trailers")),
]
_PATHS = [
    *("/", "/v1", "/v1/models", "/v1/models/%00", "/v1/models/..%2f..", "/health", "/metrics"),
    *("/docs", "/openapi.json", "/v1/embeddings", "/%ff%fe", "/ui/model?x=%", "//v1//models", "/*"),
]
_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "QUERY")


@dataclass
class Mutant:
    """A request as it goes over the wire."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


class Mutator:
    """Draws one request after the other."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def draw(self) -> Mutant:
        """The next request."""
        choose = self._random
        path = choose.choice(list(GOOD))
        body = copy.deepcopy(GOOD[path])
        for _ in range(choose.randint(0, 4)):
            self._spoil_value(path, body)
        mutant = Mutant("POST", path, json.dumps(body).encode())
        for _ in range(choose.choice((0, 0, 1, 3))):
            mutant.body = self._spoil_bytes(mutant.body)
        if choose.random() < 0.1:
            mutant.headers.update([choose.choice(_HEADERS)])
        if choose.random() < 0.05:
            mutant.method, mutant.path = choose.choice(_METHODS), choose.choice(_PATHS)
        return mutant

    def draw_bytes(self) -> bytes:
        """A request as bytes, of which its first lines may be spoilt too."""
        mutant = self.draw()
        lines = [f"{mutant.method} {mutant.path} HTTP/1.1", "Host: x", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in mutant.headers.items()]
        length = len(mutant.body) + self._random.choice((0, 0, -1, 1, 10**9, 10**30))
        lines.append(
            self._random.choice((f"Content-Length: {length}", "Transfer-Encoding: chunked"))
        )
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        for _ in range(self._random.randint(0, 3)):
            head = self._spoil_bytes(head)
        return head + mutant.body

    def _spoil_value(self, path: str, body: dict[str, Any]) -> None:
        choose = self._random
        holders = _holders(body)
        holder = choose.choice(holders) if choose.random() < 0.6 else body
        if isinstance(holder, list):
            if holder and choose.random() < 0.5:
                holder[choose.randrange(len(holder))] = self._value()
            else:
                holder += [self._value()] * choose.choice((1, 2, 40))
            return
        names = [*holder, *(_FIELDS[path] if holder is body else ()), "zzz", ""]
        name = choose.choice(names)
        if name in holder and choose.random() < 0.3:
            del holder[name]
        else:
            holder[name] = self._value()

    def _value(self, depth: int = 0) -> Any:
        choose = self._random
        kind = choose.random()
        if depth > 2 or kind < 0.7:
            return choose.choice(_SCALARS)
        if kind < 0.85:
            return [self._value(depth + 1) for _ in range(choose.randint(0, 3))]
        return {str(choose.choice(_SCALARS)): self._value(depth + 1) for _ in range(2)}

    def _spoil_bytes(self, body: bytes) -> bytes:
        choose = self._random
        place = choose.randint(0, len(body))
        kind = choose.randrange(5)
        if kind == 0:
            return body[:place]
        if kind == 1:
            return body[:place] + choose.choice(_PIECES) + body[place:]
        if kind == 2:
            return body[:place] + choose.randbytes(choose.randint(1, 8)) + body[place + 1 :]
        if kind == 3:
            return body[:place] + body[place + choose.randint(1, 20) :]
        return body[:place] + body[choose.randint(0, place) :]


def _holders(value: Any) -> list[Any]:
    """Every list and object within, itself too."""
    if isinstance(value, dict):
        return [value, *(inner for part in value.values() for inner in _holders(part))]
    if isinstance(value, list):
        return [value, *(inner for part in value for inner in _holders(part))]
    return []
