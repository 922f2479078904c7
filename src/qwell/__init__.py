"""qwell: a small runtime for Qwen models."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from qwell.runtime.cpu import require_numpy_that_runs
from qwell.runtime.grammar import Grammar
from qwell.runtime.sampling_params import SamplingParams

if TYPE_CHECKING:
    from qwell.runtime.llm import LLM

__all__ = ["LLM", "Grammar", "SamplingParams", "__version__"]
__version__ = version("qwell")


def __getattr__(name: str) -> Any:
    """Load `LLM` on first use: it brings torch, which the server process does not need."""
    if name == "LLM":
        require_numpy_that_runs()
        from qwell.runtime.llm import LLM

        return LLM
    raise AttributeError(f"module 'qwell' has no attribute {name!r}")
