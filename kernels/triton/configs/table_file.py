"""Launch tables as JSON files, which a measurement can rewrite.

A file holds tables by name, a table rows by architecture, and a row its fields, where null is no
limit. A row may say "why" it is what it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qwell.kernels.errors import KernelError

NO_LIMIT = sys.maxsize

Row = TypeVar("Row")


def table_file(module_file: str) -> Path:
    """The file beside the module that looks rows up in it."""
    return Path(module_file).with_suffix(".json")


def read_table(file: Path, name: str, make_row: Callable[..., Row]) -> dict[str, tuple[Row, ...]]:
    """Rows of a table by architecture.

    Raises KernelError for a row whose fields are not those that `make_row` takes.
    """
    return {
        arch: tuple(_row(file, f"{name} {arch}", fields, make_row) for fields in rows)
        for arch, rows in json.loads(file.read_text())[name].items()
    }


def _row(file: Path, place: str, fields: Mapping[str, Any], make_row: Callable[..., Row]) -> Row:
    settings = {
        field: NO_LIMIT if value is None else value
        for field, value in fields.items()
        if field != "why"
    }
    try:
        return make_row(**settings)
    except TypeError as error:
        raise KernelError(f"{file.name}: {place}: {dict(fields)}: {error}") from error
