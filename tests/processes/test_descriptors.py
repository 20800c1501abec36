"""`qgexec.processes.descriptors`: whether what this process has open is still there."""

from __future__ import annotations

import os

from qgexec.processes.descriptors import Sentinel


def test_closed() -> None:
    """It is noticed, also where another file has the number."""
    sentinel = Sentinel()
    assert not sentinel.is_lost()
    os.close(sentinel._fd)
    assert sentinel.is_lost()
    other = os.open("/", os.O_RDONLY)
    assert other == sentinel._fd
    assert sentinel.is_lost()
    sentinel.close()
    os.fstat(other)
    os.close(other)


def test_closed_by_its_owner() -> None:
    """Nothing is left, and once more does no harm."""
    sentinel = Sentinel()
    descriptor = sentinel._fd
    sentinel.close()
    sentinel.close()
    assert not os.path.exists(f"/proc/self/fd/{descriptor}")  # noqa: PTH110
