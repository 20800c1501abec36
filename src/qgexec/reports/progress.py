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
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    Event,
    FailureEvent,
    RunReopened,
    RunStarted,
)
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
    """Time until the last quantum ends, seconds; `None` while nothing is known about it."""

    @property
    def total(self) -> LabelProgress:
        """The sum over all tasks."""
        names = ("total", "running", "succeeded", "skipped", "failed", "blocked", "retried")
        return LabelProgress("", *(sum(getattr(row, name) for row in self.labels) for name in names))


class _Tally:
    """Running numbers of one task."""

    __slots__ = ("blocked", "busy_s", "failed", "retried", "running", "skipped", "succeeded", "timed")

    def __init__(self, counts: Mapping[State, int]) -> None:
        self.running = counts.get(State.RUNNING, 0)
        self.succeeded = counts.get(State.SUCCEEDED, 0)
        self.skipped = counts.get(State.SKIPPED, 0)
        self.failed = counts.get(State.FAILED, 0)
        self.blocked = counts.get(State.BLOCKED, 0)
        self.retried = 0
        self.timed = 0  # attempts that were executed to an end of their own
        self.busy_s = 0.0  # the time they took


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

    def apply(self, event: Event) -> None:
        """Take one event into account; about a microsecond."""
        match event:
            case AttemptStarted():
                if self._first_at is None:
                    self._first_at = event.at
                self._tally(event.index).running += 1
            case AttemptReturned():
                self._tally(event.index).running -= 1
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

        Notes
        -----
        The time left is the work left (per task: quanta left times the mean time of those done, or of all
        tasks where none was done) over the speed so far (time spent in quanta per time elapsed), which has
        the number of workers and all overhead in it. Skipped quanta took no time worth counting.
        """
        labels = tuple(
            LabelProgress(
                label, total, row.running, row.succeeded, row.skipped, row.failed, row.blocked, row.retried
            )
            for (label, total), row in zip(self._totals.items(), self._tallies, strict=True)
        )
        elapsed = max(now - self._first_at, 0.0) if self._first_at is not None else 0.0
        recent = sum(count for second, count in self._recent if second > now - RATE_WINDOW_S)
        window = min(max(elapsed, 1.0), RATE_WINDOW_S)
        return ProgressView(labels, elapsed, recent / window, self._eta_s(labels, elapsed))

    def _eta_s(self, labels: tuple[LabelProgress, ...], elapsed_s: float) -> float | None:
        if all(row.ended == row.total for row in labels):
            return 0.0
        timed = sum(row.timed for row in self._tallies)
        busy_s = sum(row.busy_s for row in self._tallies)
        if not timed or busy_s <= 0 or elapsed_s <= 0:
            return None
        left_s = sum(
            (label.total - label.ended) * (row.busy_s / row.timed if row.timed else busy_s / timed)
            for label, row in zip(labels, self._tallies, strict=True)
        )
        return left_s / (busy_s / elapsed_s)

    def _tally(self, index: int) -> _Tally:
        return self._tallies[self._plan.label_codes[index]]

    def _end_well(self, event: AttemptSucceeded | AttemptSkipped) -> None:
        tally = self._tally(event.index)
        tally.running -= 1
        self._marks[event.index] = 1
        self._count_recent(int(event.at))
        if isinstance(event, AttemptSkipped):
            tally.skipped += 1
        else:
            tally.succeeded += 1
            self._add_time(tally, event)

    def _end_badly(self, event: FailureEvent) -> None:
        tally = self._tally(event.index)
        tally.running -= 1
        self._count_recent(int(event.at))
        if isinstance(event, AttemptFailed):
            self._add_time(tally, event)
        if event.retried:
            tally.retried += 1
            return
        tally.failed += 1
        blocked = self._plan.mark_descendants(event.index, self._marks, 1)
        self._blocked += blocked
        for descendant in blocked:
            self._tally(descendant).blocked += 1

    @staticmethod
    def _add_time(tally: _Tally, event: AttemptSucceeded | AttemptFailed) -> None:
        tally.timed += 1
        tally.busy_s += event.outcome.ended_at - event.outcome.started_at

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
