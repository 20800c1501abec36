"""What became of a run: the journal's events once more through the scheduler, so that both cannot disagree.

It reads the run directory alone, also while the run goes on; it needs
neither the graph nor the stack.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from qgexec.batch.journals import JobJournals
from qgexec.batch.rounds import last_round
from qgexec.books.holder import driver_is_alive
from qgexec.books.journal import read_detail
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.config.runconfig import RunConfig, make_policy
from qgexec.errors import JournalError, QgexecError
from qgexec.events import EndReason, RunStarted, StopReason
from qgexec.quantum import DataIdValue, describe
from qgexec.regularfile import open_regular
from qgexec.reports.failures import AttemptRecord, FailureGroup, TroubledQuantum, group_failures
from qgexec.reports.fold import Fold, TaskReport, total_of
from qgexec.reports.snapshot import read_fold
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.states import State
from qgexec.storedvalues import UNFIT

__all__ = [
    "REPORT_VERSION",
    "RunReport",
    "RunState",
    "RunningQuantum",
    "Submission",
    "add_jobs",
    "read_report",
    "read_run",
]

REPORT_VERSION = 4
"""Version of `RunReport.to_json`.

1: the first.
2: ``causes``, ``retried``; each failure has its ``attempts`` instead of what was known of the last one.
   Since then ``submitted`` and ``running`` have come in, and the state "submitted".
3: ``kind``; of each task what was useful and wasted, ``memory``, ``wall``, ``requested_memory_bytes``,
   ``recovered``, ``unknown`` and ``wonky``.
4: the states "succeeded" and "failed" instead of "completed", which was said of both.
"""

_LONGEST_STACK = 100_000
"""Bytes of a stack file that are read."""


class RunState(Enum):
    """Whether a run goes on."""

    NOT_STARTED = "not started"
    """No driver has taken it in hand."""

    RUNNING = "running"
    """Its driver is alive, and can be seen from here."""

    PERHAPS_RUNNING = "perhaps running"
    """Its driver cannot be seen from here and has not closed its books: it runs, or it is gone."""

    DRIVER_GONE = "driver gone"
    """Its driver died without closing its books."""

    SUCCEEDED = "succeeded"
    """Every quantum succeeded, or was skipped as done before."""

    FAILED = "failed"
    """Nothing is left that could run, and quanta have failed; others may be blocked by them."""

    STOPPED = "stopped"
    """It was told to stop; quanta that could run are left."""

    SUBMITTED = "submitted"
    """A batch system has what was left, and needs no driver."""

    BROKEN = "broken"
    """The execution model, the registry or the disk failed under it."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A round of batch jobs that is not yet closed."""

    model: str
    """Name of the execution model."""
    number: int
    """Number of the round, from 1."""
    name: str
    """What it is called in the batch system."""
    n_jobs: int
    ticket: Mapping[str, Any] | None
    """What the batch system finds it by; `None` while that is not known."""


@dataclass(frozen=True, slots=True)
class RunningQuantum:
    """A quantum that runs, or did when the driver went away."""

    index: int
    attempt: int
    """Number of the attempt, from 1."""
    task_label: str
    data_id: Mapping[str, DataIdValue]
    started_at: float
    """When a worker began with it, as far as is known; or was handed to the execution model. UNIX seconds."""

    def __str__(self) -> str:
        return describe(self.task_label, self.data_id)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What became of a run, up to the last event in its journal."""

    run_dir: RunDir
    settings: RunSettings
    state: RunState
    stop_reason: StopReason | None
    """Why the last driver was told to stop, if it was."""
    driver: RunStarted | None
    """The last driver."""
    last_event_at: float | None
    """UNIX seconds."""
    wall_s: float
    """Time in which a driver had the run in hand, up to its last event; added up over all drivers."""
    tasks: tuple[TaskReport, ...]
    """In the order of the plan's labels."""
    total: TaskReport
    """All tasks together."""
    submitted: Submission | None
    """What a batch system has in hand; `None` where nothing was submitted, or all of it is in the books."""
    running: tuple[RunningQuantum, ...]
    """Quanta that run, the one that has run longest first."""
    failures: tuple[TroubledQuantum, ...]
    """Quanta that failed, in the order of their indices."""
    retried: tuple[TroubledQuantum, ...]
    """Quanta that had an attempt end badly and have not failed: most have succeeded since."""

    @property
    def all_succeeded(self) -> bool:
        """Whether every quantum succeeded, or was skipped as done before."""
        return self.total.done == self.total.n_quanta

    def causes(self) -> list[FailureGroup]:
        """Return the failures, grouped by what looks like one cause; the most frequent first."""
        return group_failures(self.failures)

    def traceback(self, attempt: AttemptRecord) -> str:
        """Read where an attempt was when it ended: the traceback of what it raised, or its stacks.

        Returns
        -------
        text
            Empty where there is none, a sentence where it cannot be read.
        """
        try:
            if attempt.detail is not None:
                return str(read_detail(self.run_dir.segments, attempt.detail).get("traceback", ""))
            if attempt.stack is not None:
                with open_regular(attempt.stack) as file:
                    stack = file.read(_LONGEST_STACK).decode("utf-8", "backslashreplace")
                # faulthandler names every extension module that is loaded, in one line.
                return stack.partition("\nExtension modules: ")[0].rstrip()
        except JournalError as err:
            return f"(the traceback cannot be read: {err.message})"
        except OSError as err:
            return f"(the stack cannot be read: {err})"
        return ""

    def message(self, attempt: AttemptRecord) -> str:
        """Return in full what an attempt ended with; what the journal has of it is cut."""
        if attempt.detail is not None:
            with suppress(JournalError):
                return str(read_detail(self.run_dir.segments, attempt.detail).get("message", attempt.message))
        return attempt.message

    def to_json(self) -> dict[str, Any]:
        """Return the report as what `json.dumps` takes.

        Returns
        -------
        report
            - ``format`` ("qgexec-report"), ``version`` (`REPORT_VERSION`), ``kind`` ("run");
            - ``run_dir``, ``settings`` (as in ``run.json``);
            - ``state`` (value of `RunState`), ``stop_reason`` (value of `StopReason` or null),
              ``all_succeeded``, ``last_event_at``, ``wall_s``;
            - ``driver``: null, or ``at``, ``host``, ``pid``, ``pid_started_at``, ``model``, ``n_quanta``;
            - ``submitted``: null, or the attributes of `Submission`;
            - ``tasks`` (a list) and ``total``: the attributes of `TaskReport`;
            - ``running``: a list of the attributes of `RunningQuantum`;
            - ``causes``: a list of ``ended``, ``exception_type``, ``where``, ``exit_code``, ``message``
              (see `qgexec.reports.failures.FailureGroup`), ``n_quanta``, ``n_blocked``, ``quanta`` (indices)
              and ``example`` (an index);
            - ``failures`` and ``retried``: lists of the attributes of
              `qgexec.reports.failures.TroubledQuantum` (``state`` by value, ``quantum_id`` as text);
              ``attempts`` is a list of the attributes of
              `qgexec.reports.failures.AttemptRecord` (``log`` and ``stack`` as text, without ``detail``), and
              ``traceback``.

            Times are UNIX seconds.
        """
        return {
            "format": "qgexec-report",
            "version": REPORT_VERSION,
            "kind": "run",
            "run_dir": str(self.run_dir.path),
            "settings": self.settings.to_json(),
            "state": self.state.value,
            "stop_reason": self.stop_reason and self.stop_reason.value,
            "all_succeeded": self.all_succeeded,
            "last_event_at": self.last_event_at,
            "wall_s": self.wall_s,
            "driver": self.driver and {k: v for k, v in asdict(self.driver).items() if k != "birth"},
            "submitted": self.submitted and asdict(self.submitted),
            "tasks": [asdict(task) for task in self.tasks],
            "total": asdict(self.total),
            "running": [asdict(quantum) for quantum in self.running],
            "causes": [_group_to_json(group) for group in self.causes()],
            "failures": [self._quantum_to_json(quantum) for quantum in self.failures],
            "retried": [self._quantum_to_json(quantum) for quantum in self.retried],
        }

    def _quantum_to_json(self, quantum: TroubledQuantum) -> dict[str, Any]:
        return asdict(quantum) | {
            "quantum_id": str(quantum.quantum_id),
            "state": quantum.state.value,
            "attempts": [self._attempt_to_json(attempt) for attempt in quantum.attempts],
        }

    def _attempt_to_json(self, attempt: AttemptRecord) -> dict[str, Any]:
        values = asdict(attempt)
        del values["detail"]
        return values | {
            "log": attempt.log and str(attempt.log),
            "stack": attempt.stack and str(attempt.stack),
            "traceback": self.traceback(attempt) if attempt.ended_badly else "",
        }


def _group_to_json(group: FailureGroup) -> dict[str, Any]:
    return {
        "ended": group.ended,
        "exception_type": group.exception_type,
        "where": group.where,
        "exit_code": group.exit_code,
        "message": group.message,
        "n_quanta": len(group.quanta),
        "n_blocked": group.n_blocked,
        "quanta": [quantum.index for quantum in group.quanta],
        "example": group.example.index,
    }


def read_report(
    run_dir: Path, *, is_alive: Callable[[RunStarted], bool | None] = driver_is_alive
) -> RunReport:
    """Read what became of a run so far.

    Parameters
    ----------
    run_dir
        The run directory.
    is_alive
        Tells whether a driver that has not closed its books is still there.

    Raises
    ------
    qgexec.errors.RunDirError
        It is no run directory, cannot be read, or is damaged.
    """
    return read_run(run_dir, is_alive=is_alive)[0]


def read_run(
    run_dir: Path, *, is_alive: Callable[[RunStarted], bool | None] = driver_is_alive
) -> tuple[RunReport, Plan, Fold]:
    """Read what became of a run so far, and what that was read from; parameters and errors are as above."""
    found = RunDir.open(run_dir)
    settings = found.read_settings()
    plan = found.load_plan()
    fold = read_fold(found.journal, plan, found.snapshot_file)
    submitted = add_jobs(found, plan, fold)
    tasks = _with_requests(fold.tasks(), settings)
    total = total_of(tasks)
    troubled = fold.troubled(_Kept(found))
    report = RunReport(
        run_dir=found,
        settings=settings,
        state=_state(fold, is_alive, submitted, total),
        stop_reason=fold.stop_reason,
        driver=fold.driver,
        last_event_at=fold.last_event_at,
        wall_s=fold.wall_s,
        tasks=tasks,
        total=total,
        submitted=submitted,
        running=tuple(
            RunningQuantum(index, fold.scheduler.attempts(index), plan.label(index), plan.data_id(index), at)
            for index, at in fold.running().items()
        ),
        failures=tuple(quantum for quantum in troubled if quantum.state is State.FAILED),
        retried=tuple(quantum for quantum in troubled if quantum.state is not State.FAILED),
    )
    return report, plan, fold


def _with_requests(tasks: tuple[TaskReport, ...], settings: RunSettings) -> tuple[TaskReport, ...]:
    """Return the tasks with what their first attempts ask for, as far as the run's options say it."""
    config = settings.options.get("config")
    if not isinstance(config, Mapping):
        return tasks
    try:
        policy = make_policy(RunConfig.from_json(config), [task.label for task in tasks])
    except (QgexecError, *UNFIT):  # another version's: all else can be told
        return tasks
    return tuple(
        replace(task, requested_memory_bytes=policy.rules_of(task.label).request.memory_bytes)
        for task in tasks
    )


def add_jobs(run_dir: RunDir, plan: Plan, fold: Fold) -> Submission | None:
    """Fold in what batch jobs have said that no driver has recorded yet; return what they belong to."""
    pending = last_round(run_dir)
    if pending is None or pending.is_closed:
        return None
    journals = JobJournals(pending, plan, fold.scheduler.state, fold.scheduler.attempts)
    for event in journals.read():
        fold.apply(event)
    fold.hold_back(journals.waiting())
    return Submission(pending.model, pending.number, pending.name, len(pending.jobs), pending.ticket)


def _state(
    fold: Fold,
    is_alive: Callable[[RunStarted], bool | None],
    submitted: Submission | None,
    total: TaskReport,
) -> RunState:
    if fold.driver is None:
        return RunState.NOT_STARTED
    if fold.end is not None:
        if submitted is not None:
            return RunState.SUBMITTED
        return _ended_state(fold.end, total)
    match is_alive(fold.driver):
        case True:
            return RunState.RUNNING
        case False:
            return RunState.DRIVER_GONE
        case None:
            return RunState.PERHAPS_RUNNING


def _ended_state(reason: EndReason, total: TaskReport) -> RunState:
    match reason:
        case EndReason.COMPLETED:
            return RunState.SUCCEEDED if total.done == total.n_quanta else RunState.FAILED
        case EndReason.STOPPED:
            return RunState.STOPPED
        case EndReason.BROKEN:
            return RunState.BROKEN


class _Kept:
    """Which files were kept of attempts: one look at the folder, for on a network each look takes time."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._names = frozenset(_names_in(run_dir.logs))

    def log(self, index: int, attempt: int) -> Path | None:
        """Return the log of an attempt, where it was kept."""
        return self._if_there(self._run_dir.attempt_log(index, attempt))

    def stack(self, index: int, attempt: int) -> Path | None:
        """Return the stacks of an attempt, where they were kept."""
        return self._if_there(self._run_dir.attempt_stack(index, attempt))

    def _if_there(self, path: Path) -> Path | None:
        return path if path.name in self._names else None


def _names_in(folder: Path) -> Iterator[str]:
    try:
        yield from os.listdir(folder)  # noqa: PTH208 - names are all that is wanted of a million entries
    except OSError:  # a copy of the run directory without its logs
        return
