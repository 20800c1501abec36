"""Fixtures for tests of execution models."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qgexec.processes import forked
from tests.kit.batch.handsystem import HandSystem, hand_system
from tests.kit.butler.repos import MockRepository
from tests.kit.runs.benches import Ears

if TYPE_CHECKING:
    from benchmarks.endstate import EndState
    from tests.kit.batch.jobforks import Place


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[HandSystem]:
    """The model ``hand``, with a batch system that has nothing in hand."""
    with hand_system(monkeypatch) as system:
        yield system


@pytest.fixture(scope="session")
def moody(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """The small repository of `jobforks`; tests must not write to it."""
    from tests.kit.batch.jobforks import make_moody

    return make_moody(tmp_path_factory.mktemp("moody"))


@pytest.fixture
def place(moody: MockRepository, hand: HandSystem, tmp_path: Path) -> Place:
    """A copy of it, and a batch system that runs jobs in forks of this process."""
    from tests.kit.batch.jobforks import Jobs, make_place

    hand.runs = Jobs()
    return make_place(moody, hand, tmp_path)


@pytest.fixture(scope="module")
def local(moody: MockRepository, tmp_path_factory: pytest.TempPathFactory) -> EndState:
    """What an undisturbed run in this process leaves in a copy of it."""
    from tests.kit.batch.jobforks import make_place

    place = make_place(moody, HandSystem(), tmp_path_factory.mktemp("local"))
    assert place.run("inprocess") == 0
    return place.end()


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """No process that forks workers is left over."""
    yield
    forked.shut_down()


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
