"""Where qwell keeps what can be made again. Torch-free."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """QWELL_CACHE; else a folder qwell in XDG_CACHE_HOME, or in the system's place for caches."""
    if own := os.environ.get("QWELL_CACHE"):
        return Path(own)
    default = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or default) / "qwell"
