"""What docs/clients.md says, block by block."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
_ADDRESS = "http://127.0.0.1:8000"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def documented(client: str, url: str) -> dict[str, str]:
    """The code of a client's section by its language, for a server at `url`."""
    _, section = _PAGE.read_text().split(f"\n## {client}\n")
    code = dict(_BLOCK.findall(section.split("\n## ")[0]))
    assert any(_ADDRESS in block for block in code.values())
    return {language: block.replace(_ADDRESS, url) for language, block in code.items()}
