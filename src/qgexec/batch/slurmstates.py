"""What Slurm's commands print, as states of jobs; pure.

Fields are those of ``squeue --Format`` and ``sacct --parsable2``, which have been the same in all versions
since 20.11, as its JSON has not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from qgexec.batch.system import JobEnd, JobState, JobStatus

__all__ = ["SACCT_FORMAT", "SQUEUE_FORMAT", "Line", "expand", "parse_config", "parse_sacct", "parse_squeue"]

SQUEUE_FORMAT = ",".join(
    f"{name}:|"
    for name in ("ArrayJobID", "ArrayTaskID", "JobID", "State", "exit_code", "NodeList", "Comment", "Reason")
)
"""For ``squeue --Format``: each field ends with a bar, and none is cut."""

SACCT_FORMAT = "JobID,State,ExitCode,NodeList,Comment,Reason"
"""For ``sacct --format``."""

_QUEUED = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED"})
_HELD = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT"})
_ENDS = {
    "COMPLETED": JobEnd.EXITED,
    "FAILED": JobEnd.EXITED,
    "TIMEOUT": JobEnd.TIMED_OUT,
    "DEADLINE": JobEnd.TIMED_OUT,
    "OUT_OF_MEMORY": JobEnd.OUT_OF_MEMORY,
    "NODE_FAIL": JobEnd.LOST,
    "PREEMPTED": JobEnd.LOST,
    "BOOT_FAIL": JobEnd.LOST,
    "LAUNCH_FAILED": JobEnd.LOST,
    "RECONFIG_FAIL": JobEnd.LOST,
    "REVOKED": JobEnd.LOST,
    "CANCELLED": JobEnd.CANCELLED,
}
"""All others are about to run, run, or leave their machine."""

_NEVER = "DependencyNeverSatisfied"

_NO_REASON = frozenset({"", "None", "(null)"})


@dataclass(frozen=True, slots=True)
class Line:
    """What one line says: of one job, or of all of an array that wait for the same."""

    array: int
    """Number of the job array, or of a job that is none."""
    indices: tuple[int, ...]
    """Indices in the array; empty for a job that is none."""
    job_id: int | None
    """Number that Slurm's own messages have for it, where it is known."""
    comment: str
    status: JobStatus


def parse_squeue(text: str) -> Iterator[Line]:
    """Yield what squeue says, in `SQUEUE_FORMAT`.

    Raises
    ------
    ValueError
        This is not what squeue prints.
    """
    for line in text.splitlines():
        if not line.strip():
            continue
        array, indices, job_id, state, exit_status, host, comment, reason = line.split("|", 7)
        exit_code = _exit_code(int(exit_status))
        status = _status(state.strip(), exit_code, host.strip(), reason.rstrip("| "))
        yield Line(int(array), expand(indices.strip()), int(job_id), comment.strip(), status)


def parse_sacct(text: str) -> Iterator[Line]:
    """Yield what sacct says of jobs that have ended, in `SACCT_FORMAT`.

    Raises
    ------
    ValueError
        This is not what sacct prints.
    """
    for line in text.splitlines():
        if not line.strip():
            continue
        number, state, exit_text, host, comment, reason = line.split("|", 5)
        array, _, index = number.partition("_")
        code, _, signal = exit_text.partition(":")
        exit_code = -int(signal) if signal not in ("", "0") else int(code)
        host = "" if host == "None assigned" else host
        # "CANCELLED by 1000"
        status = _status(state.partition(" ")[0], exit_code, host, reason)
        yield Line(int(array), expand(index.strip("[]")), None, comment, status)


def parse_config(text: str) -> dict[str, str]:
    """Return what ``scontrol show config`` says, by key."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def expand(indices: str) -> tuple[int, ...]:
    """Return the indices that ``0-4,7``, ``0-9:3`` or ``0-4%2`` means; none for ``N/A``."""
    if indices in ("", "N/A"):
        return ()
    found: list[int] = []
    for part in indices.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None:
            raise ValueError(f"{indices!r} are no indices of an array")
        low, high, step = match.groups()
        found += range(int(low), int(high or low) + 1, int(step or 1))
    return tuple(found)


def _exit_code(status: int) -> int | None:
    """Return exit status, or minus the signal's number, of what wait(2) gave."""
    try:
        return os.waitstatus_to_exitcode(status)
    except ValueError:
        return None


def _status(state: str, exit_code: int | None, host: str, reason: str) -> JobStatus:
    why = "" if reason in _NO_REASON else reason
    if state in _QUEUED:
        if _NEVER in why:
            return JobStatus(JobState.ENDED, why, JobEnd.NOT_STARTED)
        # JobHeldUser, JobHeldAdmin; "launch failed requeued held"
        is_held = "held" in why.lower()
        return JobStatus(JobState.HELD if is_held else JobState.QUEUED, why)
    if state in _HELD:
        return JobStatus(JobState.HELD, why or state)
    end = _ENDS.get(state)
    if end is None:
        return JobStatus(JobState.RUNNING, why, host=host)
    if end is JobEnd.CANCELLED and not host:
        return JobStatus(JobState.ENDED, why or state, JobEnd.NOT_STARTED if why == _NEVER else end)
    if state == "FAILED" and exit_code is not None and exit_code < 0:
        end = JobEnd.SIGNALLED
    words = state if exit_code in (0, None) else f"{state}, {_how(exit_code or 0)}"
    return JobStatus(JobState.ENDED, words, end, exit_code, host)


def _how(exit_code: int) -> str:
    return f"signal {-exit_code}" if exit_code < 0 else f"exit status {exit_code}"
