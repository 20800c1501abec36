"""Tests of `qgexec.processes.treewatch`: several processes together use more than the largest of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from qgexec.processes.proctree import look_at
from qgexec.processes.treewatch import TreeWatch

N_BYTES = 60 << 20
NEVER_S = 3600.0
TAKING = f"block = b'x' * {N_BYTES}; print(flush=True); input()"


@contextmanager
def children(number: int) -> Iterator[None]:
    """Start so many processes that each take some memory."""
    with ExitStack() as stack:
        for _ in range(number):
            child = subprocess.Popen(
                [sys.executable, "-S", "-c", TAKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            assert child.stdout is not None
            child.stdout.readline()
        yield


def test_all_processes_together() -> None:
    """Also after they are gone; and nothing where none was started, or nothing is measured."""
    watch = TreeWatch(NEVER_S)
    watch.look()
    watch.begin()
    with children(3):
        watch.look()
    watch.look()
    own = look_at(os.getpid())
    assert own is not None
    assert 3 * N_BYTES < watch.end() < own.used_bytes + 12 * N_BYTES
    assert watch.end() == 0
    watch.begin()
    watch.look()
    assert watch.end() == 0
    watch.close()
    watch.close()


def test_what_was_there_before_does_not_count() -> None:
    """It belongs to nobody who is measured now."""
    watch = TreeWatch(NEVER_S)
    with children(1):
        watch.begin()
        with children(1):
            pass
        watch.look()
        assert watch.end() == 0
    watch.close()


def test_it_looks_by_itself() -> None:
    """As long as something is measured."""
    watch = TreeWatch(0.001)
    watch.begin()
    with children(1):
        seen = 0
        while not seen:
            seen = watch.end()
            watch.begin()
    assert seen > N_BYTES
    watch.close()
