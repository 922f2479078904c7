"""The one exception of this package; `runtime` raises its own KernelError from it."""

from __future__ import annotations


class KernelError(Exception):
    """A kernel cannot serve the given device, dtype or shape; says which op, which tensor, why."""
