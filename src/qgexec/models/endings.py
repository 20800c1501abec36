"""What is said of an attempt whose worker has died, and what is kept of it; ends no worker itself."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from qgexec.config.units import size_text
from qgexec.events import AttemptLost, AttemptOutOfMemory, AttemptReturned, AttemptTimedOut, Event
from qgexec.models.workers import OverMemory, OverTime, Unresponsive, Worker
from qgexec.processes.forked import describe_exit
from qgexec.quantum import Attempt
from qgexec.regularfile import open_regular

__all__ = ["Surroundings", "epitaph", "keep_papers", "last_line", "obituary", "stack_file"]

_SUSPICIOUS_PART = 0.5
"""Part of the machine's memory that the workers must have used for the kernel to be suspected."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known of the machine when a worker has died."""

    killed_by_kernel: bool = False
    """The kernel says that it has ended a process for want of memory, and this is the one."""

    memory_bytes: int | None = None
    """Memory of the machine, or of our control group."""

    all_used_bytes: int = 0
    """Memory that all workers, this one included, used when they were last looked at."""


def epitaph(worker: Worker, attempt: Attempt, around: Surroundings) -> Event:
    """Return the event that ends an attempt whose worker has died.

    Parameters
    ----------
    worker
        It is dead, and its exit code known if ever.
    attempt
        What it had begun.
    around
        What is known of the machine.
    """
    now, index, number = time.time(), attempt.index, attempt.number
    sentence = worker.sentence
    used_bytes = worker.used_bytes if attempt is worker.watched else None
    match sentence:
        case OverTime(attempt=guilty, timeout_s=timeout_s) if guilty is attempt:
            exit_code = worker.process.exit_code
            return AttemptTimedOut(now, index, number, timeout_s, worker.number, exit_code=exit_code)
        case OverMemory(attempt=guilty) if guilty is attempt:
            return AttemptOutOfMemory(
                now, index, number, sentence.used_bytes, sentence.limit_bytes, worker=worker.number
            )
        case Unresponsive(why=why):
            reason = f"{_name(worker)} {why} while it ran the quantum, and was ended"
            exit_code = worker.process.exit_code
            return AttemptLost(now, index, number, reason, exit_code, worker.number, used_bytes)
        case OverTime() | OverMemory():  # its next attempt had just begun when it was ended
            return AttemptReturned(now, index, number)
        case None:
            if worker.doomed:
                return AttemptReturned(now, index, number)
        case _:
            assert_never(sentence)
    if around.killed_by_kernel:
        return AttemptOutOfMemory(
            now, index, number, used_bytes, around.memory_bytes, by_kernel=True, worker=worker.number
        )
    reason = f"{obituary(worker)} while it ran the quantum{_suspicion(worker, attempt, used_bytes, around)}"
    return AttemptLost(now, index, number, reason, worker.process.exit_code, worker.number, used_bytes)


def _suspicion(worker: Worker, attempt: Attempt, used_bytes: int | None, around: Surroundings) -> str:
    """Return what to add where the kernel may have ended the worker, but does not say so."""
    if worker.process.exit_code != -signal.SIGKILL or used_bytes is None:
        return ""
    asked_bytes, memory_bytes = attempt.resources.memory_bytes, around.memory_bytes
    exceeds = asked_bytes is not None and used_bytes > asked_bytes
    is_full = memory_bytes is not None and around.all_used_bytes >= _SUSPICIOUS_PART * memory_bytes
    if not (exceeds or is_full):
        return ""
    return f"; memory suspected: it used {size_text(used_bytes)} when last seen"


def obituary(worker: Worker) -> str:
    """Say which worker has died, and how: ``worker 3 (pid 4711) was killed by signal 9 (SIGKILL)``."""
    process = worker.process
    if isinstance(worker.sentence, Unresponsive):
        return f"{_name(worker)} {worker.sentence.why}"
    why = f": {process.failure}" if process.failure else ""
    return f"{_name(worker)} {describe_exit(process.exit_code)}{why}"


def _name(worker: Worker) -> str:
    pid = worker.process.pid
    return f"worker {worker.number}" if pid is None else f"worker {worker.number} (pid {pid})"


def stack_file(logs: Path, worker_name: str) -> Path:
    """Return where a worker's stacks are written to."""
    return logs / f"{worker_name}.stack"


def keep_papers(logs: Path, worker: Worker, attempt: Attempt | None) -> None:
    """Name a dead worker's log and stacks after the attempt that it had, and remove what tells nothing.

    Parameters
    ----------
    logs
        Folder of the logs.
    worker
        The worker.
    attempt
        What ended badly with it; `None` if nothing did.
    """
    stacks = stack_file(logs, worker.name)
    with suppress(OSError):  # there are none, or the disk is full: the attempt ends all the same
        if stacks.stat().st_size == 0 or (attempt is None and worker.doomed):
            stacks.unlink()
    output = logs / f"{worker.name}.out"
    with suppress(OSError):
        if output.stat().st_size == 0:
            output.unlink()
    if attempt is None:
        return
    for path in (stacks, logs / f"{worker.name}.log"):
        with suppress(OSError):
            path.rename(logs / f"{attempt.index}.{attempt.number}{path.suffix}")


def last_line(path: Path) -> str:
    """Return the last line of what a process printed, in a sentence."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return f"Its last line: {lines[-1]}" if lines else ""
