"""Packed weights on disk: mapped again, never trusted, and done without where they cannot be."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from engines import start_engine
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qwell.kernels.native.pack import Packer
from qwell.kernels.native.packed import PackedWeight
from qwell.runtime.checkpoint import packed_cache
from qwell.runtime.checkpoint.packed_files import kept_files
from qwell.runtime.engine import Engine
from qwell.runtime.errors import EngineStartError

PROMPT = [5, 3, 8, 13]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWELL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    make_checkpoint(path, "qwen3", dtype=torch.bfloat16, max_shard_size="60KB")
    return path


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts matrices that are packed."""
    calls: list[int] = []
    pack = Packer.pack

    def counted(self: Packer, parts: Any, format_name: Any) -> PackedWeight:
        calls.append(len(parts))
        return pack(self, parts, format_name)

    monkeypatch.setattr(Packer, "pack", counted)
    return calls


def start(folder: Path, **options: Any) -> Engine:
    return start_engine(folder, **{"weights": "int8", "weight_cache": True, **options})


def only_file(cache: Path) -> Path:
    (path,) = cache.glob("*.safetensors")
    return path


def assert_same_weights(engine: Engine, other: Engine) -> None:
    ours, theirs = engine.model.decoder, other.model.decoder
    pairs = [(ours.embedding, theirs.embedding), (ours.head, theirs.head)]
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        pairs += [(a.attention.qkv, b.attention.qkv), (a.attention.o, b.attention.o)]
        pairs += [(a.mlp.gate_up, b.mlp.gate_up), (a.mlp.down, b.mlp.down)]
    for a, b in pairs:
        assert isinstance(a, PackedWeight)
        assert isinstance(b, PackedWeight)
        assert (a.format, a.shape) == (b.format, b.shape)
        assert torch.equal(a.data, b.data)


@pytest.mark.parametrize("weights", ["auto", "f32", "f16", "int8", "int4"])
def test_a_second_start_packs_nothing_and_serves_the_same(
    folder: Path, packed: list[int], weights: str
) -> None:
    first = start(folder, weights=weights)
    assert len(packed) == 2 + 3 * 4
    second = start(folder, weights=weights)
    assert len(packed) == 2 + 3 * 4
    without = start(folder, weights=weights, weight_cache=False)
    assert_same_weights(first, without)
    assert_same_weights(second, without)
    assert torch.equal(second.logits(PROMPT), without.logits(PROMPT))


def test_the_file_is_safetensors_of_cache_lines_and_nothing_else_is_left(
    folder: Path, cache: Path
) -> None:
    start(folder)
    with safe_open(only_file(cache), "pt") as file:
        assert len(file.keys()) == 2 + 3 * 4
    length = int.from_bytes(only_file(cache).read_bytes()[:8], "little")
    assert (8 + length) % 64 == 0
    assert [path.suffix for path in cache.iterdir() if path != only_file(cache)] == [".lock"]


def test_formats_and_checkpoints_have_files_of_their_own(
    folder: Path, cache: Path, packed: list[int], tmp_path: Path
) -> None:
    start(folder)
    start(folder, weights="int4")
    make_checkpoint(tmp_path / "other", "qwen3", seed=1, dtype=torch.bfloat16)
    start(tmp_path / "other")
    assert len(list(cache.glob("*.safetensors"))) == 3
    del packed[:]
    start(folder)
    start(folder, weights="int4")
    start(tmp_path / "other")
    assert packed == []


def test_a_copy_of_a_checkpoint_takes_the_same_file(
    folder: Path, tmp_path: Path, packed: list[int]
) -> None:
    start(folder)
    shutil.copytree(folder, tmp_path / "copy")
    del packed[:]
    start(tmp_path / "copy")
    assert packed == []


def test_another_version_replaces_the_file_and_breaks_nobody(
    folder: Path, cache: Path, packed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(folder)
    path = only_file(cache)
    before = path.read_bytes()
    del packed[:]
    monkeypatch.setattr(packed_cache, "LAYOUT_VERSION", packed_cache.LAYOUT_VERSION + 1)
    newer = start(folder)
    assert packed
    assert only_file(cache) == path
    assert path.read_bytes() != before
    assert torch.equal(engine.logits(PROMPT), newer.logits(PROMPT))


def test_a_start_marks_the_file_as_used(folder: Path, cache: Path, packed: list[int]) -> None:
    start(folder)
    os.utime(only_file(cache), (1, 1))
    del packed[:]
    start(folder)
    assert packed == []
    (file,) = kept_files(cache)
    assert file.used_s > 1
    assert file.checkpoint == str(folder)


def test_changed_weights_are_packed_again(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    start(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1
    save_file(tensors, path, {"format": "pt"})
    assert_same_weights(start(tmp_path / "model"), start(tmp_path / "model", weight_cache=False))


def test_a_file_that_was_changed_in_place_is_another_one(folder: Path, packed: list[int]) -> None:
    start(folder)
    del packed[:]
    shard = sorted(folder.glob("*.safetensors"))[0]
    status = shard.stat()
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    start(folder)
    assert packed


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def rewrite_metadata(path: Path, **changes: str) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, **changes})


DAMAGE = {
    "last byte": lambda path: flip(path, -1),
    "a byte in the middle": lambda path: flip(path, path.stat().st_size // 2),
    "header": lambda path: flip(path, 20),
    "header length": lambda path: flip(path, 6),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 64),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "too long": lambda path: os.truncate(path, path.stat().st_size + 64),
    "not safetensors": lambda path: path.write_text("weights"),
    "of another key": lambda path: rewrite_metadata(path, key="0" * 64),
    "no checksums": lambda path: rewrite_metadata(path, crc32=""),
    "checksums of other tensors": lambda path: rewrite_metadata(path, crc32="{}"),
    "checksums that are none": lambda path: rewrite_metadata(path, crc32=json.dumps({"a": [1]})),
    "tensors with no metadata": lambda path: save_file(load_file(path), path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_made_anew_with_one_line(
    folder: Path,
    cache: Path,
    packed: list[int],
    caplog: pytest.LogCaptureFixture,
    damage: Any,
) -> None:
    expected = start(folder, weight_cache=False)
    start(folder)
    path = only_file(cache)
    sound = path.read_bytes()
    damage(path)
    del packed[:]
    caplog.clear()
    engine = start(folder)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [str(path) in record.getMessage() for record in warnings] == [True]
    assert packed
    assert_same_weights(engine, expected)
    assert path.read_bytes() == sound


def test_a_file_of_other_weights_under_the_name_is_not_served(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "other", "qwen3", seed=1, dtype=torch.bfloat16)
    start(folder)
    path = only_file(cache)
    foreign = cache / "foreign"
    path.rename(foreign)
    start(tmp_path / "other")
    other = only_file(cache)
    foreign.replace(other)
    assert_same_weights(start(tmp_path / "other"), start(tmp_path / "other", weight_cache=False))


def test_no_file_is_made_without_the_cache(folder: Path, cache: Path) -> None:
    start(folder, weight_cache=False)
    assert not cache.exists()


def test_plain_weights_make_no_file(folder: Path, cache: Path) -> None:
    start(folder, weights="auto", dtype="bfloat16")
    assert not cache.exists()


def test_goes_on_without_a_folder_that_can_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QWELL_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        engine = start(folder)
    assert ["cannot be kept" in record.getMessage() for record in caplog.records] == [True]
    assert_same_weights(engine, start(folder, weight_cache=False))


def test_goes_on_where_the_disk_is_full(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qwell.runtime.checkpoint.packed_cache.os.fsync", full)
    with caplog.at_level(logging.WARNING):
        engine = start(folder)
    assert "No space left on device" in caplog.text
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert_same_weights(engine, start(folder, weight_cache=False))


def test_what_a_killed_process_left_is_written_over(folder: Path, cache: Path) -> None:
    start(folder)
    path = only_file(cache)
    sound = path.read_bytes()
    path.unlink()
    path.with_suffix(".part").write_bytes(b"x" * (len(sound) + 1000))
    start(folder)
    assert only_file(cache).read_bytes() == sound
    assert not path.with_suffix(".part").exists()


def test_weights_that_do_not_fit_leave_no_file(tmp_path: Path, cache: Path) -> None:
    make_checkpoint(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, path)
    with pytest.raises(EngineStartError, match="up_proj"):
        start(tmp_path / "model")
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
