"""How much memory a KV cache may take: a quarter of what the tightest limit leaves."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import make_checkpoint

from qwell.runtime.memory import host_cache_budget

MIB = 2**20
MEMINFO = {"proc/meminfo": f"MemTotal: {9000 * 1024} kB\nMemAvailable: {8000 * 1024} kB"}
V1 = "sys/fs/cgroup/memory"


def group(folder: str, limit: str, used: int, cached: int = 0) -> dict[str, str]:
    """Files of a control group of version 2, in MiB."""
    folder = f"sys/fs/cgroup/{folder}"
    return {
        f"{folder}/memory.max": limit if limit == "max" else str(int(limit) * MIB),
        f"{folder}/memory.current": str(used * MIB),
        f"{folder}/memory.stat": f"anon 1\ninactive_file {cached * MIB}\nactive_file 0\nfile 7",
    }


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 8000),
        ({"proc/self/cgroup": "0::/", **group("", "4000", 1000)}, 3000),
        ({"proc/self/cgroup": "0::/", **group("", "max", 1000)}, 8000),
        # What the system has cached of the checkpoint is no obstacle.
        ({"proc/self/cgroup": "0::/", **group("", "4000", 4000, cached=3500)}, 3500),
        # But what this process has mapped of files, such as packed weights, it needs.
        (
            {
                "proc/self/cgroup": "0::/",
                "proc/self/status": f"RssAnon: 7 kB\nRssFile: {1000 * 1024} kB",
                **group("", "4000", 4000, cached=3500),
            },
            2500,
        ),
        # A service of systemd: its own group, and a tighter one around it.
        ({"proc/self/cgroup": "0::/a/b", **group("a/b", "4000", 1000)}, 3000),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                **group("a/b", "4000", 1000),
                **group("a", "2000", 1500),
            },
            500,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/pod\n0::/",
                f"{V1}/pod/memory.limit_in_bytes": str(4000 * MIB),
                f"{V1}/pod/memory.usage_in_bytes": str(3000 * MIB),
                f"{V1}/pod/memory.stat": f"total_active_file {500 * MIB}",
                f"{V1}/memory.limit_in_bytes": "9223372036854771712",
                f"{V1}/memory.usage_in_bytes": "1",
            },
            1500,
        ),
        ({"proc/self/cgroup": "0::/", **group("", "1000", 1200)}, 0),
    ],
)
def test_a_quarter_of_what_is_left(tmp_path: Path, files: dict[str, str], left: int) -> None:
    for name, text in {**MEMINFO, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_cache_budget(tmp_path) == left * MIB // 4


def test_a_quarter_of_the_addresses_that_ulimit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = (mapped + 400 * MIB, resource.RLIM_INFINITY)
    monkeypatch.setattr("resource.getrlimit", lambda _: limits)
    assert 0 < host_cache_budget() <= 100 * MIB


PROGRAM = """
import resource, sys
from pathlib import Path
from qwell.kernels.native.runner import Runner
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import EngineStartError

mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 120 * 2**20,) * 2)
for threads in (500, 1):
    options = EngineOptions(
        model=sys.argv[1], device="cpu", weight_cache=False, threads=threads
    )
    try:
        Engine.start(options)
    except EngineStartError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_start_says_what_it_lacks(tmp_path: Path) -> None:
    """Under `ulimit -v`, set when torch's libraries are mapped."""
    # 76 MiB of weights.
    make_checkpoint(tmp_path, hidden_size=512, intermediate_size=4096)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    threads, weights = run.stdout.splitlines()
    assert threads.startswith("500 threads cannot be started")
    assert weights.startswith(f"there is not enough memory for the weights of {tmp_path}")
