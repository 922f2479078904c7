"""Packed weights on disk: made once for a checkpoint and a format, mapped by later starts.

A safetensors file of uint8 tensors, each a PackedWeight's data padded to whole cache lines and
named after the tensors that it was packed from. Its metadata holds the key and a CRC-32 of every
tensor, and both are checked before anything is served from it: a file that is damaged, cut short
or of something else is made anew.

The key stands for the checkpoint's content by size, time of change, header and sampled pages of
its files, not by all their bytes: reading those would cost what the cache saves. Whoever edits
weights in place and sets the time of change back must remove the cached file as well.

The name stands for the checkpoint and the format alone: what another version of qwell has packed
from them is replaced, not kept beside. Whoever has it mapped keeps it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from filelock import FileLock

from qwell.kernels.native.packed import ALIGNMENT, Format, PackedWeight, packed_bytes
from qwell.runtime.checkpoint.packed_files import LOCK, PART, WHOLE
from qwell.runtime.checkpoint.safetensors import SafetensorsFile
from qwell.runtime.checkpoint.shards import Shards
from qwell.runtime.errors import CheckpointError

log = logging.getLogger(__name__)

LAYOUT_VERSION = 1
"""A new number when packed.py's layout or int_groups.py's rounding changes."""

Matrix = tuple[str, ...]
"""Names of the tensors whose rows make a matrix."""


class PackedFile:
    """A checkpoint's matrices in one format, as a file in `folder` keeps them."""

    def __init__(
        self, folder: Path, shards: Shards, format_name: Format, formats: Mapping[Matrix, Format]
    ) -> None:
        """`format_name` is that of the layers, which the file is named after."""
        self._format = format_name
        self._formats = formats
        self._shapes = {names: shards.shape(names) for names in formats}
        layout = {"+".join(names): (formats[names], shape) for names, shape in self._shapes.items()}
        fingerprint = shards.fingerprint()
        self._key = _sha256([LAYOUT_VERSION, fingerprint, layout])
        self._checkpoint = str(shards.folder.absolute())
        self.path = folder / f"{_sha256(fingerprint)[:32]}-{format_name}{WHOLE}"

    def open(self, threads: int) -> dict[Matrix, PackedWeight] | None:
        """The matrices as views of the file, checked by so many threads; None if it is not sound.

        Of a missing file too.
        """
        try:
            return self._open(threads)
        except CheckpointError:
            return None

    def make(self, pack: Callable[..., PackedWeight], threads: int) -> dict[Matrix, PackedWeight]:
        """Write the file, unless another process has meanwhile, and open it.

        Args:
            pack: gives the packed matrix for the names of its tensors.
            threads: as for open.

        Raises OSError where the file cannot be kept, a full disk included.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(LOCK)):
            if self.path.exists():
                try:
                    return self._open(threads)
                except CheckpointError as error:
                    log.warning("packed weights are made anew: %s", error)
            log.info("packing weights as %s into %s", self._format, self.path)
            self._write(pack)
            return self._open(threads)

    def _open(self, threads: int) -> dict[Matrix, PackedWeight]:
        file = SafetensorsFile(self.path)
        sums = _parse_sums(file)
        names = ["+".join(matrix) for matrix in self._shapes]
        # A copy of a checkpoint has the file of the folder that it was made from.
        checkpoint = file.metadata.get("checkpoint", "")
        if list(sums) != names or file.head != self._head(sums, checkpoint):
            raise CheckpointError(
                f"{self.path} is not the file of these weights, of another version, or damaged"
            )
        file.read_ahead()
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(lambda name: zlib.crc32(file.stored_bytes(name)), sums)
            damaged = [name for name, crc in zip(sums, found, strict=True) if crc != sums[name]]
        if damaged:
            raise CheckpointError(f"{self.path}: the checksum of {damaged[0]} is wrong")
        # Says when it was last of use. Where nothing may be written it says when it was made.
        with contextlib.suppress(OSError):
            os.utime(self.path)
        return {names: self._view(file, names) for names in self._shapes}

    def _view(self, file: SafetensorsFile, names: Matrix) -> PackedWeight:
        rows, columns = self._shapes[names]
        size = packed_bytes(self._formats[names], rows, columns)
        data = torch.frombuffer(file.stored_bytes("+".join(names))[:size], dtype=torch.uint8)
        return PackedWeight(self._formats[names], data, rows, columns)

    def _write(self, pack: Callable[..., PackedWeight]) -> None:
        # Under the lock, so the name needs to be no one else's: what a killed process left there
        # is written over.
        temporary = self.path.with_suffix(PART)
        try:
            with temporary.open("wb") as file:
                self._write_to(file, pack)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _write_to(self, file: BinaryIO, pack: Callable[..., PackedWeight]) -> None:
        sums = dict.fromkeys(("+".join(names) for names in self._shapes), 0)
        file.write(self._head(sums, self._checkpoint))
        for names, name in zip(self._shapes, sums, strict=True):
            data = pack(*names).data.numpy().data
            padding = bytes(-len(data) % ALIGNMENT)
            file.write(data)
            file.write(padding)
            sums[name] = zlib.crc32(padding, zlib.crc32(data))
        file.seek(0)
        file.write(self._head(sums, self._checkpoint))

    def _head(self, sums: Mapping[str, int], checkpoint: str) -> bytes:
        """The head of the file; as long whatever the checksums are.

        `checkpoint` is the folder that it is made from, for whoever looks at it.
        """
        metadata = {
            "key": self._key,
            "checkpoint": checkpoint,
            "crc32": json.dumps({name: f"{crc:08x}" for name, crc in sums.items()}),
        }
        header: dict[str, object] = {"__metadata__": metadata}
        for name, (begin, end) in zip(sums, self._extents(), strict=True):
            header[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def _extents(self) -> Iterator[tuple[int, int]]:
        begin = 0
        for names, (rows, columns) in self._shapes.items():
            size = packed_bytes(self._formats[names], rows, columns)
            end = begin + size + -size % ALIGNMENT
            yield begin, end
            begin = end


def _sha256(described: object) -> str:
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _parse_sums(file: SafetensorsFile) -> dict[str, int]:
    try:
        sums = json.loads(file.metadata.get("crc32", ""))
        return {name: int(crc, 16) for name, crc in sums.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file.path}: the checksums cannot be read: {error}") from error
