"""Writing a row into the file of its launch table."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qwell.kernels.triton.configs.table_file import NO_LIMIT


def write_row(file: Path, table: str, arch: str, place: int, row: Any, why: str) -> None:
    """Replace the row at `place` of an architecture; all other rows stay as they are.

    An architecture that the default served gets its rows. The file changes at once or not at all.
    """
    tables = json.loads(file.read_text())
    rows = list(tables[table].get(arch, tables[table]["default"]))
    fields = row._asdict().items()
    rows[place] = {field: None if value == NO_LIMIT else value for field, value in fields}
    rows[place]["why"] = why
    tables[table][arch] = rows
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        draft = Path(folder) / file.name
        draft.write_text(text_of(tables))
        shutil.copymode(file, draft)
        os.replace(draft, file)


def text_of(tables: Mapping[str, Mapping[str, Iterable[Mapping[str, Any]]]]) -> str:
    """The tables of a file as JSON, one row a line."""
    return _object(tables, 0, lambda table: _object(table, 1, _lines)) + "\n"


def _object(values: Mapping[str, Any], depth: int, text: Any) -> str:
    pad = " " * depth
    items = (f"{pad} {json.dumps(key)}: {text(value)}" for key, value in values.items())
    return "{\n" + ",\n".join(items) + f"\n{pad}}}"


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "[\n" + ",\n".join(f"   {json.dumps(row)}" for row in rows) + "\n  ]"
