"""Fixtures for tests of execution models."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from benches import Ears

from qgexec.processes import forked


@pytest.fixture
def ears(tmp_path: Path) -> Iterator[Ears]:
    """Hears what benches in this folder say."""
    ears = Ears(tmp_path)
    yield ears
    ears.close()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No process and no file descriptor is left over when the test ends."""
    forked.shut_down()
    before = _n_open_files(), _children()
    yield
    forked.shut_down()
    assert (_n_open_files(), _children()) == before


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def _n_open_files() -> int:
    gc.collect()  # what earlier tests have left in cycles may hold files, and be collected at any moment
    return len(list(Path("/proc/self/fd").iterdir()))
