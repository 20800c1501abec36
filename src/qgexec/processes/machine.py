"""How much memory the processes here may use together, and whether the kernel has ended one for want of it.

Read from ``/proc`` and the files of control groups, of version 2 and of version 1; knows no process of ours.
Everything is a function of the root folder below which those files are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["MemoryGroup", "find_memory_group", "machine_memory_bytes", "offer_to_oom_killer"]

_ROOT = Path("/")

_OOM_SCORE_STEP = 500
"""Added to the score by which the kernel picks what to kill when memory runs out; at most 1000."""


def offer_to_oom_killer() -> None:
    """Have the kernel rather pick this process than the driver; not every container lets us say so."""
    score = Path("/proc/self/oom_score_adj")
    with suppress(OSError, ValueError):
        score.write_text(str(min(1000, int(score.read_text("ascii")) + _OOM_SCORE_STEP)), "ascii")


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """The control group in which this process's memory is counted; children are born into it."""

    folder: Path
    """Folder of the group itself."""

    top: Path
    """Folder of the highest group above it that can be seen from here."""

    version: int
    """Of the interface: 1 or 2."""

    def limit_bytes(self) -> int | None:
        """Return the smallest limit of the group and those above it; `None` where there is none."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        depth = len(self.folder.relative_to(self.top).parts)
        folders = [self.folder, *self.folder.parents[:depth]]
        limits = (_read_text(folder / name).strip() for folder in folders)
        # Version 2 writes "max" for no limit, version 1 a number that is larger than any memory.
        return min((int(limit) for limit in limits if limit.isdecimal()), default=None)

    def n_oom_kills(self) -> int | None:
        """Return how many processes of the group the kernel has ended for want of memory, if it tells.

        It counts one before it sends the signal, so after a process's end its count is there.
        """
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        for line in _read_text(self.folder / name).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.isdecimal():
                return int(value)
        return None


def machine_memory_bytes(root: Path = _ROOT) -> int | None:
    """Return how much memory all processes here may use together, or `None` where the system does not tell.

    That is the machine's memory, or less where a control group of ours has a limit, as in a
    container, in a batch job, or in a user's session.

    Parameters
    ----------
    root
        Folder that holds ``proc`` and, by the mount points that are named there, ``sys/fs/cgroup``.
    """
    group = find_memory_group(root)
    amounts = (_total_bytes(root), None if group is None else group.limit_bytes())
    return min((amount for amount in amounts if amount is not None), default=None)


def find_memory_group(root: Path = _ROOT) -> MemoryGroup | None:
    """Return the control group in which this process's memory is counted; `None` where there is none.

    Parameters
    ----------
    root
        As for `machine_memory_bytes`.
    """
    # The memory controller is in one hierarchy only. One of version 1 that has it is listed with its name.
    paths: dict[int, str] = {}
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        match line.split(":", 2):
            case [_, "", path]:
                paths[2] = path
            case [_, controllers, path] if "memory" in controllers.split(","):
                paths[1] = path
    version = min(paths, default=None)
    if version is None:
        return None
    for shown_root, mount_point in _mounts(root, version):
        top = root / mount_point.lstrip("/")
        folder = top / _below(paths[version], shown_root)
        return MemoryGroup(folder if folder.is_dir() else top, top, version)
    return None


def _mounts(root: Path, version: int) -> Iterator[tuple[str, str]]:
    """Yield for each mount of the hierarchy its root group and its place; see proc_pid_mountinfo(5)."""
    for line in _read_text(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        mount_fields, kind_fields = mount.split(), kind.split()
        if len(mount_fields) < 5 or len(kind_fields) < 3:
            continue
        if version == 2:
            is_it = kind_fields[0] == "cgroup2"
        else:
            is_it = kind_fields[0] == "cgroup" and "memory" in kind_fields[2].split(",")
        if is_it:
            yield _unescape(mount_fields[3]), _unescape(mount_fields[4])


def _below(path: str, shown_root: str) -> PurePosixPath:
    """Return a group's path below what is mounted; the mount itself where the group lies outside of it."""
    group = PurePosixPath(path)
    if ".." not in group.parts and group.is_relative_to(shown_root):
        return group.relative_to(shown_root)
    return PurePosixPath()


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _total_bytes(root: Path) -> int | None:
    for line in _read_text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _read_text(path: Path) -> str:
    """Return what is in a file; nothing where it cannot be read."""
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
