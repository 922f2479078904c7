"""Our reader against the format's own library, on sound files and on damaged ones."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qwell.runtime.checkpoint.safetensors import MAX_TENSORS, SafetensorsFile
from qwell.runtime.errors import CheckpointError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def write(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@settings(max_examples=30)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=5, max_size=5),
)
def test_tensors_are_read_bit_for_bit(shapes: list[list[int]], dtypes: list[torch.dtype]) -> None:
    tensors = {
        f"t{i}": torch.randn(shape).to(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
        file = SafetensorsFile(path)
        assert set(file.tensors) == set(tensors)
        for name, tensor in tensors.items():
            copied = torch.empty_like(tensor)
            file.copy_to(name, copied)
            assert torch.equal(copied, tensor)
            read = file.tensor(name)
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor)


def test_data_that_is_not_aligned_is_still_read(tmp_path: Path) -> None:
    values = torch.arange(3, dtype=torch.float32)
    header = json.dumps({"x": entry([3], 0, 12)}).encode()
    header += b" " * (-(len(header) + 8) % 4 + 1)
    path = write(tmp_path / "x.safetensors", header, values.numpy().tobytes())
    assert torch.equal(SafetensorsFile(path).tensor("x"), values)


ATTACKS: dict[str, tuple[Any, bytes, int | None]] = {
    "empty header length": (b"", b"", 0),
    "header length beyond the file": ({}, b"", 1 << 20),
    "header length of 2^63": ({}, b"", 1 << 63),
    "not JSON": (b"{", b"", None),
    "not UTF-8": (b'{"\xff": 1}', b"", None),
    "not an object": ([], b"", None),
    "deeply nested": (b"[" * 200_000, b"", None),
    "an integer of 5000 digits": (b'{"x": ' + b"9" * 5000 + b"}", b"", None),
    "the same name twice": (
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
        None,
    ),
    "entry without shape": ({"x": {"dtype": "F32", "data_offsets": [0, 4]}}, b"\0" * 4, None),
    "unknown dtype": ({"x": entry([1], 0, 4, "F33")}, b"\0" * 4, None),
    "dtype is a list": ({"x": entry([1], 0, 4, ["F32"])}, b"\0" * 4, None),  # type: ignore[arg-type]
    "negative size": ({"x": entry([-1], 0, 4)}, b"\0" * 4, None),
    "size is a bool": ({"x": entry([True], 0, 4)}, b"\0" * 4, None),
    "shape product overflows": ({"x": entry([1 << 62, 4], 0, 4)}, b"\0" * 4, None),
    "offsets reversed": ({"x": entry([1], 4, 0)}, b"\0" * 4, None),
    "offsets negative": ({"x": entry([1], -4, 0)}, b"\0" * 4, None),
    "offsets beyond the file": ({"x": entry([1], 4, 8)}, b"\0" * 4, None),
    "bytes do not fit the shape": ({"x": entry([2], 0, 4)}, b"\0" * 4, None),
    "hole between tensors": (
        {"x": entry([1], 0, 4), "y": entry([1], 8, 12)},
        b"\0" * 12,
        None,
    ),
    "overlapping tensors": (
        {"x": entry([2], 0, 8), "y": entry([2], 4, 12)},
        b"\0" * 12,
        None,
    ),
    "data cut short": ({"x": entry([2], 0, 8)}, b"\0" * 7, None),
    "data left over": ({"x": entry([2], 0, 8)}, b"\0" * 9, None),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    header, data, length = ATTACKS[name]
    path = write(tmp_path / "bad.safetensors", header, data, length=length)
    with pytest.raises(CheckpointError) as error:
        SafetensorsFile(path)
    assert str(path) in str(error.value)


def test_a_header_as_large_as_its_file_allows_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # a hole: it takes no room

    with pytest.raises(CheckpointError, match="at most 100000000 are allowed"):
        SafetensorsFile(path)


def test_a_header_of_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_TENSORS <= 200_000
    monkeypatch.setattr("qwell.runtime.checkpoint.safetensors.MAX_TENSORS", 100)
    header = {f"x{number}": entry([0], 0, 0) for number in range(101)}

    with pytest.raises(CheckpointError, match="101 tensors; at most 100 are allowed"):
        SafetensorsFile(write(tmp_path / "many.safetensors", header))


def test_a_name_twice_among_very_many_takes_no_time_to_tell(tmp_path: Path) -> None:
    names = [f"x{number}" for number in range(200_000)]
    header = ",".join(f'"{name}":0' for name in [*names, names[-1]]).encode()

    with pytest.raises(CheckpointError, match="'x199999' appears twice"):
        SafetensorsFile(write(tmp_path / "twice.safetensors", b"{" + header + b"}"))


@pytest.mark.parametrize("content", [b"", b"\0" * 7])
def test_a_file_shorter_than_its_first_field(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"short\.safetensors"):
        SafetensorsFile(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        SafetensorsFile(tmp_path / "absent.safetensors")


_sound = json.dumps({"x": entry([2], 0, 8), "y": entry([1], 8, 12)}).encode()


@settings(max_examples=300)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 8 + len(_sound) + 11), st.integers(0, 255)), min_size=1, max_size=3
    )
)
def test_we_accept_nothing_that_the_formats_own_library_refuses(
    edits: list[tuple[int, int]],
) -> None:
    content = bytearray(len(_sound).to_bytes(8, "little") + _sound + b"\0" * 12)
    for position, value in edits:
        content[position] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.safetensors"
        path.write_bytes(content)
        try:
            ours = SafetensorsFile(path).tensors
        except CheckpointError:
            return
        try:
            with safe_open(path, framework="pt") as theirs:
                names = set(theirs.keys())
        except SafetensorError as error:
            pytest.fail(f"we read what the library refuses: {error}")
        assert set(ours) == names
