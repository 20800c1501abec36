"""Tells of the quanta that an execution model has in hand which are being executed, folded from events.

A model that sends quanta ahead has more in hand than it executes: each of its workers executes one, and
others wait behind it. It tells when a worker begins with its first quantum, and of each
quantum that has been executed for a while (`qgexec.events.AttemptBegan`). What is not told of is either too
short for that, or waits: as many of those count as executing as there are workers that have begun
and are not known to be busy with another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import get_args

from qgexec.events import (
    AttemptBegan,
    AttemptEvent,
    AttemptStarted,
    Event,
    RunStarted,
    WorkerEnded,
)

__all__ = ["ENDS", "Executing", "ExecutingState"]

ENDS = frozenset(get_args(AttemptEvent)) - {AttemptStarted}
"""Types of events that end an attempt."""


@dataclass(frozen=True, slots=True)
class ExecutingState:
    """All that an `Executing` holds, as plain values."""

    in_hand: Mapping[int, float]
    """When each quantum was handed to the model, in that order; UNIX seconds, here and below."""
    began: Mapping[int, tuple[float, int]]
    """When a worker began with it, and the worker's number, where that was told."""
    workers: Collection[int]
    """Workers that have begun with a quantum, and live."""
    last_end_at: float
    """When the last attempt ended."""
    sends_ahead: bool
    """The model has more in hand than it executes."""


class Executing:
    """Which quanta are being executed, and since when; about 0.4 us for an event.

    Parameters
    ----------
    state
        Where another one was; by default nothing is in hand.
    """

    def __init__(self, state: ExecutingState | None = None) -> None:
        self._in_hand = dict(state.in_hand) if state else {}
        self._began = dict(state.began) if state else {}
        self._workers = set(state.workers) if state else set()
        self._last_end_at = state.last_end_at if state else 0.0
        self._waiting: frozenset[int] = frozenset()
        self.sends_ahead = state.sends_ahead if state else False
        """The model has more in hand than it executes."""

    def apply(self, event: Event) -> None:
        """Take in the next event; one that does not follow from those before changes nothing here."""
        # By type, and in this order: two of these for each quantum are nearly all that a journal holds.
        kind = type(event)
        if kind in ENDS:
            index: int = event.index  # type: ignore[union-attr]  # as in the scheduler
            self._in_hand.pop(index, None)
            if self._began:
                self._began.pop(index, None)
            self._last_end_at = max(self._last_end_at, event.at)
        elif isinstance(event, AttemptStarted):
            self._in_hand[event.index] = event.at
        elif isinstance(event, AttemptBegan):
            if event.index in self._in_hand:
                self._began[event.index] = (event.at, event.worker)
            self._workers.add(event.worker)
        elif isinstance(event, WorkerEnded):
            self._forget(event.worker)
        elif isinstance(event, RunStarted):
            self.sends_ahead = event.sends_ahead
            self._workers.clear()
            self._began.clear()

    def _forget(self, worker: int) -> None:
        self._workers.discard(worker)
        for index in [index for index, (_, of) in self._began.items() if of == worker]:
            del self._began[index]

    def hold_back(self, indices: Collection[int]) -> None:
        """Take it that these wait behind others, as whoever asked the model's own books has found."""
        self._waiting = frozenset(indices)

    def __len__(self) -> int:
        """Return how many quanta are being executed."""
        if not self.sends_ahead:
            n_waiting = len(self._waiting & self._in_hand.keys()) if self._waiting else 0
            return len(self._in_hand) - n_waiting
        return max(len(self._began), min(len(self._in_hand), len(self._workers)))

    def since(self, index: int) -> float | None:
        """Return when a quantum in hand began, as far as is known; `None` of one that is not in hand."""
        if (began := self._began.get(index)) is not None:
            return began[0]
        sent_at = self._in_hand.get(index)
        if sent_at is None or not self.sends_ahead:
            return sent_at
        return max(sent_at, self._last_end_at)  # what it waited for, if it did, has ended by then

    def running(self) -> dict[int, float]:
        """Return since when quanta are executed, by index; the one that has run longest first."""
        if self.sends_ahead:
            others = (index for index in self._in_hand if index not in self._began)
            chosen = [*self._began, *islice(others, len(self) - len(self._began))]
        else:
            chosen = [index for index in self._in_hand if index not in self._waiting]
        found = [(index, self.since(index) or 0.0) for index in chosen]
        return dict(sorted(found, key=lambda item: item[1]))

    def state(self) -> ExecutingState:
        """Return all that it holds."""
        return ExecutingState(
            in_hand=dict(self._in_hand),
            began=dict(self._began),
            workers=tuple(sorted(self._workers)),
            last_end_at=self._last_end_at,
            sends_ahead=self.sends_ahead,
        )
