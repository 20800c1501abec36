"""What a batch job is told by whoever calls it, and what it makes of its limits."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from qgexec.batch.rounds import last_round
from qgexec.batchjob import JobMargins
from qgexec.books.journal import read_events
from qgexec.config.runconfig import TaskSettings
from qgexec.events import (
    AttemptEvent,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    StopRequested,
)
from tests.kit.batch.jobforks import Jobs, Place, configured, killed_in
from tests.kit.batch.submitted import wait_until
from tests.kit.crash.faults import Fault, in_task, is_first
from tests.kit.processes.forks import KILLED

pytestmark = pytest.mark.usefixtures("server")

_GIB = 1 << 30
_GROWING = TaskSettings(memory_bytes=_GIB, memory_multiplier=2.0, timed_out=1)


def _told(**variables: str) -> Fault:
    """Have a try of a job called with environment variables."""

    def prepare() -> None:
        os.environ.update(variables)

    return prepare


def _unusual(place: Place) -> list[AttemptEvent]:
    """Return the ends of attempts that did not succeed."""
    return [
        event
        for event in read_events(place.books.journal)
        if isinstance(event, AttemptEvent) and not isinstance(event, AttemptStarted | AttemptSucceeded)
    ]


@pytest.mark.thorough
@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("out of memory", AttemptOutOfMemory),
        ("timed out", AttemptTimedOut),
        ("cancelled", AttemptReturned),
        ("lost", AttemptLost),
    ],
)
def test_a_try_is_told_how_the_last_one_ended(place: Place, end: str, kind: type) -> None:
    """It only notes that in its journal, and ends: what it was told would be said again of itself."""
    killed = killed_in("calibrate", place.mark("killed"))
    place.hand.runs = jobs = Jobs({(1, 0): [killed, _told(QGEXEC_LAST_END=end)]}, tries=3)
    place.config = configured(_GROWING)
    place.run()
    assert [type(event) for event in _unusual(place)] == [kind]
    assert jobs.codes[:2] == [(1, 0, KILLED), (1, 0, 75)]


@pytest.mark.thorough
def test_the_next_try_has_the_memory_that_was_noted(place: Place) -> None:
    """What the job has found to need stands in a file for the batch system; given that, it goes on."""
    killed = killed_in("calibrate", place.mark("killed"))
    tries = [killed, _told(QGEXEC_LAST_END="out of memory"), _told(QGEXEC_JOB_MEMORY_MB="2048")]
    place.hand.runs = jobs = Jobs({(1, 0): tries}, tries=3)
    place.config = configured(_GROWING)
    assert place.run() == 0
    assert [code for _, job, code in jobs.codes if job == 0] == [KILLED, 75, 0]
    assert len(place.hand.submitted) == 1
    found = last_round(place.books)
    assert found is not None
    assert found.memory_file(0).read_text() == "granted_memory = 2048\n"
    assert not found.memory_file(1).exists()


@pytest.mark.thorough
def test_a_quantum_over_the_time_of_its_job_has_timed_out(place: Place) -> None:
    """One without a limit that began first in its job cannot be done in any: it is no loss."""
    batch = replace(configured().batch, walltime_s=8.0, said=frozenset({"walltime_s"}))
    place.config = replace(configured(), batch=batch)
    mark = place.mark("endless")

    def endless() -> None:
        if is_first(mark):
            signal.pause()

    place.hand.runs = Jobs({(1, 0): [in_task(isr=endless)]}, tries=3)
    assert place.run() == 1
    (event,) = _unusual(place)
    assert isinstance(event, AttemptTimedOut)
    assert not event.retried


@pytest.mark.thorough
def test_a_job_told_to_end_over_its_memory_says_so(place: Place) -> None:
    """A batch system that ends a job for its memory asks first: then the quantum is not handed back."""

    def over_memory() -> None:
        job, mark = os.getpid(), place.mark("told")

        def act() -> None:
            if is_first(mark):
                os.kill(job, signal.SIGTERM)
                signal.pause()

        in_task(calibrate=act)()

    place.config = configured(TaskSettings(memory_bytes=1, memory_multiplier=float(_GIB)))
    place.hand.runs = Jobs(
        {(1, 0): [over_memory]}, margins={(1, 0): JobMargins(grace_s=0.0, overhead_bytes=0)}
    )
    assert place.run() == 0
    (event,) = _unusual(place)
    assert isinstance(event, AttemptOutOfMemory)
    assert event.retried


@pytest.mark.thorough
def test_a_worker_that_is_ended_with_its_job_is_no_loss(place: Place) -> None:
    """A batch system that ends a job may tell all of its processes: what runs is handed back."""

    def ended() -> None:
        job, mark, journal = os.getpid(), place.mark("told"), place.pending().journal(0)

        def act() -> None:
            if is_first(mark):
                os.kill(job, signal.SIGTERM)
                wait_until(lambda: any(isinstance(event, StopRequested) for event in read_events(journal)))
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()

        in_task(calibrate=act)()

    place.hand.runs = jobs = Jobs({(1, 0): [ended]}, tries=2)
    assert place.run() == 0
    (event,) = _unusual(place)
    assert isinstance(event, AttemptReturned)
    assert jobs.codes[:2] == [(1, 0, 75), (1, 0, 0)]
    assert place.report().total.retried == 0
