"""`qgexec.models.endings`: what is said of an attempt whose worker has died, and which files stay."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from qgexec.events import AttemptLost, AttemptOutOfMemory, AttemptReturned, AttemptTimedOut
from qgexec.models.endings import Surroundings, epitaph, keep_papers
from qgexec.models.workers import OverMemory, OverTime, Sentence, Unresponsive, Worker
from qgexec.processes.forked import Process
from qgexec.scheduling.policy import Cause, cause_of
from tests.kit.runs.benches import attempts

GB = 10**9
FIRST, SECOND = attempts("isr", "isr")
FULL = Surroundings(memory_bytes=10 * GB, all_used_bytes=9 * GB)


def dead(
    exit_code: int | None = -9, sentence: Sentence | None = None, used_bytes: int | None = None
) -> Worker:
    """Return a worker that has died while it ran the first attempt."""
    process = SimpleNamespace(pid=55, name="worker-0003", exit_code=exit_code, failure="")
    worker = Worker(3, cast("Process", process), None, sentence=sentence, doomed=sentence is not None)
    worker.watched, worker.used_bytes = FIRST, used_bytes
    return worker


def lost(worker: Worker, around: Surroundings = FULL) -> AttemptLost:
    event = epitaph(worker, FIRST, around)
    assert isinstance(event, AttemptLost)
    assert (event.index, event.attempt, event.worker) == (0, 1, 3)
    return event


def test_killed_by_the_kernel() -> None:
    """The kernel's kill is out of memory, with what was used last and what there is."""
    around = Surroundings(killed_by_kernel=True, memory_bytes=10 * GB)
    event = epitaph(dead(used_bytes=7 * GB), FIRST, around)
    assert isinstance(event, AttemptOutOfMemory)
    assert (event.used_bytes, event.limit_bytes, event.by_kernel, event.worker) == (7 * GB, 10 * GB, True, 3)
    assert cause_of(event) is Cause.OUT_OF_MEMORY


def test_memory_suspected() -> None:
    """Where the kernel does not tell, a full machine makes it a suspect, and no more."""
    event = lost(dead(used_bytes=5_100_000_000))
    assert event.reason == (
        "worker 3 (pid 55) was killed by signal 9 (SIGKILL) while it ran the quantum; "
        "memory suspected: it used 5.1 GB when last seen"
    )
    assert event.used_bytes == 5_100_000_000
    assert cause_of(event) is Cause.LOST


def test_memory_suspected_for_what_was_asked() -> None:
    """A quantum that used more than it had asked for is a suspect, too."""
    (attempt,) = attempts("isr", memory_bytes=GB)
    worker = dead(used_bytes=2 * GB)
    worker.watched = attempt
    event = epitaph(worker, attempt, Surroundings(memory_bytes=100 * GB, all_used_bytes=2 * GB))
    assert isinstance(event, AttemptLost)
    assert "memory suspected" in event.reason


@pytest.mark.parametrize(
    ("worker", "around"),
    [
        (dead(used_bytes=GB), Surroundings(memory_bytes=100 * GB, all_used_bytes=GB)),
        (dead(used_bytes=GB), Surroundings()),
        (dead(-11, used_bytes=9 * GB), FULL),
        (dead(3, used_bytes=9 * GB), FULL),
        (dead(), FULL),
    ],
    ids=["machine half empty", "machine unknown", "other signal", "exited", "never seen"],
)
def test_memory_not_suspected(worker: Worker, around: Surroundings) -> None:
    """Nothing is suspected without a reason."""
    assert "memory" not in lost(worker, around).reason


def test_ended_by_us() -> None:
    """What we end says why, with the limit."""
    late = epitaph(dead(-15, OverTime(FIRST, 2.5)), FIRST, FULL)
    assert isinstance(late, AttemptTimedOut)
    assert late.timeout_s == 2.5
    big = epitaph(dead(-9, OverMemory(FIRST, 5 * GB, 4 * GB)), FIRST, FULL)
    assert isinstance(big, AttemptOutOfMemory)
    assert (big.used_bytes, big.limit_bytes, big.by_kernel) == (5 * GB, 4 * GB, False)


@pytest.mark.parametrize("sentence", [OverTime(FIRST, 2.5), OverMemory(FIRST, 2, 1)])
def test_next_attempt_is_not_blamed(sentence: Sentence) -> None:
    """If the guilty attempt ended just before its worker did, the next one is given back."""
    assert isinstance(epitaph(dead(-9, sentence), SECOND, FULL), AttemptReturned)


def test_no_answer() -> None:
    """A worker that was given up is an infrastructure loss, in plain words."""
    event = lost(dead(-9, Unresponsive("was stopped by a signal for 30 s")))
    assert event.reason == (
        "worker 3 (pid 55) was stopped by a signal for 30 s while it ran the quantum, and was ended"
    )
    assert cause_of(event) is Cause.LOST


def test_taken_back() -> None:
    """What a worker ran that was ended with the run is given back."""
    worker = dead(-15)
    worker.doomed = True
    assert isinstance(epitaph(worker, FIRST, FULL), AttemptReturned)


def test_what_was_used_before_is_not_of_this_attempt() -> None:
    """An attempt that had just begun is not charged with what its forerunner used."""
    event = epitaph(dead(used_bytes=9 * GB), SECOND, FULL)
    assert isinstance(event, AttemptLost)
    assert event.used_bytes is None


def test_papers_of_a_failure(tmp_path: Path) -> None:
    """Log and stacks of an attempt that ended badly are named after it."""
    (tmp_path / "worker-0003.log").write_text("log")
    (tmp_path / "worker-0003.stack").write_text("stacks")
    keep_papers(tmp_path, dead(), FIRST)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "0.1.log": "log",
        "0.1.stack": "stacks",
    }


def test_empty_papers(tmp_path: Path) -> None:
    """Stacks and output that nobody wrote are not kept; a log that is missing is no error."""
    (tmp_path / "worker-0003.stack").touch()
    (tmp_path / "worker-0003.out").touch()
    keep_papers(tmp_path, dead(), FIRST)
    assert list(tmp_path.iterdir()) == []


def test_output_is_kept(tmp_path: Path) -> None:
    """What a worker printed stays, however it ended."""
    (tmp_path / "worker-0003.out").write_text("telescope on fire")
    keep_papers(tmp_path, dead(), None)
    assert [path.name for path in tmp_path.iterdir()] == ["worker-0003.out"]


@pytest.mark.parametrize("doomed", [True, False])
def test_stacks_without_an_attempt(doomed: bool, tmp_path: Path) -> None:
    """Of a worker that we ended nothing is kept; one that crashed between quanta leaves its stacks."""
    (tmp_path / "worker-0003.stack").write_text("stacks")
    worker = dead(-11)
    worker.doomed = doomed
    keep_papers(tmp_path, worker, None)
    assert len(list(tmp_path.iterdir())) == (0 if doomed else 1)
