"""How many threads run by default, what they do while idle, and what libraries are told."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from engines import greedy, start_engine

from qwell.cli.model_options import engine_options
from qwell.cli.parser import parse_arguments
from qwell.kernels import _native
from qwell.kernels.native import runner as native_runner
from qwell.runtime import cpu, loader
from qwell.runtime.cpu import Cores, count_cores, require_numpy_that_runs
from qwell.runtime.errors import EngineStartError
from qwell.runtime.llm import LLM


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def siblings(groups: dict[int, str]) -> dict[str, str]:
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": group
        for cpu, group in groups.items()
    }


SMT = siblings({0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"})


@pytest.mark.parametrize(
    ("cpus", "cores"), [(range(8), 4), ([0, 4], 1), ([0, 5, 6], 3), ([3], 1), ([8, 9], 2)]
)
def test_hardware_threads_of_a_core_count_once(tmp_path: Path, cpus: list[int], cores: int) -> None:
    # CPUs 8 and 9 have no entry.
    assert count_cores(cpus, tree(tmp_path, SMT)) == Cores(cores, None)


def test_a_system_without_proc_and_sys_has_a_core_for_each_cpu(tmp_path: Path) -> None:
    assert count_cores(range(6), tmp_path) == Cores(6, None)


V1 = {"proc/self/cgroup": "5:devices:/\n4:cpuacct,cpu:/pod/engine\n2:cpuset:/\n0::/"}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        # The path of the host, where a container sees its own group as the root.
        ({"proc/self/cgroup": "0::/x/y", "sys/fs/cgroup/cpu.max": "100000 50000"}, 2.0),
        # The least of a group's own and those of the groups around it.
        (
            {
                "proc/self/cgroup": "0::/x/y",
                "sys/fs/cgroup/x/cpu.max": "300000 100000",
                "sys/fs/cgroup/x/y/cpu.max": "max 100000",
            },
            3.0,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu/pod/engine/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu/pod/engine/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            1.5,
        ),
        ({**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, None),
    ],
)
def test_the_quota_of_the_control_group(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert count_cores([0, 1], tree(tmp_path, files)).quota == quota


@pytest.mark.parametrize(
    ("physical", "quota", "threads"),
    [(4, None, 4), (4, 2.0, 2), (4, 2.9, 2), (4, 0.5, 1), (2, 8.0, 2)],
)
def test_no_more_threads_than_there_is_time_for(
    physical: int, quota: float | None, threads: int
) -> None:
    assert Cores(physical, quota).threads == threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity mask")
def test_the_affinity_mask_of_this_process_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(before)])
    try:
        assert count_cores().threads == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, "qwen3")
    return path


def test_the_log_says_how_many_threads_of_which_kind(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="qwell"):
        engine = start_engine(folder, threads=3)
    assert engine.model.runner is not None
    assert engine.model.runner.threads == 3
    best = next(iter(native_runner.ISAS))
    assert f"threads: 3 of {count_cores().physical} cores ({best})" in caplog.messages


def test_the_instruction_set_of_the_kernels_can_be_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert (
        engine_options(parse_arguments(["serve", "--isa", "portable"]), "model").isa == "portable"
    )
    with caplog.at_level(logging.INFO, logger="qwell"):
        portable = start_engine(folder, threads=1, isa="portable")
    assert any(message.endswith("cores (portable)") for message in caplog.messages)
    best = start_engine(folder, threads=1)
    # Both compute the same, in another order.
    ids = range(20)
    torch.testing.assert_close(portable.logits(ids), best.logits(ids), rtol=1e-3, atol=1e-3)
    with pytest.raises(EngineStartError, match=r"isa is 'mmx'; this machine runs .*portable"):
        start_engine(folder, isa="mmx")


def test_threads_are_an_option_of_the_command_line_and_of_llm(folder: Path) -> None:
    arguments = parse_arguments(["serve", "--threads", "3"])
    assert engine_options(arguments, "model").threads == 3
    assert engine_options(parse_arguments(["serve"]), "model").threads is None
    with pytest.raises(EngineStartError, match="threads is -2"):
        LLM(folder, threads=-2)


def test_no_threads_are_refused(folder: Path) -> None:
    with pytest.raises(EngineStartError, match="threads is 0; it must be at least 1"):
        start_engine(folder, threads=0)


def test_a_cpu_is_told_what_it_lacks_for_avx2(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "missing_for_avx2", lambda: ["avx2", "fma"])
    loader.start_runner(1)
    assert any("lacks avx2, fma" in message for message in caplog.messages)
    caplog.clear()
    monkeypatch.setattr(_native, "missing_for_avx2", list)
    loader.start_runner(1)
    assert not any("lacks" in message for message in caplog.messages)


def test_a_numpy_that_needs_more_than_the_cpu_has_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_native, "missing_for_x86_64_v2", lambda: ["ssse3"])
    require_numpy_that_runs()  # an old one, or one compiled for this CPU
    monkeypatch.setattr(cpu, "import_module", lambda _: os._exit(1))
    with pytest.raises(EngineStartError, match="lacks ssse3, which the installed numpy needs"):
        require_numpy_that_runs()
    monkeypatch.setattr(_native, "missing_for_x86_64_v2", list)
    require_numpy_that_runs()


def test_an_idle_engine_takes_no_cpu_time(folder: Path) -> None:
    engine = start_engine(folder, threads=4)
    greedy(engine, [5, 3, 8], 8)
    time.sleep(0.2)  # torch's own threads may spin until they sleep
    before = time.process_time()
    time.sleep(2.0)
    assert time.process_time() - before < 0.02 * 2.0


_REPORT = """
from qwell.runtime.threads import restrain_thread_pools
restrain_thread_pools()
import os
for name in ("OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM", "OPENBLAS_NUM_THREADS"):
    print(os.environ[name])
"""


def test_libraries_start_no_threads_unless_the_user_wants_them() -> None:
    def settings(**own: str) -> list[str]:
        run = subprocess.run(
            [sys.executable, "-c", _REPORT],
            env={"PATH": os.environ["PATH"], **own},
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout.split()

    assert settings() == ["passive", "false", "1"]
    assert settings(TOKENIZERS_PARALLELISM="true") == ["passive", "true", "1"]


def test_torch_computes_with_as_many_threads_as_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        loader.start_runner(3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
