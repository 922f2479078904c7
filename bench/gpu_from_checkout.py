"""`qwell bench gpu` without an installation: python bench/gpu_from_checkout.py --out DIR.

With --tune OP instead, `qwell bench kernels --tune OP`, which writes into the checkout. Needs
torch, triton and numpy. Nothing is built: the folders of the checkout become the package.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class _Struct:
    """msgspec.Struct for machines without it: fields, whose defaults are those of the class."""

    def __init_subclass__(cls, **_: Any) -> None:
        """How a struct is encoded does not matter: nothing here sends one anywhere."""

    def __init__(self, *values: Any, **named: Any) -> None:
        vars(self).update(zip(type(self).__annotations__, values, strict=False), **named)


def make_importable() -> None:
    """Have `qwell` mean this checkout."""
    # Without its __init__.py, which asks the installation for its version.
    package = ModuleType("qwell")
    package.__path__ = [str(ROOT / "src" / "qwell"), str(ROOT)]
    sys.modules["qwell"] = package
    if find_spec("msgspec") is None:
        msgspec: Any = ModuleType("msgspec")
        msgspec.Struct = _Struct
        msgspec.msgpack = SimpleNamespace(Encoder=lambda: None, Decoder=lambda _: None)
        sys.modules["msgspec"] = msgspec


# Not only when this is the program: the processes of the sections import it first.
make_importable()


def main() -> int:
    """The exit status: 0 if all is right, 1 if not, 2 for a usage error."""
    from qwell.bench.gpu.run import run_gpu_bench
    from qwell.bench.tune.run import run_tuning
    from qwell.bench.tune.tables import SPACES
    from qwell.kernels.errors import KernelError
    from qwell.runtime.errors import QwellError

    parser = argparse.ArgumentParser(description="Measure qwell on this GPU.")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", metavar="DIR", type=Path, help="folder that gpu.json is written to")
    task.add_argument(
        "--tune", metavar="OP", choices=SPACES, help="write an op's launch table anew"
    )
    arguments = parser.parse_args()
    try:
        if arguments.tune is None:
            return run_gpu_bench(arguments.out)
        run_tuning(arguments.tune)
        return 0
    except (QwellError, KernelError, OSError) as error:
        print(f"qwell: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
