"""How far a run is: events folded into numbers to show; knows no clock and no screen.

It needs no scheduler, so that whoever reads a journal can show the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    Event,
    FailureEvent,
    RunReopened,
    RunStarted,
)
from qgexec.reports.executing import ENDS, Executing
from qgexec.reports.timeleft import TimeLeft
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.states import State

__all__ = ["LabelProgress", "Progress", "ProgressView"]

RATE_WINDOW_S = 60
"""Time over which the rate is averaged, seconds."""


@dataclass(frozen=True, slots=True)
class LabelProgress:
    """How far the quanta of one task are."""

    label: str
    """Task label."""
    total: int
    running: int = 0
    succeeded: int = 0
    skipped: int = 0
    failed: int = 0
    blocked: int = 0
    retried: int = 0
    """Attempts that ended badly and were followed by another."""

    @property
    def done(self) -> int:
        """Number of quanta that succeeded, in this run or before it."""
        return self.succeeded + self.skipped

    @property
    def ended(self) -> int:
        """Number of quanta of which nothing more is to be expected."""
        return self.done + self.failed + self.blocked


@dataclass(frozen=True, slots=True)
class ProgressView:
    """How far a run is at one moment."""

    labels: tuple[LabelProgress, ...]
    """Each task, in the order of the graph."""

    elapsed_s: float
    """Time since the first attempt started, less that in which no driver had the run, seconds; 0 before."""

    rate_per_s: float
    """Attempts that ended per second, over the last `RATE_WINDOW_S` seconds."""

    eta_s: float | None
    """Time until the last quantum ends, seconds; `None` where there is no basis to say it."""

    unmeasured: tuple[str, ...] = ()
    """Tasks with quanta left of which it is not known how long they take: that comes on top of `eta_s`."""

    @property
    def total(self) -> LabelProgress:
        """The sum over all tasks."""
        names = ("total", "running", "succeeded", "skipped", "failed", "blocked", "retried")
        return LabelProgress("", *(sum(getattr(row, name) for row in self.labels) for name in names))


class _Tally:
    """Running numbers of one task."""

    __slots__ = ("blocked", "earlier", "failed", "retried", "skipped", "succeeded")

    def __init__(self, counts: Mapping[State, int]) -> None:
        self.earlier = counts.get(State.RUNNING, 0)  # what ran before the first event, and still does
        self.succeeded = counts.get(State.SUCCEEDED, 0)
        self.skipped = counts.get(State.SKIPPED, 0)
        self.failed = counts.get(State.FAILED, 0)
        self.blocked = counts.get(State.BLOCKED, 0)
        self.retried = 0

    def ended(self) -> tuple[int, int, int, int]:
        """Return how many succeeded, were skipped, failed and are blocked."""
        return self.succeeded, self.skipped, self.failed, self.blocked


class Progress:
    """Folds the events of a run into a `ProgressView`.

    Events are taken as they come: that they are legal is for `qgexec.scheduling.scheduler.Scheduler`
    to check.

    Parameters
    ----------
    plan
        The quanta of the run.
    counts
        For each task label the number of its quanta in each state, where the run is gone on with.
    """

    def __init__(self, plan: Plan, counts: Mapping[str, Mapping[State, int]] | None = None) -> None:
        self._plan = plan
        self._totals = plan.count_by_label()
        self._tallies = [_Tally((counts or {}).get(label, {})) for label in plan.labels]
        self._marks = bytearray(len(plan))  # of quanta that failures behind them no longer block
        self._blocked: list[int] = []
        self._first_at: float | None = None
        self._recent: deque[tuple[int, int]] = deque()  # whole second, attempts that ended in it
        self._executing = Executing()
        self._time_left = TimeLeft(plan)
        self._n_executed = 0
        self._most = 0  # most of them at a time
        self._slot_s = 0.0  # that number, added up over time
        self._seen_at = 0.0  # up to when

    def apply(self, event: Event) -> None:
        """Take one event into account; about two microseconds."""
        self._note_executing(event)
        match event:
            case AttemptStarted():
                if self._first_at is None:
                    self._first_at = event.at
            case AttemptSucceeded() | AttemptSkipped():
                self._end_well(event)
            case AttemptFailed() | AttemptLost() | AttemptTimedOut() | AttemptOutOfMemory():
                self._end_badly(event)
            case RunReopened():
                self._reopen(event)
            case RunStarted():
                self._pass_over_pause(event.at)
            case _:
                pass

    def view(self, now: float) -> ProgressView:
        """Return how far the run is.

        Parameters
        ----------
        now
            UNIX seconds.
        """
        running = self._running(now)
        labels = tuple(
            LabelProgress(label, total, len(those) + row.earlier, *row.ended(), row.retried)
            for (label, total), row, those in zip(self._totals.items(), self._tallies, running, strict=True)
        )
        elapsed = max(now - self._first_at, 0.0) if self._first_at is not None else 0.0
        recent = sum(count for second, count in self._recent if second > now - RATE_WINDOW_S)
        window = min(max(elapsed, 1.0), RATE_WINDOW_S)
        left = [row.total - row.ended for row in labels]
        left_s = self._time_left.estimate(left, dict(enumerate(running)), self._speed(running, now))
        return ProgressView(labels, elapsed, recent / window, left_s.seconds, left_s.unmeasured)

    def _running(self, now: float) -> list[list[float]]:
        """Return for each task for how long those of its quanta have run that are executed, seconds."""
        running: list[list[float]] = [[] for _ in self._tallies]
        for index, since in self._executing.running().items():
            running[self._plan.label_codes[index]].append(max(0.0, now - since))
        return running

    def _speed(self, running: list[list[float]], now: float) -> float:
        """Return how many quanta are executed at a time, less the part of it that is lost between them.

        Those at a time are the most that there were with this driver: where fewer run, others wait for them,
        which is for the longest path to say.
        """
        slot_s = self._slot_s + max(0.0, now - self._seen_at) * self._n_executed
        busy_s = self._time_left.busy_s + sum(map(sum, running))
        return self._most * min(1.0, busy_s / slot_s) if slot_s > 0 else 0.0

    def _tally(self, index: int) -> _Tally:
        return self._tallies[self._plan.label_codes[index]]

    def _end_well(self, event: AttemptSucceeded | AttemptSkipped) -> None:
        tally = self._tally(event.index)
        self._marks[event.index] = 1
        self._count_recent(int(event.at))
        if isinstance(event, AttemptSkipped):
            tally.skipped += 1
        else:
            tally.succeeded += 1
            self._add_time(event)

    def _end_badly(self, event: FailureEvent) -> None:
        tally = self._tally(event.index)
        self._count_recent(int(event.at))
        if isinstance(event, AttemptFailed):
            self._add_time(event)
        if event.retried:
            tally.retried += 1
            return
        tally.failed += 1
        blocked = self._plan.mark_descendants(event.index, self._marks, 1)
        self._blocked += blocked
        for descendant in blocked:
            self._tally(descendant).blocked += 1

    def _note_executing(self, event: Event) -> None:
        executing, kind = self._executing, type(event)
        if event.at > self._seen_at:
            if kind is not RunStarted:  # before that there was no driver
                self._slot_s += (event.at - self._seen_at) * self._n_executed
            self._seen_at = event.at
        if kind in ENDS and executing.since(event.index) is None:  # type: ignore[union-attr]
            self._tally(event.index).earlier -= 1  # type: ignore[union-attr]
        executing.apply(event)
        self._n_executed = len(executing)
        if self._n_executed > self._most or kind is RunStarted:
            self._most = self._n_executed

    def _add_time(self, event: AttemptSucceeded | AttemptFailed) -> None:
        outcome = event.outcome
        took_s = outcome.ended_at - outcome.started_at
        self._time_left.add(self._plan.label_codes[event.index], took_s, (outcome.host, outcome.pid))

    def _reopen(self, event: RunReopened) -> None:
        for tally in self._tallies:
            tally.failed = tally.blocked = 0
        for index in self._blocked:
            self._marks[index] = 0
        self._blocked.clear()
        for index in set(event.revoked):
            self._marks[index] = 0
            self._tally(index).succeeded -= 1

    def _pass_over_pause(self, until: float) -> None:
        """Leave out the time from the last end of an attempt until another driver came."""
        if self._first_at is not None:
            since = self._recent[-1][0] + 1 if self._recent else self._first_at
            self._first_at += max(until - since, 0.0)

    def _count_recent(self, second: int) -> None:
        recent = self._recent
        if recent and recent[-1][0] >= second:
            recent[-1] = (recent[-1][0], recent[-1][1] + 1)
        else:
            recent.append((second, 1))
        while recent[0][0] <= second - RATE_WINDOW_S:
            recent.popleft()
