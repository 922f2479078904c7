"""Calls that may fail without ending the run."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """What a call raised: its traceback."""

    text: str


def attempt(run: Callable[[], T]) -> T | Failure:
    """The result of `run`, or what it raised, whatever that is.

    A GPU is at hand for minutes: whichever way a kernel or a section fails (compiler, driver,
    torch, memory), the others are still measured, and the report says what happened.
    """
    try:
        return run()
    except Exception:  # noqa: BLE001 (see above)
        return Failure(traceback.format_exc())
