"""Owns what is counted while a run's events are folded: outcomes by task, attempts; knows no files.

The states are the scheduler's own: the fold is the live run once more.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import isnan, nan
from typing import Any

import numpy as np
import numpy.typing as npt

from qgexec.events import (
    AttemptFailed,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    EndReason,
    Event,
    FailureEvent,
    OutputsIngested,
    RunEnded,
    RunReopened,
    RunStarted,
    StopReason,
    StopRequested,
    WorkerEnded,
)
from qgexec.quantum import Outcome
from qgexec.reports.executing import Executing, ExecutingState
from qgexec.reports.failures import Ending, KeptFiles, TroubledQuantum, attempt_record
from qgexec.reports.measured import Measured, Spread
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.restorable import RestorableScheduler
from qgexec.scheduling.states import State

__all__ = ["CAVEATS", "Fold", "FoldState", "TaskReport", "caveat_names", "total_of"]

CAVEATS: Mapping[int, str] = {
    1: "ANY_OUTPUTS_MISSING",
    2: "ALL_OUTPUTS_MISSING",
    4: "NO_WORK",
    8: "ADJUST_QUANTUM_RAISED",
    16: "UPSTREAM_FAILURE_NO_WORK",
    32: "UNPROCESSABLE_DATA",
    64: "PARTIAL_OUTPUTS_ERROR",
}
"""Names of `lsst.pipe.base.QuantumSuccessCaveats`, here because reading a report must not load the stack."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """The quanta of one task, or of all, counted."""

    label: str
    n_quanta: int
    succeeded: int = 0
    skipped: int = 0
    failed: int = 0
    blocked: int = 0
    running: int = 0
    """Where the driver is gone: they were running then."""
    not_run: int = 0
    """Neither begun nor blocked, up to now."""
    recovered: int = 0
    """Succeeded quanta that had failed, or were blocked, in an earlier run; where there are several."""
    unknown: int = 0
    """Neither metadata nor log are there, and nothing before them failed; of reports from graphs only."""
    wonky: int = 0
    """What is there contradicts itself, in upstream's word; of reports from graphs only."""
    quantum_s: float = 0.0
    """Wall time of all attempts that came to their own end, added up, seconds."""
    cpu_s: float = 0.0
    """Their CPU time, added up, seconds."""
    peak_rss_bytes: int | None = None
    """Largest peak resident set size of one attempt that executed it; `None` where it is unknown."""
    useful_cpu_s: float = 0.0
    """CPU time of the attempts whose outputs count, seconds."""
    wasted_cpu_s: float = 0.0
    """CPU time of the attempts that failed, were lost or whose outputs were thrown away, seconds.

    Of one that left no figure the wall time counts.
    """
    wasted_unmeasured_s: float = 0.0
    """How much of that is such wall time."""
    memory: Spread | None = None
    """Peak resident set sizes of the quanta, bytes, each at its largest attempt; of one task only."""
    requested_memory_bytes: int | None = None
    """Memory that a first attempt asks for; `None` where nothing was said."""
    wall: Spread | None = None
    """Wall times of the attempts that succeeded, seconds; of one task only."""
    retried: int = 0
    """Attempts that ended badly and were followed by another, or are to be."""
    ingested: int = 0
    """Quanta whose outputs are in the registry."""
    caveats: Mapping[str, int] = field(default_factory=dict)
    """Succeeded quanta by caveat, as in `CAVEATS`; one quantum may have several."""
    workers_replaced: Mapping[str, int] = field(default_factory=dict)
    """Workers that others took the place of, for a quantum left something in them; by what that was."""

    @property
    def done(self) -> int:
        """Quanta that succeeded, in this run or before it."""
        return self.succeeded + self.skipped

    @property
    def ended(self) -> int:
        """Quanta that nothing more will happen to."""
        return self.done + self.failed + self.blocked


@dataclass(frozen=True, slots=True)
class FoldState:
    """All that a `Fold` knows besides its plan, as plain values: what a snapshot holds."""

    states: bytes
    """Of each quantum; see `qgexec.scheduling.restorable.STATE_CODES`."""
    attempts: npt.NDArray[np.int32]
    """Number of attempts at each quantum; shape ``(n,)``."""
    ingested: bytes
    """1 for each quantum whose outputs are in the registry."""
    caveats: Mapping[int, int]
    """Flags by quantum."""
    blocked: Mapping[int, int]
    """Quanta that a failure blocked, by the quantum that failed."""
    replaced: Sequence[Mapping[str, int]]
    """By task: workers that its quanta have cost, by what they left."""
    executing: ExecutingState
    """What the model has in hand."""
    endings: Sequence[Ending]
    """What ended attempts at quanta that had trouble; those of one quantum in order."""
    quantum_s: Sequence[float]
    """By task, here and below."""
    cpu_s: Sequence[float]
    peak_rss_bytes: Sequence[int | None]
    wasted_cpu_s: Sequence[float]
    wasted_unmeasured_s: Sequence[float]
    measured: Measured
    driver: RunStarted | None
    end: EndReason | None
    stop_reason: StopReason | None
    last_event_at: float | None
    closed_s: float


class Fold:
    """The state of a run, and what a report says besides, folded from its events.

    Parameters
    ----------
    plan
        The quanta.

    Notes
    -----
    It knows nothing of the policy: events say whether another attempt follows.
    """

    def __init__(self, plan: Plan) -> None:
        n_labels = len(plan.labels)
        self._plan = plan
        self.scheduler = RestorableScheduler(plan)
        self._follow = self.scheduler.apply
        self.driver: RunStarted | None = None
        self.end: EndReason | None = None
        self.stop_reason: StopReason | None = None
        self.last_event_at: float | None = None
        self._closed_s = 0.0
        self._endings: dict[int, list[Ending]] = {}  # of quanta that had an attempt end badly
        self._blocked: dict[int, int] = {}
        self._caveats: dict[int, int] = {}
        self._ingested = bytearray(len(plan))
        self._replaced: list[Counter[str]] = [Counter() for _ in range(n_labels)]
        self._executing = Executing()
        self._quantum_s = [0.0] * n_labels
        self._cpu_s = [0.0] * n_labels
        self._peak_rss_bytes: list[int | None] = [None] * n_labels
        self._wasted_cpu_s = [0.0] * n_labels
        self._wasted_unmeasured_s = [0.0] * n_labels
        # One number at a time is written to arrays of the standard library three times as fast as to numpy's.
        self._ok_cpu_s, self._ok_wall_s, self._peaks = (array("f", [nan]) * len(plan) for _ in range(3))
        self._notes: Mapping[type[Any], Callable[[Any], None]] = {
            AttemptStarted: self._note_started,
            AttemptSucceeded: self._note_succeeded,
            AttemptSkipped: self._note_succeeded,
            AttemptReturned: self._note_ending,
            OutputsIngested: self._note_ingested,
            RunStarted: self._note_run_started,
            RunReopened: self._note_reopened,
            RunEnded: self._note_run_ended,
            StopRequested: self._note_stop,
            WorkerEnded: self._note_worker_ended,
        }

    def expect_gaps(self) -> None:
        """Take in events from now on also where they do not follow from those before: lines were damaged."""
        self._follow = self.scheduler.follow

    def apply(self, event: Event) -> None:
        """Take in the next event; about 5 us.

        Raises
        ------
        qgexec.errors.IllegalEventError
            It does not follow from those before.
        """
        if isinstance(event, FailureEvent):
            self._apply_failure(event)
        else:
            self._follow(event)
            self._executing.apply(event)
            if (note := self._notes.get(type(event))) is not None:
                note(event)
        self.last_event_at = event.at

    @property
    def wall_s(self) -> float:
        """Time in which a driver had the run in hand, seconds."""
        return self._closed_s + self._open_s()

    def _open_s(self) -> float:
        if self.driver is None or self.end is not None or self.last_event_at is None:
            return 0.0
        return max(0.0, self.last_event_at - self.driver.at)

    def _apply_failure(self, event: FailureEvent) -> None:
        blocked_before = self.scheduler.counts()[State.BLOCKED]
        self._follow(event)
        if n_blocked := self.scheduler.counts()[State.BLOCKED] - blocked_before:
            self._blocked[event.index] = n_blocked
        began_at = self._executing.since(event.index)
        self._executing.apply(event)
        self._endings.setdefault(event.index, []).append(event)
        code = self._plan.label_codes[event.index]
        if isinstance(event, AttemptFailed):
            self._add_usage(event.outcome)
            self._wasted_cpu_s[code] += event.outcome.cpu_s
            return
        if not isinstance(event, AttemptTimedOut) and event.used_bytes is not None:
            self._add_peak(event.index, event.used_bytes)
        if began_at is not None:  # else the line that said it was damaged
            self._wasted_unmeasured_s[code] += max(0.0, event.at - began_at)

    def _note_started(self, event: AttemptStarted) -> None:
        if event.attempt > 1:  # what an earlier attempt left is no longer true
            self._caveats.pop(event.index, None)
            self._ingested[event.index] = 0

    def _note_succeeded(self, event: AttemptSucceeded | AttemptSkipped) -> None:
        outcome = event.outcome
        if outcome.caveats:
            self._caveats[outcome.index] = outcome.caveats
        self._ok_cpu_s[outcome.index] = outcome.cpu_s
        # To find that all was done before takes time; what a quantum takes, that does not say.
        if isinstance(event, AttemptSkipped):
            self._add_times(outcome)
        else:
            self._add_usage(outcome)
            self._ok_wall_s[outcome.index] = outcome.ended_at - outcome.started_at
        self._note_ending(event)

    def _note_ending(self, event: Ending) -> None:
        if (endings := self._endings.get(event.index)) is not None:
            endings.append(event)

    def _add_times(self, outcome: Outcome) -> None:
        code = self._plan.label_codes[outcome.index]
        self._quantum_s[code] += outcome.ended_at - outcome.started_at
        self._cpu_s[code] += outcome.cpu_s

    def _add_usage(self, outcome: Outcome) -> None:
        self._add_times(outcome)
        if outcome.peak_rss_bytes is not None:
            self._add_peak(outcome.index, outcome.peak_rss_bytes)

    def _add_peak(self, index: int, n_bytes: int) -> None:
        code = self._plan.label_codes[index]
        self._peak_rss_bytes[code] = max(n_bytes, self._peak_rss_bytes[code] or 0)
        if not self._peaks[index] >= n_bytes:  # also where it is NaN
            self._peaks[index] = n_bytes

    def _note_ingested(self, event: OutputsIngested) -> None:
        for index in event.indices:
            self._ingested[index] = 1

    def _note_run_started(self, event: RunStarted) -> None:
        self._closed_s += self._open_s()
        self.driver, self.end, self.stop_reason = event, None, None

    def _note_reopened(self, event: RunReopened) -> None:
        self._blocked.clear()
        for index in event.revoked:
            self._caveats.pop(index, None)
            self._ingested[index] = 0
            if not isnan(cpu_s := self._ok_cpu_s[index]):
                self._wasted_cpu_s[self._plan.label_codes[index]] += cpu_s
            self._ok_cpu_s[index] = self._ok_wall_s[index] = nan

    def _note_run_ended(self, event: RunEnded) -> None:
        if self.driver is not None:
            self._closed_s += max(0.0, event.at - self.driver.at)
        self.end = event.reason

    def _note_stop(self, event: StopRequested) -> None:
        self.stop_reason = event.reason

    def _note_worker_ended(self, event: WorkerEnded) -> None:
        if event.left is not None and event.task_label in self._plan.labels:
            self._replaced[self._plan.labels.index(event.task_label)][event.left] += 1

    def tasks(self) -> tuple[TaskReport, ...]:
        """Count the quanta of each task."""
        plan = self._plan
        n_labels = len(plan.labels)
        codes = np.asarray(plan.label_codes)
        ingested = np.bincount(codes[np.frombuffer(self._ingested, dtype=np.bool_)], minlength=n_labels)
        caveats: list[Counter[str]] = [Counter() for _ in range(n_labels)]
        for index, flags in self._caveats.items():
            caveats[plan.label_codes[index]].update(caveat_names(flags))
        measured = self._measured()
        running = [0] * n_labels
        for index in self.running():
            running[plan.label_codes[index]] += 1
        retried = [0] * n_labels
        for index, endings in self._endings.items():
            n_bad = sum(isinstance(event, FailureEvent) for event in endings)
            retried[plan.label_codes[index]] += n_bad - (self.scheduler.state(index) is State.FAILED)
        return tuple(
            TaskReport(
                label=label,
                n_quanta=sum(counts.values()),
                succeeded=counts[State.SUCCEEDED],
                skipped=counts[State.SKIPPED],
                failed=counts[State.FAILED],
                blocked=counts[State.BLOCKED],
                running=running[code],
                not_run=counts[State.WAITING] + counts[State.READY] + counts[State.RUNNING] - running[code],
                retried=retried[code],
                quantum_s=self._quantum_s[code],
                cpu_s=self._cpu_s[code],
                peak_rss_bytes=self._peak_rss_bytes[code],
                useful_cpu_s=max(0.0, round(self._cpu_s[code] - self._wasted_cpu_s[code], 6)),
                wasted_cpu_s=round(self._wasted_cpu_s[code] + self._wasted_unmeasured_s[code], 6),
                wasted_unmeasured_s=round(self._wasted_unmeasured_s[code], 6),
                memory=Spread.of(measured.peak_rss_bytes[codes == code]),
                wall=Spread.of(measured.wall_s[codes == code]),
                ingested=int(ingested[code]),
                caveats=dict(caveats[code]),
                workers_replaced=dict(self._replaced[code]),
            )
            for code, (label, counts) in enumerate(self.scheduler.counts_by_label().items())
        )

    def _measured(self) -> Measured:
        """Return what was measured, sharing the fold's memory."""
        return Measured(*(np.asarray(values) for values in (self._ok_cpu_s, self._ok_wall_s, self._peaks)))

    def ingested(self) -> npt.NDArray[np.bool_]:
        """Return for each quantum whether its outputs are in the registry; shape ``(n,)``."""
        return np.frombuffer(bytes(self._ingested), dtype=np.bool_)

    def measured(self) -> Measured:
        """Return what was measured of each quantum, up to now."""
        return self._measured().copy()

    def caveats(self) -> dict[int, tuple[str, ...]]:
        """Return the names of the caveats of quanta that succeeded with some, by index."""
        return {index: tuple(caveat_names(flags)) for index, flags in self._caveats.items()}

    def running(self) -> dict[int, float]:
        """Return by index since when quanta run, UNIX seconds; the one that has run longest first."""
        state = self.scheduler.state  # where lines are damaged it knows better
        found = self._executing.running()
        return {index: since for index, since in found.items() if state(index) is State.RUNNING}

    def hold_back(self, indices: Collection[int]) -> None:
        """Take it that these quanta, which a model has in hand, wait behind others."""
        self._executing.hold_back(indices)

    def endings(self, index: int) -> Sequence[Ending]:
        """Return what ended the attempts at a quantum, in order; nothing if none of them ended badly."""
        return tuple(self._endings.get(index, ()))

    def troubled(self, files: KeptFiles) -> tuple[TroubledQuantum, ...]:
        """Describe the quanta of which an attempt ended badly, in the order of their indices.

        Parameters
        ----------
        files
            Knows which files were kept of attempts.
        """
        return tuple(
            TroubledQuantum(
                index=index,
                quantum_id=self._plan.quantum_id(index),
                task_label=self._plan.label(index),
                data_id=self._plan.data_id(index),
                state=self.scheduler.state(index),
                attempts=tuple(attempt_record(event, files) for event in endings),
                n_blocked=self._blocked.get(index, 0),
            )
            for index, endings in sorted(self._endings.items())
        )

    def state(self) -> FoldState:
        """Return all that was folded up to now."""
        states, attempts = self.scheduler.save()
        return FoldState(
            states=states,
            attempts=attempts,
            ingested=bytes(self._ingested),
            caveats=dict(self._caveats),
            blocked=dict(self._blocked),
            replaced=[dict(each) for each in self._replaced],
            executing=self._executing.state(),
            endings=[event for endings in self._endings.values() for event in endings],
            quantum_s=tuple(self._quantum_s),
            cpu_s=tuple(self._cpu_s),
            peak_rss_bytes=tuple(self._peak_rss_bytes),
            wasted_cpu_s=tuple(self._wasted_cpu_s),
            wasted_unmeasured_s=tuple(self._wasted_unmeasured_s),
            measured=self.measured(),
            driver=self.driver,
            end=self.end,
            stop_reason=self.stop_reason,
            last_event_at=self.last_event_at,
            closed_s=self._closed_s,
        )

    @classmethod
    def restored(cls, plan: Plan, state: FoldState) -> Fold:
        """Return a fold that goes on where another of the same plan was.

        Raises
        ------
        ValueError
            The state is not one of this plan.
        """
        fold = cls(plan)
        n_quanta, n_labels = len(plan), len(plan.labels)
        wasted = (state.wasted_cpu_s, state.wasted_unmeasured_s)
        by_task = (state.quantum_s, state.cpu_s, state.peak_rss_bytes, state.replaced, *wasted)
        numbers = (state.measured.cpu_s, state.measured.wall_s, state.measured.peak_rss_bytes)
        by_quantum = (state.ingested, *numbers)
        if {len(values) for values in by_quantum} != {n_quanta} or {len(each) for each in by_task} != {
            n_labels
        }:
            raise ValueError("it is the state of another plan")
        known = range(n_quanta)
        in_hand = (*state.executing.in_hand, *state.executing.began)
        indices = (*state.caveats, *state.blocked, *in_hand, *(event.index for event in state.endings))
        if not all(index in known for index in indices):
            raise ValueError("it speaks of quanta that the plan does not have")
        fold.scheduler.restore(state.states, state.attempts)
        if state.stop_reason is not None:
            fold.scheduler.apply(StopRequested(0.0, state.stop_reason))
        for event in state.endings:
            fold._endings.setdefault(event.index, []).append(event)
        fold._blocked, fold._caveats = dict(state.blocked), dict(state.caveats)
        fold._ingested = bytearray(state.ingested)
        fold._replaced = [Counter(each) for each in state.replaced]
        fold._executing = Executing(state.executing)
        fold._quantum_s, fold._cpu_s = list(state.quantum_s), list(state.cpu_s)
        fold._peak_rss_bytes = list(state.peak_rss_bytes)
        fold._wasted_cpu_s, fold._wasted_unmeasured_s = (list(values) for values in wasted)
        fold._ok_cpu_s, fold._ok_wall_s, fold._peaks = (array("f", values.tobytes()) for values in numbers)
        fold.driver, fold.end, fold.stop_reason = state.driver, state.end, state.stop_reason
        fold.last_event_at, fold._closed_s = state.last_event_at, state.closed_s
        return fold


def caveat_names(flags: int) -> Iterable[str]:
    """Yield the names of the caveats that flags stand for; see `CAVEATS`."""
    for bit in range(flags.bit_length()):
        if flags & (flag := 1 << bit):
            yield CAVEATS.get(flag, f"FLAG_{flag}")


_NOT_ADDED_UP = {
    "label",
    "peak_rss_bytes",
    "caveats",
    "workers_replaced",
    "memory",
    "requested_memory_bytes",
    "wall",
}


def total_of(tasks: Sequence[TaskReport]) -> TaskReport:
    """Return all tasks together."""
    numbers = {
        f.name: sum(getattr(task, f.name) for task in tasks)
        for f in fields(TaskReport)
        if f.name not in _NOT_ADDED_UP
    }
    return TaskReport(
        label="total",
        peak_rss_bytes=max((t.peak_rss_bytes for t in tasks if t.peak_rss_bytes is not None), default=None),
        caveats=dict(sum((Counter(task.caveats) for task in tasks), Counter())),
        workers_replaced=dict(sum((Counter(task.workers_replaced) for task in tasks), Counter())),
        **numbers,
    )
