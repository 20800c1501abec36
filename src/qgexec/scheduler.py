"""What may run now: one table of states, folded over events; knows no clock, no process and no file.

`Scheduler.apply` is the only way a state changes, as the tables of
`qgexec.states` say; an event that they do not have raises and changes nothing.
So the same events always give the same states, whether they come from a
running model or from a journal.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import cast

import numpy as np

from qgexec.errors import IllegalEventError, UsageError
from qgexec.events import (
    AttemptEvent,
    Event,
    OutputsIngested,
    RunEnded,
    RunStarted,
    StopReason,
    StopRequested,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.plan import Plan
from qgexec.policy import Policy
from qgexec.quantum import Attempt, Resources
from qgexec.states import FINAL_STATES, TRANSITIONS, State, state_diagram

__all__ = ["FINAL_STATES", "TRANSITIONS", "Scheduler", "State", "state_diagram"]


_EVENTS_OF_THE_RUN = frozenset(
    {RunStarted, RunEnded, StopRequested, WorkerStarted, WorkerEnded, OutputsIngested}
)

# A state in a bytearray is its position in State; an illegal move is a number that is no position.
_STATES = tuple(State)
_N_STATES = len(_STATES)
_ILLEGAL = _N_STATES
_WAITING, _READY, _RUNNING, _SUCCEEDED, _SKIPPED, _FAILED, _BLOCKED = range(_N_STATES)


def _compile_moves() -> dict[type[Event], bytes]:
    """Return for each type of event the code of the next state at the code of each state."""
    moves: dict[type[Event], bytes] = {}
    for kind in dict.fromkeys(kind for _, kind in TRANSITIONS):
        following = (TRANSITIONS.get((state, kind)) for state in _STATES)
        moves[kind] = bytes(_ILLEGAL if state is None else _STATES.index(state) for state in following)
    return moves


_MOVES = _compile_moves()


class _Queue:
    """Ready quanta that ask for the same resources, best first.

    Quanta are kept as keys (see `Scheduler`). A quantum that was started stays here until
    its key comes to the top; one that was returned may be here twice, but equal keys
    come to the top one after another.
    """

    __slots__ = ("_keys", "_n_quanta", "_states", "_taken", "request")

    def __init__(self, request: Resources, states: bytearray) -> None:
        self.request = request
        self._states = states
        self._n_quanta = len(states)
        self._keys: list[int] = []
        self._taken: list[int] = []

    def add(self, key: int) -> None:
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
        while keys:
            key = keys[0]
            if states[key % n_quanta] == _READY and not (taken and taken[-1] == key):
                return key
            heappop(keys)
        return None


class Scheduler:
    """The states of all quanta of a plan, and the decision which of them to start.

    Parameters
    ----------
    plan
        The quanta and their order.
    policy
        What to do about failures.
    requests
        For each task label what one of its quanta asks for; one core and no
        memory limit where a label is not named.
    serial_labels
        Labels of tasks of which only one quantum may run at a time, beside the others.
    timeout_s
        Wall time limit of every attempt; `None` for no limit.

    Raises
    ------
    qgexec.errors.UsageError
        A request has no cores or a negative amount of memory.

    Notes
    -----
    Of two ready quanta the one with the longer remaining path is better, then the one with
    the smaller index. Both are in one integer, the quantum's key: ``(longest - path length) * n + index``.

    Memory is 17 bytes per quantum, besides the plan, and about 40 more for each that is ready.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        policy: Policy,
        requests: Mapping[str, Resources] | None = None,
        serial_labels: Collection[str] = (),
        timeout_s: float | None = None,
    ) -> None:
        self._plan = plan
        self._policy = policy
        self._timeout_s = timeout_s
        self._states = bytearray(len(plan))
        self._missing = plan.prerequisite_counts()
        self._attempts = array("i", [0]) * len(plan)
        self._keys = _keys(plan)
        self._label_codes = plan.label_codes
        self._counts = [0] * (_N_STATES * len(plan.labels))
        self._n_ready = 0
        self._n_running = 0
        self._stopping: StopReason | None = None
        self._wanted_stop: StopReason | None = None
        self._checked: Event | None = None
        self._checked_state: int | None = None
        asked = {label: (requests or {}).get(label, Resources()) for label in plan.labels}
        _check_requests(asked)
        serial = [label in serial_labels for label in plan.labels]
        shared = {request: _Queue(request, self._states) for request in asked.values()}
        self._queues = [
            _Queue(request, self._states) if alone else shared[request]
            for request, alone in zip(asked.values(), serial, strict=True)
        ]
        self._serial = [(code, self._queues[code]) for code, alone in enumerate(serial) if alone]
        self._shared = [queue for queue in shared.values() if queue in self._queues]
        self._begin()

    def _begin(self) -> None:
        """Count all quanta as waiting, and make those without prerequisites ready."""
        for code, n_quanta in enumerate(self._plan.count_by_label().values()):
            self._counts[_N_STATES * code + _WAITING] = n_quanta
        for index in np.flatnonzero(np.asarray(self._missing) == 0).tolist():
            self._make_ready(index)

    @property
    def stopping(self) -> StopReason | None:
        """Why nothing more is started, or `None` while the run goes on; the first reason stands."""
        return self._stopping

    @property
    def finished(self) -> bool:
        """Nothing runs, and nothing more is to be started."""
        return not self._n_running and (self._stopping is not None or not self._n_ready)

    def wants_stop(self) -> StopReason | None:
        """Return why the policy wants the run to stop, until `StopRequested` is applied."""
        return self._wanted_stop if self._stopping is None else None

    def state(self, index: int) -> State:
        """Return the state of a quantum."""
        return _STATES[self._states[index]]

    def attempts(self, index: int) -> int:
        """Return the number of attempts at a quantum so far, the running one included."""
        return self._attempts[index]

    def running(self) -> list[int]:
        """Return the indices of all running quanta, ascending; a fast scan of one byte per quantum."""
        indices = []
        place = self._states.find(_RUNNING)
        while place >= 0:
            indices.append(place)
            place = self._states.find(_RUNNING, place + 1)
        return indices

    def counts(self) -> dict[State, int]:
        """Return the number of quanta in each state."""
        return {state: sum(self._counts[code::_N_STATES]) for code, state in enumerate(_STATES)}

    def counts_by_label(self) -> dict[str, dict[State, int]]:
        """Return for each task label the number of its quanta in each state."""
        rows = (self._counts[begin : begin + _N_STATES] for begin in range(0, len(self._counts), _N_STATES))
        return {
            label: dict(zip(_STATES, row, strict=True))
            for label, row in zip(self._plan.labels, rows, strict=True)
        }

    def check(self, event: Event) -> None:
        """Raise if `apply` would not accept this event; changes nothing.

        Raises
        ------
        qgexec.errors.IllegalEventError
            The quantum is not in a state that the table has for this event, there is no such
            quantum, or the event is about another attempt than the quantum is at.
        """
        self._checked_state = self._next_state(event)
        self._checked = event

    def apply(self, event: Event) -> None:
        """Change states as this event says: the only way they change.

        Raises
        ------
        qgexec.errors.IllegalEventError
            As `check` does; nothing was changed.
        """
        # States change only here, so what `check` found last is still true of that event.
        following = self._checked_state if event is self._checked else self._next_state(event)
        self._checked = None
        if following is None:
            if type(event) is StopRequested and self._stopping is None:
                self._stopping = event.reason
            return
        index: int = event.index  # type: ignore[union-attr]  # as in _next_state
        if following == _RUNNING:
            self._attempts[index] += 1
            self._n_ready -= 1
            self._n_running += 1
            self._move(index, _RUNNING)
            return
        self._n_running -= 1
        if following == _READY:
            self._make_ready(index)
            return
        self._move(index, following)
        if following == _FAILED:
            self._block_descendants(index)
            if self._wanted_stop is None:
                self._wanted_stop = self._policy.wants_stop(event)
        else:
            self._release_successors(index)

    def select(self, capacity: Resources) -> list[Attempt]:
        """Choose what to start now.

        Changes no state: the caller applies `AttemptStarted` for each attempt that it starts.

        Parameters
        ----------
        capacity
            What is free now. Quanta of serial labels do not count against it.

        Returns
        -------
        attempts
            The best ready quantum of each serial label that has none running, then the best
            ready quanta of the others that fit into ``capacity`` together. O(log n) time each.

        Notes
        -----
        Nothing overtakes the best ready quantum: if it asks for more than is free, what is free is kept for
        it until enough has ended. Nobody knows how long a quantum will run, so any rule by which smaller
        ones go first can put off a large one for as long as small ones come up. The price is that some
        cores idle for at most as long as the quanta that run at that moment.
        """
        if self._stopping is not None:
            return []
        attempts = []
        for code, queue in self._serial:
            key = queue.begin()
            if key is not None and not self._counts[_N_STATES * code + _RUNNING]:
                attempts.append(self._attempt(key, queue.request))
                queue.take()
        shared = self._shared
        heads = [(key, place) for place, queue in enumerate(shared) if (key := queue.begin()) is not None]
        heapify(heads)
        cores, memory = capacity.cores, capacity.memory_bytes
        while heads and cores > 0:
            key, place = heads[0]
            request = shared[place].request
            if not _fits(request, cores, memory):
                break
            attempts.append(self._attempt(key, request))
            cores -= request.cores
            if memory is not None:
                memory -= request.memory_bytes or 0
            following = shared[place].take()
            if following is None:
                heappop(heads)
            else:
                heapreplace(heads, (following, place))
        return attempts

    def stuck(self, capacity: Resources) -> str | None:
        """Say which quanta could never start, because one of them asks for more than the whole machine.

        Parameters
        ----------
        capacity
            What is free while nothing runs.

        Returns
        -------
        message
            What is asked for and what there is; `None` while something runs or if all
            quanta that are left fit. It can be asked before the first quantum is started.
        """
        if self._n_running:
            return None
        for code, (label, queue) in enumerate(zip(self._plan.labels, self._queues, strict=True)):
            row = _N_STATES * code
            n_left = self._counts[row + _WAITING] + self._counts[row + _READY]
            too_large = not _fits(queue.request, capacity.cores, capacity.memory_bytes)
            if n_left and too_large and queue in self._shared:
                return (
                    f"each of the {n_left} quanta of task {label} that are left asks for "
                    f"{_in_words(queue.request)}, but there is no more than {_in_words(capacity)}"
                )
        return None

    def _next_state(self, event: Event) -> int | None:
        """Return the code of the state that this event leads to; `None` if it is not about one quantum."""
        moves = _MOVES.get(type(event))
        if moves is None:
            if type(event) in _EVENTS_OF_THE_RUN:
                return None
            raise IllegalEventError(f"{type(event).__name__} is not an event of a run")
        index: int = event.index  # type: ignore[union-attr]  # an isinstance would cost as much as the rest
        states = self._states
        if 0 <= index < len(states):
            following = moves[states[index]]
            if following != _ILLEGAL:
                expected = self._attempts[index] + (following == _RUNNING)
                if event.attempt == expected:  # type: ignore[union-attr]
                    return following
        raise self._illegal(event)

    def _illegal(self, event: Event) -> IllegalEventError:
        """Return what to say about an event that leads nowhere."""
        event = cast("AttemptEvent", event)
        kind, index = type(event).__name__, event.index
        if not 0 <= index < len(self._states):
            return IllegalEventError(f"{kind}: there is no quantum {index} in a plan of {len(self._states)}")
        where = f"{kind} of quantum {index} ({self._plan.describe(index)}), attempt {event.attempt}"
        return IllegalEventError(
            f"{where}: the quantum is {self.state(index).value} after {self._attempts[index]} attempts",
            hint="See docs/states.md for what may happen then.",
        )

    def _move(self, index: int, following: int) -> None:
        row = _N_STATES * self._label_codes[index]
        counts, states = self._counts, self._states
        counts[row + states[index]] -= 1
        counts[row + following] += 1
        states[index] = following

    def _make_ready(self, index: int) -> None:
        self._move(index, _READY)
        self._n_ready += 1
        self._queues[self._label_codes[index]].add(self._keys[index])

    def _release_successors(self, index: int) -> None:
        missing = self._missing
        for successor in self._plan.successors(index):
            left = missing[successor] - 1
            missing[successor] = left
            # Never one that is blocked: what blocks it is among its prerequisites and does not end well.
            if not left:
                self._make_ready(successor)

    def _block_descendants(self, index: int) -> None:
        for descendant in self._plan.mark_descendants(index, self._states, _BLOCKED):
            row = _N_STATES * self._label_codes[descendant]
            self._counts[row + _WAITING] -= 1
            self._counts[row + _BLOCKED] += 1

    def _attempt(self, key: int, request: Resources) -> Attempt:
        index = key % len(self._states)
        plan = self._plan
        return Attempt(
            index,
            self._attempts[index] + 1,
            plan.quantum_id(index),
            plan.labels[self._label_codes[index]],
            request,
            self._timeout_s,
        )


def _keys(plan: Plan) -> array[int]:
    """Return the key of each quantum: the smaller, the better."""
    lengths = np.asarray(plan.path_lengths(), dtype=np.int64)
    keys = array("q")
    if len(plan):
        keys.frombytes(((lengths.max() - lengths) * len(plan) + np.arange(len(plan))).tobytes())
    return keys


def _check_requests(requests: Mapping[str, Resources]) -> None:
    for label, request in requests.items():
        if request.cores < 1 or (request.memory_bytes or 0) < 0:
            raise UsageError(
                f"task {label} asks for {_in_words(request)} per quantum",
                hint="Ask for at least one core, and no negative memory.",
            )


def _fits(request: Resources, cores: int, memory_bytes: int | None) -> bool:
    return request.cores <= cores and (memory_bytes is None or (request.memory_bytes or 0) <= memory_bytes)


def _in_words(resources: Resources) -> str:
    cores = f"{resources.cores} core{'' if resources.cores == 1 else 's'}"
    if resources.memory_bytes is None:
        return cores
    return f"{cores} and {resources.memory_bytes / 2**30:.3g} GiB of memory"
