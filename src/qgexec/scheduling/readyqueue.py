"""Quanta that are ready and are chosen from together, the best first; knows nothing of what is free."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from heapq import heappop, heappush

import numpy as np

from qgexec.quantum import Resources
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.states import State

__all__ = ["ReadyQueue", "keys_of"]

_READY = tuple(State).index(State.READY)


def keys_of(plan: Plan) -> array[int]:
    """Return for each quantum one integer: the smaller, the better.

    The quantum with the longer remaining path is better, then the one with the smaller
    index: ``(longest - path length) * n + index``.
    """
    lengths = np.asarray(plan.path_lengths(), dtype=np.int64)
    keys = array("q")
    if len(plan):
        keys.frombytes(((lengths.max() - lengths) * len(plan) + np.arange(len(plan))).tobytes())
    return keys


class ReadyQueue:
    """Ready quanta, best first: all that ask for the same resources, or all of one serial label.

    Quanta are kept as keys (see `keys_of`). One that is not ready any more, or asks for more now,
    stays here until its key comes to the top; one that was returned may be here twice, but equal
    keys come to the top one after another.

    Parameters
    ----------
    request
        What each of them asks for.
    states
        The scheduler's states, by index.
    grown
        What quanta ask for, by index, that ask for something else than at first.
    alone
        They are of a serial label: one that asks for something else stays in this queue.
    """

    __slots__ = ("_grown", "_keys", "_moved", "_n_quanta", "_states", "_taken", "alone", "request")

    def __init__(
        self, request: Resources, states: bytearray, grown: Mapping[int, Resources], *, alone: bool = False
    ) -> None:
        self.request = request
        self.alone = alone
        self._states = states
        self._n_quanta = len(states)
        self._grown = grown
        self._moved = {} if alone else grown
        self._keys: list[int] = []
        self._taken: list[int] = []

    def memory_of(self, key: int) -> int:
        """Return how much memory a quantum of this queue asks for, in bytes; 0 where it does not say."""
        request = self.request
        if self.alone:
            request = self._grown.get(key % self._n_quanta, request)
        return request.memory_bytes or 0

    def add(self, key: int) -> None:
        """Add a quantum that is ready now."""
        heappush(self._keys, key)

    def begin(self) -> int | None:
        """Put back what was taken at the last selection and not started then; return the best key."""
        states, n_quanta = self._states, self._n_quanta
        for key in self._taken:
            if states[key % n_quanta] == _READY:
                heappush(self._keys, key)
        self._taken.clear()
        return self._best()

    def take(self) -> int | None:
        """Take the best key, and return the next best."""
        self._taken.append(heappop(self._keys))
        return self._best()

    def _best(self) -> int | None:
        keys, taken, states, n_quanta = self._keys, self._taken, self._states, self._n_quanta
        moved = self._moved
        while keys:
            key = keys[0]
            index = key % n_quanta
            if (
                states[index] == _READY
                and not (taken and taken[-1] == key)
                and not (moved and moved.get(index, self.request) != self.request)
            ):
                return key
            heappop(keys)
        return None
