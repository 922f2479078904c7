"""Parts of a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

# White space as the chat templates write it; keywords that llguidance lacks may be ignored.
_STRICT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LENIENT = {**_STRICT, "lenient": True}


def lark_json(schema: Mapping[str, Any], *, strict: bool) -> str:
    """JSON of this schema; unless `strict`, keywords that cannot be enforced are left out."""
    options = _STRICT if strict else _LENIENT
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=False)}"


def lark_choice(rule: str, choices: Sequence[str]) -> str:
    """A rule that is one of these."""
    return f"{rule}: " + "\n    | ".join(choices)
