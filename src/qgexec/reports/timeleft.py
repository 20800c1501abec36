"""Says how long a run still takes, from what its quanta have taken so far; knows neither events nor clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qgexec.scheduling.plan import Plan

__all__ = ["Duration", "Estimate", "TimeLeft"]

_WARM_UP_S = 20.0
"""The first quantum of a process imports what it needs: shorter ones say little of those that follow."""

_ENOUGH = 2
"""Quanta of a task that must have been measured, if it has as many."""

_BASIS = 0.5
"""Part of the quanta that are left of which it must be known how long they take, for anything to be said."""

_ENOUGH_COLD = 8
"""The same of such first ones, where there are no others: as in batch jobs of one quantum each."""


@dataclass(slots=True)
class Duration:
    """How long the quanta of one task took."""

    n: int = 0
    sum_s: float = 0.0
    longest_s: float = 0.0

    def add(self, took_s: float) -> None:
        """Take in one more."""
        self.n += 1
        self.sum_s += took_s
        self.longest_s = max(self.longest_s, took_s)

    @property
    def mean_s(self) -> float:
        """Their mean, seconds."""
        return self.sum_s / self.n

    def rest_s(self, elapsed_s: float) -> float:
        """Return what is to be expected of one that has run for so long: after the longest, as long again."""
        if elapsed_s <= self.mean_s:
            return self.mean_s - elapsed_s
        return self.longest_s - elapsed_s if elapsed_s < self.longest_s else elapsed_s


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is to be expected."""

    seconds: float | None
    """Time until the last quantum ends; `None` where there is no basis to say it."""

    unmeasured: tuple[str, ...] = ()
    """Tasks of which it is not known how long they take: their time comes on top of that."""


class TimeLeft:
    """Measures quanta of each task, and adds up what is left.

    Parameters
    ----------
    plan
        The quanta.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._totals = tuple(plan.count_by_label().values())
        self._warm = [Duration() for _ in plan.labels]
        self._cold = [Duration() for _ in plan.labels]
        self._processes: set[tuple[str, int]] = set()
        self._paths: tuple[list[set[int]], list[int]] | None = None
        self.busy_s = 0.0
        """Time of all that was measured, added up, seconds."""

    def add(self, label_code: int, took_s: float, process: tuple[str, int]) -> None:
        """Take in how long a quantum took, and on which host and in which process."""
        is_cold = process not in self._processes and took_s < _WARM_UP_S
        self._processes.add(process)
        (self._cold if is_cold else self._warm)[label_code].add(took_s)
        self.busy_s += took_s

    def estimate(self, left: Sequence[int], running: Mapping[int, Sequence[float]], speed: float) -> Estimate:
        """Return the time until the last quantum ends: the work shared out, or the longest chain of tasks.

        Parameters
        ----------
        left
            Quanta that have not ended, those that run included, of each task in the plan's order.
        running
            By code of the task, for how long each of its quanta has run, seconds.
        speed
            Quanta that are executed at a time, less what is lost between them.
        """
        work_s, stages, unmeasured = 0.0, [0.0] * len(left), []
        for code, n_left in enumerate(left):
            if not n_left:
                continue
            if (duration := self._duration(code)) is None:
                unmeasured.append(code)
                continue
            rests = [duration.rest_s(elapsed_s) for elapsed_s in running.get(code, ())]
            n_waiting = max(0, n_left - len(rests))
            work_s += sum(rests) + n_waiting * duration.mean_s
            stages[code] = max(self._stage_s(code, n_waiting, duration), max(rests, default=0.0))
        labels = tuple(self._plan.labels[code] for code in unmeasured)
        n_unknown = sum(left[code] for code in unmeasured)
        if not any(left):
            return Estimate(0.0)
        if speed <= 0 or n_unknown > (1 - _BASIS) * sum(left):
            return Estimate(None, labels)
        return Estimate(max(work_s / speed, self._longest_path_s(stages)), labels)

    def _duration(self, code: int) -> Duration | None:
        """Return what is known of a task, if it is enough to go by."""
        warm, cold = self._warm[code], self._cold[code]
        if warm.n >= _ENOUGH or (warm.n and self._totals[code] <= _ENOUGH):
            return warm
        return cold if not warm.n and cold.n >= _ENOUGH_COLD else None

    def _stage_s(self, code: int, n_waiting: int, duration: Duration) -> float:
        """Return how long quanta of a task take that wait for each other; those of most tasks do not."""
        _, depths = self._known_paths()
        return math.ceil(depths[code] * n_waiting / max(1, self._totals[code])) * duration.mean_s

    def _longest_path_s(self, stages: Sequence[float]) -> float:
        following, _ = self._known_paths()
        lengths: dict[int, float] = {}

        def length(code: int) -> float:
            if code not in lengths:
                lengths[code] = stages[code] + max(map(length, following[code]), default=0.0)
            return lengths[code]

        return max(map(length, range(len(stages))), default=0.0)

    def _known_paths(self) -> tuple[list[set[int]], list[int]]:
        """Return which tasks wait for each, and how many quanta of one task wait for each other in a row.

        O(edges), once, and only if somebody asks.
        """
        if self._paths is None:
            arrays = self._plan.to_arrays()
            codes = np.asarray(self._plan.label_codes)
            offsets = arrays["successor_offsets"].astype(np.int64)
            before = np.repeat(np.arange(len(codes)), offsets[1:] - offsets[:-1])
            after = arrays["successor_targets"]
            n_labels = len(self._plan.labels)
            pairs = np.unique(codes[before].astype(np.int64) * n_labels + codes[after])
            following: list[set[int]] = [set() for _ in range(n_labels)]
            for pair in pairs.tolist():
                if pair // n_labels != pair % n_labels:
                    following[pair // n_labels].add(pair % n_labels)
            within = codes[before] == codes[after]
            chains = zip(before[within].tolist(), after[within].tolist(), strict=True)
            self._paths = (_without_circles(following), self._depths(chains))
        return self._paths

    def _depths(self, chains: Iterable[tuple[int, int]]) -> list[int]:
        depths = [1] * len(self._plan.labels)
        place: dict[int, int] = {}
        for before, after in chains:  # in the plan's order: what is before a quantum is known when it comes
            place[after] = max(place.get(after, 1), place.get(before, 1) + 1)
        for index, depth in place.items():
            code = self._plan.label_codes[index]
            depths[code] = max(depths[code], depth)
        return depths


def _without_circles(following: Sequence[set[int]]) -> list[set[int]]:
    """Return what follows upon each task without edges that lead back: ordering may be added across tasks."""
    state = [0] * len(following)  # 1 while what follows is looked at, 2 afterwards
    kept: list[set[int]] = [set() for _ in following]

    def visit(code: int) -> None:
        state[code] = 1
        for target in sorted(following[code]):
            if state[target] == 1:
                continue
            kept[code].add(target)
            if not state[target]:
                visit(target)
        state[code] = 2

    for code in range(len(following)):
        if not state[code]:
            visit(code)
    return kept
