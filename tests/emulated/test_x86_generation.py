"""`qwell generate` on x86-64 processors with less than this one: the same text, and a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from emulated import need_x86_emulator, run
from tiny_tokenizers import tiny_backend

pytestmark = pytest.mark.timeout(900)

ISAS = {"Haswell": "avx2", "Nehalem": "portable"}
WARNING = "this CPU lacks avx2, fma, f16c: the portable kernels are many times slower"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("checkpoint")
    backend = tiny_backend()
    make_checkpoint(folder, "qwen3", vocab_size=backend.get_vocab_size() + 5)
    backend.save(str(folder / "tokenizer.json"))
    program = [sys.executable, "-m", "qwell", "generate", "--model", str(folder)]
    # Few tokens: instruction sets may round differently, and in time to another token.
    short = ["--max-tokens", "8", "--temperature", "0", "--threads", "2", "--no-weight-cache"]
    return [*program, *short, "--prompt", "Once upon a time"]


@pytest.fixture(scope="module")
def old_numpy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a numpy whose wheel runs on every x86-64."""
    folder = tmp_path_factory.mktemp("numpy")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), "numpy<2.4"], check=True)
    return folder


@pytest.fixture(scope="module")
def text(command: list[str]) -> str:
    """What this machine generates."""
    ended = run(*command)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("cpu", ISAS)
def test_the_text_is_the_same(command: list[str], text: str, cpu: str) -> None:
    ended = run(need_x86_emulator(), "-cpu", cpu, *command)
    assert ended.returncode == 0, ended.stderr
    assert f" cores ({ISAS[cpu]})" in ended.stderr
    assert (WARNING in ended.stderr) == (ISAS[cpu] == "portable")
    assert ended.stdout == text


def test_the_first_x86_64_processors_generate_with_an_old_numpy(
    command: list[str], text: str, old_numpy: Path
) -> None:
    emulated = [need_x86_emulator(), "-cpu", "Opteron_G1", *command]
    ended = run(*emulated, PYTHONPATH=str(old_numpy))
    assert ended.returncode == 0, ended.stderr
    assert WARNING in ended.stderr
    assert ended.stdout == text


def test_a_numpy_that_would_crash_is_refused(command: list[str]) -> None:
    ended = run(need_x86_emulator(), "-cpu", "Opteron_G1", *command)
    if ended.returncode == 0:
        pytest.skip("the installed numpy runs on every x86-64")
    assert ended.returncode == 1, ended.stderr
    error = ended.stderr.splitlines()[-1]
    assert error.startswith("qwell: error: this CPU lacks ssse3, sse4_1, sse4_2, popcnt")
    assert "pip install 'numpy<2.4'" in error
