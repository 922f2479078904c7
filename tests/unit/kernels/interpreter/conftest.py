"""Tests of Triton kernels under the CPU interpreter, run by ../test_triton_interpreter.py.

Triton decides between compiler and interpreter when a kernel is decorated, so these tests need
a process of their own that sets TRITON_INTERPRET before anything imports triton.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
