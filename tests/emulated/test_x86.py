"""x86-64 processors with less than this one: the kernels run only what they have."""

from __future__ import annotations

import pytest
from emulated import NATIVE_TESTS, Machine, build, need_x86_emulator

pytestmark = pytest.mark.timeout(900)

# AVX2 without AVX-512, and the first level of the architecture.
ISAS = {"Haswell": ["avx2", "portable"], "Opteron_G1": ["portable"]}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    emulator = need_x86_emulator()
    return Machine([emulator], build(tmp_path_factory.mktemp("x86")))


@pytest.mark.parametrize("cpu", ISAS)
def test_the_instruction_set_is_one_that_the_processor_has(machine: Machine, cpu: str) -> None:
    machine.assert_runs(cpu, ISAS[cpu])


@pytest.mark.parametrize(("cpu", "isa"), [("Haswell", "avx512"), ("Opteron_G1", "avx2")])
def test_a_processor_refuses_what_it_lacks(machine: Machine, cpu: str, isa: str) -> None:
    machine.assert_refuses(cpu, isa)


@pytest.mark.parametrize("cpu", ISAS)
@pytest.mark.parametrize("name", NATIVE_TESTS)
def test_native_code_passes(machine: Machine, cpu: str, name: str) -> None:
    machine.assert_passes(cpu, name)
