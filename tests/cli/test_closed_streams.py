"""Commands that are started without standard streams, as cron, systemd and ``2>&-`` may do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qgexec.standardstreams import open_standard_streams
from tests.kit.butler.repos import MockRepository
from tests.kit.commands.qgexec import Command, Moods, report_of
from tests.kit.processes import warm
from tests.kit.processes.forks import start_fork

CLOSED = ((2,), (0, 1, 2), *(pytest.param(one, marks=pytest.mark.thorough) for one in ((0,), (1,))))


@pytest.fixture
def moods(template: MockRepository) -> Iterator[Moods]:
    made = Moods(template.root.parents[1])
    yield made
    made.close()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("closed", CLOSED)
def test_run(
    closed: tuple[int, ...],
    processes: int,
    repository: MockRepository,
    folder: Path,
    start: Callable[..., Command],
    moods: Moods,
) -> None:
    """It runs as any other, and what it has to say of a failure gets into none of its files."""
    moods.set({"calibrate 1,2": "raise"})
    given = ("-b", repository.root, "-g", repository.graph, "--register-dataset-types")
    options = ("-j", processes, "--run-dir", folder / "run", "--summary", folder / "summary.json")
    assert start("run", *given, *options, closed=closed).finish().code == 1
    assert report_of(folder / "run")["total"]["failed"] == 1
    assert (folder / "summary.json").read_text().startswith("{")
    for path in (folder / "run").rglob("*.jsonl"):
        assert all(line.startswith(b"{") and line.endswith(b"}\n") for line in path.open("rb"))


def test_reading(tmp_path: Path) -> None:
    """What is wrong is told by the exit code where nothing can be said."""
    words = [sys.executable, "-m", "qgexec", "report", str(tmp_path)]
    process = warm.Popen(words, closed=(0, 1, 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait(60) == 2


@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_all_are_open(closed: tuple[int, ...]) -> None:
    """Python has its streams, what is opened next has none of their numbers, and children inherit them."""

    def look() -> int:
        for descriptor in closed:
            os.close(descriptor)
        if closed:
            sys.stdin = sys.stdout = sys.stderr = None
        open_standard_streams()
        print("said", flush=True)  # noqa: T201
        print("said", file=sys.stderr, flush=True)  # noqa: T201
        assert sys.stdin is not None
        assert all(map(os.get_inheritable, range(3)))
        return int(os.open("/", os.O_RDONLY) < 3)

    assert start_fork(look).finish() == 0
