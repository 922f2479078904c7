"""The GGUF reader against files that the `gguf` package writes, and against damaged ones."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st

from qwell.runtime.checkpoint.gguf import GgufFile
from qwell.runtime.errors import CheckpointError


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "plain": generator.standard_normal((3, 5), np.float32),
        "eight": generator.standard_normal((2, 64), np.float32),
        "four": generator.standard_normal((4, 96), np.float32),
    }


TYPES = {
    "plain": gguf.GGMLQuantizationType.F32,
    "eight": gguf.GGMLQuantizationType.Q8_0,
    "four": gguf.GGMLQuantizationType.Q4_1,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray]) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_int64("a.big", -(2**40))
    writer.add_float32("a.small", 1e-5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "naïve ☃")
    writer.add_array("a.words", ["one", "", "drei"])
    writer.add_array("a.numbers", [1, -2, 3])
    for name, array in weights.items():
        data = quantize(array, TYPES[name])
        writer.add_tensor(name, data, raw_dtype=TYPES[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_metadata_reads_as_written(written: bytes) -> None:
    file = GgufFile(written, "small.gguf")
    assert file.need("a.count", int) == 7
    assert file.need("a.big", int) == -(2**40)
    assert file.need("a.small", float) == pytest.approx(1e-5)
    assert file.metadata["a.flag"] is True
    assert file.need("a.text", str) == "naïve ☃"
    assert file.need_list("a.words", str) == ["one", "", "drei"]
    assert file.need_list("a.numbers", int) == [1, -2, 3]
    assert file.get("a.absent", int, 5) == 5


@pytest.mark.parametrize("name", TYPES)
def test_tensors_equal_the_gguf_packages_reading(
    written: bytes, weights: dict[str, np.ndarray], name: str
) -> None:
    array = GgufFile(written, "small.gguf").tensor(name)
    expected = dequantize(quantize(weights[name], TYPES[name]), TYPES[name])
    assert array.dtype == np.float32
    assert array.shape == weights[name].shape
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("key", "kind"), [("a.text", int), ("a.count", str), ("a.flag", int), ("a.words", str)]
)
def test_wrong_metadata_type_names_key_and_type(written: bytes, key: str, kind: type) -> None:
    with pytest.raises(CheckpointError, match=rf"small\.gguf.*'{key}' must hold {kind.__name__}"):
        GgufFile(written, "small.gguf").need(key, kind)


def test_missing_key_and_tensor_are_named(written: bytes) -> None:
    file = GgufFile(written, "small.gguf")
    with pytest.raises(CheckpointError, match=r"'a\.absent' is missing"):
        file.need("a.absent", int)
    with pytest.raises(CheckpointError, match="no tensor 'absent'"):
        file.tensor("absent")
    with pytest.raises(CheckpointError, match="array of int"):
        file.need_list("a.words", int)


def header(*, version: int = 3, tensors: int = 0, pairs: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def tensor_info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    raw = name.encode()
    layout = f"<Q{len(raw)}sI{len(shape)}QIQ"
    return struct.pack(layout, len(raw), raw, len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short"),
        (b"PK\3\4" + bytes(40), "not a GGUF file"),
        (header(version=2), "version 2; qwell reads version 3"),
        (header(pairs=2**60), "metadata keys do not fit"),
        (header(tensors=2**60), "tensors do not fit"),
        (header(tensors=1) + tensor_info("x", (2**40,), 0, 0), "'x' needs bytes"),
        (header(tensors=1) + tensor_info("x", (1,), 0, 2**63), "'x' needs bytes"),
        (header(tensors=1) + tensor_info("x", (1,), 2, 0), r"type 2; qwell reads 0 \(F32\)"),
        (header(tensors=1) + tensor_info("x", (48,), 8, 0), "48 values, not a multiple of 32"),
        (header(tensors=1) + tensor_info("x", (1,) * 5, 0, 0), "5 dimensions"),
        (header(tensors=2) + tensor_info("x", (0,), 0, 0) * 2 + bytes(64), "'x' occurs twice"),
        (header(pairs=1) + struct.pack("<Q1sIQ", 1, b"k", 8, 2**62), "cut short"),
        (header(pairs=1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 2**62), "array items do not fit"),
        (header(pairs=1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 0), "type 9"),
        (header(pairs=1) + struct.pack("<Q1sII", 1, b"k", 99, 0), "type 99"),
        (header(pairs=1) + struct.pack("<Q1sII", 1, b"\xff", 4, 0), "not UTF-8"),
        (
            header(pairs=1) + struct.pack("<Q17sII", 17, b"general.alignment", 4, 0),
            "alignment is 0",
        ),
    ],
)
def test_damage_is_named(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        GgufFile(data, "bad.gguf")


@given(cut=st.integers(0, 10_000))
def test_a_file_cut_anywhere_is_refused(written: bytes, cut: int) -> None:
    with pytest.raises(CheckpointError):
        GgufFile(written[: cut % (len(written) - 32)], "cut.gguf")


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_reads_or_is_refused(written: bytes, position: int, value: int) -> None:
    damaged = bytearray(written)
    damaged[position % len(written)] = value
    try:
        file = GgufFile(bytes(damaged), "changed.gguf")
    except CheckpointError:
        return
    with np.errstate(all="ignore"):
        for name in file.tensor_names:
            assert file.tensor(name).dtype == np.float32
