"""`qwell pack` and the weight options from outside."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

GENERATE = ["generate", "--prompt", "Once upon a time", "--temperature", "0", "--max-tokens", "6"]
GENERATE += ["--kv-cache-tokens", "512", "--cpu-only", "--json"]


def generated(run: subprocess.CompletedProcess[str]) -> list[int]:
    assert run.returncode == 0, run.stderr
    ids: list[int] = json.loads(run.stdout)["token_ids"]
    return ids


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_packed_ahead_the_first_start_maps_the_file(
    qwell: Run, demo_model: Path, tmp_path: Path, weights: str
) -> None:
    cache = {"QWELL_CACHE": str(tmp_path)}
    pack = qwell("pack", str(demo_model), "--weights", weights, **cache)
    assert pack.returncode == 0, pack.stderr
    found = re.fullmatch(r"(.+\.safetensors) (\d+\.\d) MiB\n", pack.stdout)
    assert found is not None, pack.stdout
    path = Path(found[1])
    assert path.parent.parent == tmp_path
    assert path.stat().st_size / 2**20 == pytest.approx(float(found[2]), abs=0.05)

    arguments = [*GENERATE, "--model", str(demo_model), "--weights", weights]
    mapped = qwell(*arguments, **cache)
    assert "packing weights" not in mapped.stderr
    assert f"weights {weights}" in mapped.stderr
    assert [p for p in path.parent.iterdir() if p.suffix == ".safetensors"] == [path]
    without = qwell(*arguments, "--no-weight-cache", QWELL_CACHE=str(tmp_path / "none"))
    assert generated(mapped) == generated(without)
    assert not (tmp_path / "none").exists()

    again = qwell("pack", str(demo_model), "--weights", weights, **cache)
    assert again.stdout == pack.stdout
    assert "packing weights" not in again.stderr


def test_files_are_listed_and_removed(qwell: Run, tmp_path: Path) -> None:
    path = tmp_path / "packed" / "left.part"
    path.parent.mkdir()
    path.write_bytes(bytes(1 << 20))

    listed = qwell("pack", "--list", QWELL_CACHE=str(tmp_path))
    assert re.fullmatch(rf"{re.escape(str(path))} 1.0 MiB used \d{{4}}-\d\d-\d\d\n", listed.stdout)
    removed = qwell("pack", "--remove-unused", "0", QWELL_CACHE=str(tmp_path))
    assert removed.stdout == f"removed {path} 1.0 MiB\n"
    assert not path.exists()


@pytest.mark.parametrize("arguments", [[], ["DIR", "--list"], ["--remove-unused", "-1"]])
def test_pack_does_one_thing(qwell: Run, arguments: list[str]) -> None:
    run = qwell("pack", *arguments)
    assert (run.returncode, run.stdout) == (2, "")


def test_pack_says_why_it_cannot(qwell: Run, demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    run = qwell("pack", str(demo_model), QWELL_CACHE=str(tmp_path / "file"))
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines()[-1].startswith("qwell: error: ")
    assert "Traceback" not in run.stderr
