"""A temporary folder of this process; what a killed process left of its own is removed by the next one."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qgexec.events import Birth
from qgexec.processes.births import KERNEL

__all__ = ["own_folder"]


@contextmanager
def own_folder(name: str) -> Iterator[Path]:
    """Make a folder that nobody else may read, and remove it at the end of the block.

    Parameters
    ----------
    name
        What its name begins with. Folders of this user with this name whose processes are gone are removed.

    Raises
    ------
    OSError
        It cannot be made.
    """
    birth = KERNEL.birth(os.getpid())
    prefix = f"{name}-"
    if birth is not None:  # otherwise nobody can tell later on whether its process lives
        here = f"{prefix}{_digest(birth)}-"
        _remove_orphaned(Path(tempfile.gettempdir()), here, birth)
        prefix = f"{here}{os.getpid()}-{birth.start_ticks}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _digest(birth: Birth) -> str:
    """Return a short name of a boot and its namespaces: outside of them a number names no process."""
    return hashlib.sha256(f"{birth.boot_id} {birth.namespaces}".encode()).hexdigest()[:12]


def _remove_orphaned(parent: Path, here: str, birth: Birth) -> None:
    """Remove this user's folders of processes that are no more."""
    with suppress(OSError):
        for folder in parent.glob(f"{here}*"):
            with suppress(OSError):
                owner = re.match(r"(\d+)-(\d+)-", folder.name.removeprefix(here))
                if owner is None or folder.lstat().st_uid != os.getuid():
                    continue
                of = Birth(birth.boot_id, birth.namespaces, int(owner[2]))
                if KERNEL.lives(int(owner[1]), of) is False:
                    shutil.rmtree(folder, ignore_errors=True)
