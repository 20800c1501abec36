"""Says whose word a run directory is: its owner's, and that of everybody who may write to it.

Who goes on with a run executes what its files name: tasks, an executor, the configuration of a repository.
So nobody acts on files that others may have written, unless told to. The superuser is trusted, who can do
anything anyway, and so is the group, for at many sites all files can be written by it.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qgexec.errors import UntrustedError

__all__ = ["check_trusted", "is_trusted"]

_ACTED_UPON = (
    "run.json",
    "plan.npz",
    "graph.qg",
    "butler.yaml",
    "journal",
    "journal/*.jsonl",
    "segments",
    "batch",
    "batch/*",
    "batch/*/*.json",
    "outcomes",
)
"""What is read to go on; not what a reader may leave (``snapshot.npz``), or whoever wants a run ended."""


def is_trusted(folder: Path) -> bool:
    """Return whether nobody else could have written what a run directory says."""
    return _find_fault(folder) is None


def check_trusted(folder: Path, *, trust_owner: bool = False) -> None:
    """Check that nobody else could have written what a run directory says.

    Parameters
    ----------
    folder
        The run directory; one that does not exist has no fault.
    trust_owner
        Whoever could have is trusted: nothing is checked.

    Raises
    ------
    qgexec.errors.UntrustedError
        It, or a file in it that is acted upon, is another user's, or can be written by everybody.
    """
    fault = None if trust_owner else _find_fault(folder)
    if fault is not None:
        path, why, remedy = fault
        where = shlex.quote(str(folder))
        raise UntrustedError(
            f"{path} {why}: whoever acts on this run executes what is written there",
            hint=f"{remedy}, say so: --trust-owner, as in qgexec resume {where} --trust-owner "
            f"(from Python: trust_owner=True).\nTo look at it only: qgexec status {where}",
        )


def _find_fault(folder: Path) -> tuple[Path, str, str] | None:
    for path in _paths(folder):
        with suppress(OSError):  # it is not there, or cannot be read: whoever opens it says so
            link, found = path.lstat(), path.stat()
            for owner in (link.st_uid, found.st_uid):
                if owner not in {os.geteuid(), 0}:
                    name = _name(owner)
                    return path, f"belongs to {name}", f"If you trust {name} with all that you may do"
            # Where the sticky bit is set nobody can replace what others have in a folder.
            sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
            is_plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)  # others are not read
            if is_plain and found.st_mode & stat.S_IWOTH and not sticky:
                mend = f"If nobody has changed it: chmod o-w {shlex.quote(str(path))}"
                return path, "can be written by everybody", f"{mend}\nIf you trust everybody on this machine"
    return None


def _paths(folder: Path) -> Iterator[Path]:
    yield folder
    for name in _ACTED_UPON:
        yield from sorted(folder.glob(name)) if "*" in name else [folder / name]


def _name(user: int) -> str:
    with suppress(KeyError):
        return f"user {pwd.getpwuid(user).pw_name}"
    return f"user number {user}"
