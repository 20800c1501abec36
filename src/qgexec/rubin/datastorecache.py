"""One folder on this host for local copies of datasets, which all processes of a run share.

A datastore may keep copies of what it reads from an object store, or writes there: in a folder of its own
process, unless a variable of the environment names another (`lsst.daf.butler.datastore.cache_manager`). With
that, each worker need not fetch each calibration itself.
"""

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
from qgexec.processes.births import KERNEL, Kernel

__all__ = ["VARIABLE", "shared_cache"]

VARIABLE = "DAF_BUTLER_CACHE_DIRECTORY_IF_UNSET"
"""Upstream's: a folder for the copies of all datastores that begin to keep some, and are told of no other."""


@contextmanager
def shared_cache(kernel: Kernel = KERNEL) -> Iterator[None]:
    """Give this process and those that it starts one folder for copies of datasets, and remove it at the end.

    Where the environment names one already, it is used and stays. Folders of killed processes are removed.

    Parameters
    ----------
    kernel
        Tells which process this is, and which others live.
    """
    folder = None if os.environ.get(VARIABLE) else _new_folder(kernel)
    if folder is None:
        yield
        return
    os.environ[VARIABLE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        shutil.rmtree(folder, ignore_errors=True)


def _new_folder(kernel: Kernel) -> Path | None:
    """Make a folder whose name says which process it is of; `None` where there can be none."""
    birth = kernel.birth(os.getpid())
    if birth is None:
        return None
    here = f"qgexec-cache-{_digest(birth)}-"
    with suppress(OSError):
        _remove_orphaned(Path(tempfile.gettempdir()), here, birth, kernel)
        return Path(tempfile.mkdtemp(prefix=f"{here}{os.getpid()}-{birth.start_ticks}-"))
    return None


def _digest(birth: Birth) -> str:
    """Return a short name of a boot and its namespaces: outside of them a number names no process."""
    return hashlib.sha256(f"{birth.boot_id} {birth.namespaces}".encode()).hexdigest()[:12]


def _remove_orphaned(parent: Path, here: str, birth: Birth, kernel: Kernel) -> None:
    """Remove this user's folders of processes that are no more."""
    for folder in parent.glob(f"{here}*"):
        with suppress(OSError):
            owner = re.match(r"(\d+)-(\d+)-", folder.name.removeprefix(here))
            if owner is None or folder.lstat().st_uid != os.getuid():
                continue
            of = Birth(birth.boot_id, birth.namespaces, int(owner[2]))
            if kernel.lives(int(owner[1]), of) is False:
                shutil.rmtree(folder, ignore_errors=True)
