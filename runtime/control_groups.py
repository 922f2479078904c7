"""The control groups of this process, whose limits may be tighter than the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class ControlGroup:
    """A group's folder, and the version (1 or 2) that tells what the files in it are called."""

    version: int
    folder: Path

    def read(self, name: str) -> str | None:
        """A file's text without blanks around it, None where there is no such file."""
        return read_text(self.folder / name)


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """Those of this process that limit "cpu" or "memory", and those that they are in.

    `root` holds proc and sys.
    """
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, mount = 2, root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            version, mount = 1, root / "sys/fs/cgroup" / controller
        else:
            continue
        # In a container the path may be that of the host: only its root is there then.
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield ControlGroup(version, mount / folder)


def read_text(path: Path) -> str | None:
    """A file's text without blanks around it, None where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
