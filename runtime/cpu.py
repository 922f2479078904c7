"""What this process may use of the machine's CPUs. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from qwell.runtime.control_groups import ControlGroup, control_groups, read_text
from qwell.runtime.errors import EngineStartError


@dataclass(frozen=True)
class Cores:
    """Cores that this process may run on.

    Attributes:
        physical: number of them; hardware threads of one core count as one.
        quota: CPUs' worth of time that the control groups grant, None without a limit.
    """

    physical: int
    quota: float | None

    @property
    def threads(self) -> int:
        """Threads that can all run all the time.

        A thread more than the quota has time for would have all of them stopped, several times a
        second, for as long as it takes.
        """
        return self.physical if self.quota is None else max(1, min(self.physical, int(self.quota)))


def count_cores(cpus: Collection[int] | None = None, root: Path = Path("/")) -> Cores:
    """Cores among `cpus`, by default those that the affinity mask allows.

    `root` holds proc and sys; a system without them has a core for each CPU, and no quota.
    """
    if cpus is None:
        cpus = _allowed_cpus()
    topology = root / "sys/devices/system/cpu"
    siblings = {
        read_text(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus
    }
    return Cores(len(siblings), _quota(root))


def require_numpy_that_runs() -> None:
    """Refuse a numpy with instructions that this CPU lacks: torch imports it, and both would end.

    Call it before torch is imported. Wheels of numpy have needed x86-64-v2 since 2.4; torch's run
    on every x86-64.

    Raises:
        EngineStartError: the installed numpy cannot be imported here.
    """
    try:
        from qwell.kernels._native import missing_for_x86_64_v2
    except ImportError:  # a checkout that is not built, for GPUs alone
        return
    missing = missing_for_x86_64_v2()
    # A numpy that was compiled for this CPU is as good as an old one: ask a process that may die.
    if missing and _ends_badly(import_module, "numpy"):
        raise EngineStartError(
            f"this CPU lacks {', '.join(missing)}, which the installed numpy needs; "
            "install one that does without: pip install 'numpy<2.4'"
        )


def _ends_badly(function: Callable[[str], object], argument: str) -> bool:
    child = get_context("fork").Process(target=function, args=(argument,))
    child.start()
    child.join()
    return child.exitcode != 0


def _allowed_cpus() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _quota(root: Path) -> float | None:
    """The least quota of this process's control groups and of those that they are in."""
    quotas = (
        (_quota_v1 if group.version == 1 else _quota_v2)(group)
        for group in control_groups("cpu", root)
    )
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(group: ControlGroup) -> float | None:
    quota, _, period = (group.read("cpu.max") or "max").partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: ControlGroup) -> float | None:
    quota = group.read("cpu.cfs_quota_us")
    period = group.read("cpu.cfs_period_us")
    if quota is None or period is None or int(quota) <= 0:
        return None
    return int(quota) / int(period)
