"""Commands that run Python modules in processes of their own."""

from __future__ import annotations

import sys

# `python -m` looks for every module in the working directory first, which may be the folder of a
# checkpoint: a torch.py there would run. Its switch against that, -P, came with Python 3.11.
_RUN = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; "
    "runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
)


def module_command(name: str) -> tuple[str, ...]:
    """As `python -m name`, with nothing taken from the working directory."""
    return (sys.executable, "-c", _RUN.format(name=name))
