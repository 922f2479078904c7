"""A checkpoint's tensors by name, from one safetensors file or from indexed shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from qwell.runtime.checkpoint.json_object import read_json_object
from qwell.runtime.checkpoint.safetensors import TORCH_DTYPES, SafetensorsFile
from qwell.runtime.errors import CheckpointError, UnsupportedModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

SAMPLED_ROWS = 64


class Shards:
    """Every tensor of the checkpoint in `folder`; each name lives in exactly one file."""

    def __init__(self, folder: Path) -> None:
        """Open and validate all files.

        Raises:
            CheckpointError: no weights, a damaged file, a tensor that the index and the shards
                do not agree on, a shard name that leaves the folder.
        """
        self.folder = folder
        self._owner: dict[str, SafetensorsFile] = {}
        if (folder / SINGLE).exists():
            file = SafetensorsFile(folder / SINGLE)
            self._owner = dict.fromkeys(file.tensors, file)
        elif (folder / INDEX).exists():
            self._open_indexed(folder / INDEX)
        else:
            raise CheckpointError(
                f"{folder} holds neither {SINGLE} nor {INDEX}; qwell loads safetensors only"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._owner

    def verify(self, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> None:
        """Check names, shapes and dtypes before anything is loaded.

        Args:
            expected: shape of every tensor that the model needs, by name.
            ignored: names that may be there without being used.

        Raises:
            CheckpointError: missing, unexpected or wrongly shaped tensors, all of them named.
            UnsupportedModelError: a dtype that is not loaded.
        """
        missing = [name for name in expected if name not in self._owner]
        unexpected = sorted(set(self._owner) - set(expected) - set(ignored))
        shapes = {name: file.tensors[name].shape for name, file in self._owner.items()}
        misshapen = [
            f"{name} is {list(shapes[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ]
        faults = [
            f"{kind} tensors: {_some(names)}"
            for kind, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("wrongly shaped", misshapen),
            )
            if names
        ]
        if faults:
            raise CheckpointError(
                f"{self.folder} does not match its config.json; " + "; ".join(faults)
            )
        foreign = [
            f"{name} is {self._owner[name].tensors[name].dtype}"
            for name in expected
            if self._owner[name].tensors[name].dtype not in TORCH_DTYPES
        ]
        if foreign:
            raise UnsupportedModelError(
                f"{self.folder}: supported dtypes are {', '.join(TORCH_DTYPES)}; {_some(foreign)}"
            )

    def looks_like(self, name: str, other: str) -> bool:
        """Whether two stored tensors have the same shape and, in a sample of their rows, values.

        All rows are not compared: that would take as long as reading both.
        """
        if self._owner[name].tensors[name].shape != self._owner[other].tensors[other].shape:
            return False
        tensor, others = self.tensor(name), self.tensor(other)
        step = max(1, len(tensor) // SAMPLED_ROWS)
        return torch.equal(tensor[::step].float(), others[::step].float())

    def load(self, names: Sequence[str], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The named tensors, concatenated along their first dimension.

        One tensor that is already as wanted stays a view of the file; others are copied in
        small pieces, so that the peak is little more than the weights.
        """
        if len(names) == 1 and device.type == "cpu":
            tensor = self._owner[names[0]].tensor(names[0])
            if tensor.dtype == dtype:
                return tensor
        shapes = [self._owner[name].tensors[name].shape for name in names]
        rows = [shape[0] for shape in shapes]
        result = torch.empty((sum(rows), *shapes[0][1:]), dtype=dtype, device=device)
        for name, part in zip(names, result.split(rows), strict=True):
            self._owner[name].copy_to(name, part)
        return result

    def shape(self, names: Sequence[str]) -> tuple[int, int]:
        """Rows and columns of matrices, one below the other."""
        shapes = [self._owner[name].tensors[name].shape for name in names]
        return sum(shape[0] for shape in shapes), shapes[0][1]

    def fingerprint(self) -> list[str]:
        """Stands for the content of all files: see SafetensorsFile.fingerprint."""
        return [file.fingerprint() for file in self._files()]

    def read_ahead(self) -> None:
        """Have the system read all files from disk while the model is built."""
        for file in self._files():
            file.read_ahead()

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it is stored: a view of its file, of pages that are read when touched."""
        return self._owner[name].tensor(name)

    def drop_pages(self, name: str) -> None:
        """Give back what memory a tensor's file takes; it is read again when next touched."""
        self._owner[name].drop_pages()

    def _files(self) -> list[SafetensorsFile]:
        return sorted(set(self._owner.values()), key=lambda file: file.path.name)

    def _open_indexed(self, path: Path) -> None:
        weight_map = read_json_object(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path} must hold a non-empty object weight_map")
        files = {
            shard: SafetensorsFile(_shard_path(path, shard))
            for shard in sorted({_shard_name(path, shard) for shard in weight_map.values()})
        }
        for shard, file in files.items():
            for name in file.tensors:
                if name in self._owner:
                    raise CheckpointError(
                        f"{path}: tensor {name!r} is in both {self._owner[name].path.name} "
                        f"and {shard}"
                    )
                if weight_map.get(name) != shard:
                    raise CheckpointError(
                        f"{path}: {shard} holds the tensor {name!r}, which the index places in "
                        f"{weight_map.get(name, 'no file')}"
                    )
                self._owner[name] = file
        absent = [f"{name} ({weight_map[name]})" for name in weight_map if name not in self._owner]
        if absent:
            raise CheckpointError(f"{path} names tensors that their shards lack: {_some(absent)}")


def _shard_name(index: Path, shard: Any) -> str:
    """A shard is a plain file name: nothing an index says may reach outside the folder."""
    plain = isinstance(shard, str) and PurePosixPath(shard).name == shard and "\\" not in shard
    if not plain or not shard.endswith(".safetensors") or "\0" in shard:
        raise CheckpointError(
            f"{index}: the shard name {shard!r} is not allowed; it must be the plain name of a "
            ".safetensors file in the same folder"
        )
    name: str = shard
    return name


def _shard_path(index: Path, shard: str) -> Path:
    """Follow links only within the folder, or into the blobs of the hub cache it is part of."""
    folder = index.parent.resolve()
    target = (folder / shard).resolve()
    homes = [folder]
    if folder.parent.name == "snapshots":
        homes.append(folder.parent.parent / "blobs")
    if target.parent not in homes:
        raise CheckpointError(f"{index}: the shard {shard!r} links to {target}, outside the folder")
    return folder / shard


def _some(names: Sequence[str], limit: int = 8) -> str:
    """The first few of a list, and how many more there are."""
    listed = ", ".join(itertools.islice(names, limit))
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
