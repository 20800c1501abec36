"""Where the log of one attempt is: a file in the run directory, or the log dataset; reads neither."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qgexec.books.rundir import RunDir
from qgexec.errors import UsageError
from qgexec.events import AttemptStarted
from qgexec.regularfile import open_regular
from qgexec.reports.fold import Fold
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.states import State

__all__ = ["AttemptLog", "find_log", "keep_streamed_logs"]

_TITLE_BYTES = 1000


@dataclass(frozen=True, slots=True)
class AttemptLog:
    """The log of one attempt."""

    index: int
    """The quantum."""
    attempt: int
    """Number of the attempt."""
    path: Path | None
    """The file; `None` where the log dataset in the repository is what there is."""
    stack: Path | None
    """The stacks of all threads when it was ended or crashed, where they were kept."""


def find_log(run_dir: RunDir, plan: Plan, fold: Fold, index: int, attempt: int | None = None) -> AttemptLog:
    """Find the log of an attempt.

    Parameters
    ----------
    run_dir
        The run's books.
    plan
        Its quanta.
    fold
        Its journal.
    index
        The quantum.
    attempt
        Number of the attempt; by default the last.

    Raises
    ------
    qgexec.errors.UsageError
        There was no such attempt, or no log of it was kept.
    """
    name = f"Quantum {index} ({plan.describe(index)})"
    state, n_attempts = fold.scheduler.state(index), fold.scheduler.attempts(index)
    if n_attempts == 0:
        raise UsageError(f"{name} has not been started: there is no log.", hint=_why_not(plan, fold, index))
    number = n_attempts if attempt is None else attempt
    if not 1 <= number <= n_attempts:
        there = "one attempt" if n_attempts == 1 else f"{n_attempts} attempts"
        raise UsageError(f"{name} has no attempt {number}.", hint=f"There was {there} up to now.")
    path, stack = run_dir.attempt_log(index, number), run_dir.attempt_stack(index, number)
    kept_stack = stack if stack.exists() else None
    if path.exists():
        return AttemptLog(index, number, path, kept_stack)
    is_last = number == n_attempts
    if is_last and state in (State.SUCCEEDED, State.SKIPPED):
        return AttemptLog(index, number, None, kept_stack)
    # It runs, or ended with its whole batch job: what it has written lies where it wrote it.
    if (streamed := _streamed_log(run_dir.logs, _title(plan, index, number))) is not None:
        return AttemptLog(index, number, streamed, kept_stack)
    if is_last and state is State.FAILED:
        return AttemptLog(index, number, None, kept_stack)
    raise UsageError(
        f"{name}: no log of attempt {number} is there.",
        hint="It has written none yet, or it was taken back before it began.",
    )


def keep_streamed_logs(run_dir: RunDir, plan: Plan, attempts: Mapping[int, AttemptStarted]) -> None:
    """Give the logs of attempts whose worker is gone, with its driver, the names under which they are kept.

    Parameters
    ----------
    run_dir, plan
        The run.
    attempts
        The attempts, by index.
    """
    if not attempts:
        return
    titles = {_title(plan, index, event.attempt): event for index, event in attempts.items()}
    for path in sorted(run_dir.logs.glob("*.log")):
        if (event := titles.get(_title_of(path))) is not None:
            with contextlib.suppress(OSError):  # the attempt is settled all the same
                path.rename(run_dir.attempt_log(event.index, event.attempt))


def _title(plan: Plan, index: int, attempt: int) -> str:
    return f"quantum {plan.quantum_id(index)} attempt {attempt}"


def _title_of(path: Path) -> str:
    """Return of which attempt a log is, as its first line says after the label; empty if it is gone."""
    try:
        with open_regular(path) as file:
            line = file.readline(_TITLE_BYTES).decode("utf-8", "replace").rstrip()
    except FileNotFoundError:  # its worker has ended meanwhile
        return ""
    return line.partition(" ")[2]


def _streamed_log(logs: Path, title: str) -> Path | None:
    """Return the file that a worker writes to right now."""
    return next((path for path in sorted(logs.glob("*.log")) if _title_of(path) == title), None)


def _why_not(plan: Plan, fold: Fold, index: int) -> str:
    if fold.scheduler.state(index) is not State.BLOCKED:
        return "Its prerequisites come first, or all workers are busy."
    pending, seen = [index], {index}
    while pending:
        for prerequisite in plan.prerequisites(pending.pop()):
            if fold.scheduler.state(prerequisite) is State.FAILED:
                return (
                    f"It is blocked by the failure of quantum {prerequisite} ({plan.describe(prerequisite)})."
                )
            if prerequisite not in seen:
                seen.add(prerequisite)
                pending.append(prerequisite)
    return "It is blocked by a failure before it."
