"""Keeps what disassembling a kernel told: compiling is cached by Triton, reading is not."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import tempfile

from triton.compiler import CompiledKernel

from qwell.bench.kernels import binary
from qwell.bench.kernels.binary import Facts, read_facts
from qwell.runtime.demo_model import cache_dir

_READER = hashlib.sha256(inspect.getsource(binary).encode()).hexdigest()


def cached_facts(kernel: CompiledKernel) -> Facts:
    """Facts about a kernel, read once for the same source, settings, target and Triton."""
    key = hashlib.sha256(f"{kernel.hash} {_READER}".encode()).hexdigest()
    file = cache_dir() / "kernel-facts" / f"{key}.json"
    if file.exists():
        return Facts(**json.loads(file.read_text()))
    facts = read_facts(kernel)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Replaced at once: several processes may be at the same kernel.
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as draft:
        json.dump(dataclasses.asdict(facts), draft)
    os.replace(draft.name, file)
    return facts
