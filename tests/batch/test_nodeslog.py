"""What HTCondor's log says of a DAG's nodes; the log is a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgexec.batch.nodeslog import NodesLog
from qgexec.batch.system import JobEnd, JobState, JobStatus

REAL = Path(__file__).parents[1] / "data" / "htcondor" / "round.dag.nodes.log"


def _read(path: Path, text: bytes) -> NodesLog:
    path.write_bytes(text)
    log = NodesLog(path)
    log.read()
    return log


def _until(marker: bytes) -> bytes:
    """Return the real log up to the event with this text, which is not in it."""
    before = REAL.read_bytes().partition(marker)[0]
    return before[: before.rindex(b"...\n") + 4]


def test_a_job_that_was_tried_again_has_ended_well() -> None:
    """Of a job that ran out of memory and was tried again the last try counts."""
    log = NodesLog(REAL)
    log.read()
    assert log.nodes[2].status(is_over=False) == JobStatus(
        JobState.ENDED, "it ended with exit status 0", JobEnd.EXITED, 0, "localhost"
    )


@pytest.mark.parametrize(
    ("marker", "state", "end"),
    [
        (b"Job executing", JobState.QUEUED, JobEnd.NOT_STARTED),
        (b"Job was evicted", JobState.RUNNING, JobEnd.LOST),
        (b"Job was held", JobState.QUEUED, JobEnd.LOST),
        (b"Job was released", JobState.QUEUED, JobEnd.OUT_OF_MEMORY),
        (b"POST Script", JobState.QUEUED, JobEnd.EXITED),
    ],
)
def test_the_state_follows_the_events(tmp_path: Path, marker: bytes, state: JobState, end: JobEnd) -> None:
    """After each event a job is where it says; if nothing follows any more that is how it ended."""
    story = _read(tmp_path / "log", _until(marker)).nodes[2]
    assert story.status(is_over=False).state is state
    assert story.status(is_over=True).end is end


def test_ends_are_told_apart() -> None:
    """A signal and a removal are what they are, with HTCondor's words."""
    log = NodesLog(REAL)
    log.read()
    assert log.nodes[3].status(is_over=True) == JobStatus(
        JobState.ENDED, "it was ended by signal 9", JobEnd.SIGNALLED, -9, "localhost"
    )
    removed = log.nodes[18].status(is_over=True)
    assert (removed.end, removed.reason) == (
        JobEnd.CANCELLED,
        "Python-initiated action (by user someone)",
    )


def test_the_closing_job_is_apart() -> None:
    """The FINAL node is none of the jobs."""
    log = NodesLog(REAL)
    log.read()
    assert set(log.nodes) == {2, 3, 18}
    assert log.closing is not None
    assert log.closing.state is JobState.RUNNING


def test_a_log_that_grows_is_read_on(tmp_path: Path) -> None:
    """Whatever the pieces in which it is written, the end is the same; a torn event waits."""
    whole = REAL.read_bytes()
    path = tmp_path / "log"
    log = NodesLog(path)
    log.read()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        log.read()
    path.write_bytes(whole)
    log.read()
    at_once = NodesLog(REAL)
    at_once.read()
    assert log.nodes == at_once.nodes
    assert log.closing == at_once.closing


def test_another_format_tells_nothing(tmp_path: Path) -> None:
    """A site's log in XML does no harm."""
    assert not _read(tmp_path / "log", b'<c>\n    <a n="MyType"><s>SubmitEvent</s></a>\n</c>\n...\n').nodes
