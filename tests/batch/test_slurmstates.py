"""What Slurm prints is read as it is meant; the outputs were recorded from Slurm 22.05."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgexec.batch.slurmstates import SQUEUE_FORMAT, expand, parse_config, parse_sacct, parse_squeue
from qgexec.batch.system import JobEnd, JobState, JobStatus

DATA = Path(__file__).parents[1] / "data"


def _squeue(state: str, *, exit_status: int = 0, host: str = "", reason: str = "None") -> JobStatus:
    (line,) = parse_squeue(f"14|3|17|{state}|{exit_status}|{host}|3: isr|{reason}|\n")
    return line.status


def test_recorded_squeue() -> None:
    """Jobs that wait, run, ended and never will begin, of arrays and of none."""
    lines = list(parse_squeue((DATA / "squeue-22.05.txt").read_text()))
    assert [(line.array, line.indices, line.comment) for line in lines[:2]] == [
        (15, (1,), "4: isr"),
        (15, (0,), "4: isr"),
    ]
    assert {line.indices: line.status.end for line in lines if line.array == 15} == {
        (0,): JobEnd.NOT_STARTED,
        (1,): JobEnd.NOT_STARTED,
        (2,): None,
        (3,): None,
    }
    ended = {line.indices[0]: line.status for line in lines if line.array == 14}
    assert ended[0] == JobStatus(JobState.ENDED, "FAILED, exit status 3", JobEnd.EXITED, 3, "node1")
    assert ended[1] == JobStatus(JobState.ENDED, "FAILED, signal 9", JobEnd.SIGNALLED, -9, "node1")
    assert ended[2].state is JobState.RUNNING
    (closing,) = (line for line in lines if line.comment == "closing")
    assert (closing.array, closing.indices, closing.status.state) == (22, (), JobState.QUEUED)
    held = next(line for line in lines if line.array == 23)
    assert (held.status, len(held.indices)) == (JobStatus(JobState.HELD, "JobHeldUser"), 301)


def test_recorded_sacct() -> None:
    """The accounting database says the same in other words."""
    lines = list(parse_sacct((DATA / "sacct-22.05.txt").read_text()))
    found = {(line.array, line.indices): line.status for line in lines}
    assert found[4, (0,)] == JobStatus(JobState.ENDED, "COMPLETED", JobEnd.EXITED, 0, "node1")
    assert found[4, (1,)].end is JobEnd.EXITED
    assert found[4, (1,)].exit_code == 3
    assert found[4, (2,)].end is JobEnd.TIMED_OUT
    assert found[4, (3,)].end is JobEnd.CANCELLED
    assert found[4, (4,)].end is JobEnd.SIGNALLED
    assert found[5, (1,)].end is JobEnd.CANCELLED
    assert found[6, (0, 1, 3)] == JobStatus(JobState.HELD, "JobHeldUser")


@pytest.mark.parametrize(
    ("state", "end"),
    [
        ("COMPLETED", JobEnd.EXITED),
        ("TIMEOUT", JobEnd.TIMED_OUT),
        ("DEADLINE", JobEnd.TIMED_OUT),
        ("OUT_OF_MEMORY", JobEnd.OUT_OF_MEMORY),
        ("NODE_FAIL", JobEnd.LOST),
        ("PREEMPTED", JobEnd.LOST),
        ("BOOT_FAIL", JobEnd.LOST),
        ("CANCELLED", JobEnd.CANCELLED),
    ],
)
def test_ends(state: str, end: JobEnd) -> None:
    """Each of Slurm's ends is one of ours."""
    status = _squeue(state, host="node1")
    assert (status.state, status.end, status.host) == (JobState.ENDED, end, "node1")


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("PENDING", "Resources", JobState.QUEUED),
        ("PENDING", "JobHeldUser", JobState.HELD),
        ("PENDING", "JobHeldAdmin", JobState.HELD),
        ("PENDING", "launch failed requeued held", JobState.HELD),
        ("REQUEUE_HOLD", "None", JobState.HELD),
        ("CONFIGURING", "None", JobState.RUNNING),
        ("COMPLETING", "None", JobState.RUNNING),
        ("SUSPENDED", "None", JobState.RUNNING),
        ("OF_A_LATER_VERSION", "None", JobState.RUNNING),
    ],
)
def test_states(state: str, reason: str, expected: JobState) -> None:
    """What is not known to have ended is taken to be there."""
    assert _squeue(state, reason=reason).state is expected


def test_what_waits_in_vain_has_ended() -> None:
    """Where a site keeps jobs whose dependency never comes, they count as what they are."""
    status = _squeue("PENDING", reason="DependencyNeverSatisfied")
    assert (status.state, status.end) == (JobState.ENDED, JobEnd.NOT_STARTED)


def test_a_reason_with_bars() -> None:
    """It comes last, so that it may hold anything."""
    assert _squeue("PENDING", reason="Nodes required|for job").reason == "Nodes required|for job"


@pytest.mark.parametrize(
    ("text", "indices"),
    [("N/A", ()), ("3", (3,)), ("0-2,7", (0, 1, 2, 7)), ("1-9:4", (1, 5, 9)), ("0-2%1", (0, 1, 2))],
)
def test_indices(text: str, indices: tuple[int, ...]) -> None:
    """Lists, ranges, steps; a throttle is none of them."""
    assert expand(text) == indices


@pytest.mark.parametrize("text", ["0-2,...", "x"])
def test_indices_that_were_cut(text: str) -> None:
    """They are refused: a job that is not seen would count as gone."""
    with pytest.raises(ValueError, match="no indices"):
        expand(text)


def test_config() -> None:
    """Keys and values, as in its configuration."""
    text = "Configuration data as of x\nMaxArraySize      = 1001\nA = b = c\n\nSlurmctld at vm is UP\n"
    assert parse_config(text) == {"MaxArraySize": "1001", "A": "b = c"}


def test_format_cuts_nothing() -> None:
    """Each field has a suffix, and no width."""
    assert all(field.endswith(":|") for field in SQUEUE_FORMAT.split(","))
