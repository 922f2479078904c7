"""64-bit Arm: the kernels compile, run only what the processor has; their results are right."""

from __future__ import annotations

import pytest
from emulated import NATIVE_TESTS, Machine, build, need

pytestmark = pytest.mark.timeout(900)

COMPILER = "aarch64-linux-gnu-g++"

ISAS = {
    "cortex-a72": ["neon", "portable"],
    "neoverse-n1": ["neon_dotprod", "neon", "portable"],
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    emulator = need("qemu-aarch64", "qemu-user")
    need(COMPILER, "g++-aarch64-linux-gnu")
    target = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    compiler = f"-DCMAKE_CXX_COMPILER={COMPILER}"
    programs = build(tmp_path_factory.mktemp("arm"), *target, compiler)
    return Machine([emulator, "-L", "/usr/aarch64-linux-gnu"], programs)


@pytest.mark.parametrize("cpu", ISAS)
def test_the_instruction_set_is_one_that_the_processor_has(machine: Machine, cpu: str) -> None:
    machine.assert_runs(cpu, ISAS[cpu])


def test_a_processor_without_dot_products_refuses_them(machine: Machine) -> None:
    machine.assert_refuses("cortex-a72", "neon_dotprod")


@pytest.mark.parametrize("cpu", ISAS)
@pytest.mark.parametrize("name", NATIVE_TESTS)
def test_native_code_passes(machine: Machine, cpu: str, name: str) -> None:
    machine.assert_passes(cpu, name)
