"""One folder on this host for local copies of datasets, which all processes of a run share.

A datastore may keep copies of what it reads from an object store, or writes there: in a folder of its own
process, unless a variable of the environment names another (`lsst.daf.butler.datastore.cache_manager`). With
that, each worker need not fetch each calibration itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from qgexec.processes.ownfolder import own_folder

__all__ = ["VARIABLE", "shared_cache"]

VARIABLE = "DAF_BUTLER_CACHE_DIRECTORY_IF_UNSET"
"""Upstream's: a folder for the copies of all datastores that begin to keep some, and are told of no other."""


@contextmanager
def shared_cache() -> Iterator[None]:
    """Give this process and those that it starts one folder for copies of datasets, and remove it at the end.

    Where the environment names one already, it is used and stays. Folders of killed processes are removed.
    """
    with ExitStack() as stack:
        if not os.environ.get(VARIABLE):
            try:
                os.environ[VARIABLE] = str(stack.enter_context(own_folder("qgexec-cache")))
            except OSError:  # each process has one of its own then, as upstream has it
                pass
            else:
                stack.callback(os.environ.pop, VARIABLE, None)
        yield
