"""What may run now: one table of states, folded over events; knows no clock, no process and no file.

`Scheduler.apply` is the only way a state changes, as the tables of
`qgexec.scheduling.states` say; an event that they do not have raises and changes nothing.
So the same events always give the same states, whether they come from a
running model or from a journal.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heapreplace
from typing import cast

import numpy as np

from qgexec.errors import IllegalEventError
from qgexec.events import (
    AttemptBegan,
    AttemptEvent,
    AttemptReturned,
    Event,
    FailureEvent,
    OutputsIngested,
    RunEnded,
    RunReopened,
    RunStarted,
    StopReason,
    StopRequested,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.quantum import Attempt, Resources
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.readyqueue import ReadyQueue, keys_of
from qgexec.scheduling.states import (
    ILLEGAL,
    REOPENED,
    RETRIED,
    REVOKED,
    TRANSITIONS,
    State,
    compile_moves,
)
from qgexec.scheduling.troubles import Past, Troubles

__all__ = ["Scheduler", "State"]

_EVENTS_OF_THE_RUN = frozenset(
    {
        AttemptBegan,
        RunStarted,
        RunReopened,
        RunEnded,
        StopRequested,
        WorkerStarted,
        WorkerEnded,
        OutputsIngested,
    }
)

# A state in a bytearray is its position in State; an illegal move is a number that is no position.
_STATES = tuple(State)
_N_STATES = len(_STATES)
_WAITING, _READY, _RUNNING, _SUCCEEDED, _SKIPPED, _FAILED, _BLOCKED = range(_N_STATES)
_MOVES = compile_moves(TRANSITIONS)
_RETRY_MOVES = compile_moves(RETRIED)
_NOT_BEGUN = (_WAITING, _READY)
_REOPENED = [_STATES.index(state) for state in REOPENED]


class Scheduler:
    """The states of all quanta of a plan, and the decision which of them to start.

    Parameters
    ----------
    plan
        The quanta and their order.
    policy
        What quanta may use, and what to do about failures.
    serial_labels
        Labels of tasks of which only one quantum may run at a time, beside the others.

    Notes
    -----
    Of two ready quanta the one with the longer remaining path is better, then the one that asks for
    more memory, then the one with the smaller index.

    Memory is 17 bytes per quantum, besides the plan, and about 40 more for each that is ready.
    """

    def __init__(self, plan: Plan, *, policy: Policy, serial_labels: Collection[str] = ()) -> None:
        self._plan = plan
        self._policy = policy
        self._states = bytearray(len(plan))
        self._missing = plan.prerequisite_counts()
        self._attempts = array("i", [0]) * len(plan)
        self._keys: Sequence[int] = ()
        self._label_codes = plan.label_codes
        self._counts = [0] * (_N_STATES * len(plan.labels))
        self._n_ready = 0
        self._n_running = 0
        self._stopping: StopReason | None = None
        self._wanted_stop: StopReason | None = None
        self._checked: Event | None = None
        self._checked_state: int | None = None
        self._n_failed = 0
        self._all_cores = sys.maxsize
        self._all_memory: int | None = None
        self._troubles = Troubles(plan, policy)
        self._grown = self._troubles.grown
        self._rules = [policy.rules_of(label) for label in plan.labels]
        self._shared: dict[Resources, ReadyQueue] = {}
        self._queues = [
            ReadyQueue(rules.request, self._states, self._grown, alone=True)
            if label in serial_labels
            else self._shared_queue(rules.request)
            for label, rules in zip(plan.labels, self._rules, strict=True)
        ]
        self._serial = [(code, queue) for code, queue in enumerate(self._queues) if queue.alone]
        self._begin()

    def _begin(self) -> None:
        """Count all quanta as waiting, and make those without prerequisites ready."""
        self._keys = keys_of(self._plan)
        for code, n_quanta in enumerate(self._plan.count_by_label().values()):
            self._counts[_N_STATES * code + _WAITING] = n_quanta
        for index in np.flatnonzero(np.asarray(self._missing) == 0).tolist():
            self._make_ready(index)

    def _shared_queue(self, request: Resources) -> ReadyQueue:
        queue = self._shared.get(request)
        if queue is None:
            queue = self._shared[request] = ReadyQueue(request, self._states, self._grown)
        return queue

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

    @property
    def plan(self) -> Plan:
        """The quanta."""
        return self._plan

    @property
    def policy(self) -> Policy:
        """What they may use, and what is done about failures."""
        return self._policy

    def past(self, index: int) -> Past:
        """Return what is behind a quantum."""
        return self._troubles.past(index, self._attempts[index])

    def take_up(self, index: int, past: Past) -> None:
        """Begin with what is behind a quantum; before any event about it."""
        self._attempts[index] = past.n_attempts
        self._troubles.take_up(index, past)
        if self._states[index] == _READY:
            self._queue_of(index).add(self._keys[index])  # where it stands now it is not seen any more

    def running(self) -> list[int]:
        """Return the indices of all running quanta, ascending; a fast scan of one byte per quantum."""
        return list(self._indices_in(_RUNNING))

    def _indices_in(self, code: int) -> Iterator[int]:
        place = self._states.find(code)
        while place >= 0:
            yield place
            place = self._states.find(code, place + 1)

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

    def limit_cores(self, cores: int) -> None:
        """Let a quantum that asks for more cores than this, which are all there are, have all of them."""
        self._all_cores = cores

    def leave_larger(self, memory_bytes: int | None) -> None:
        """Select no quantum that asks for more memory than this: it is for another machine to execute."""
        self._all_memory = memory_bytes

    def judge(self, event: FailureEvent) -> FailureEvent:
        """Return the event as it is to be recorded: it says whether another attempt follows.

        Raises
        ------
        qgexec.errors.IllegalEventError
            As `check` does.
        """
        self._next_state(event)
        retried = self._troubles.wants_retry(event)
        return event if retried == event.retried else replace(event, retried=retried)

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
            self._apply_to_run(event)
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
            if type(event) is not AttemptReturned:
                self._troubles.charge(cast("FailureEvent", event))
            self._make_ready(index)
            return
        self._move(index, following)
        if following == _FAILED:
            self._fail(cast("FailureEvent", event))
        else:
            self._release_successors(index)

    def _apply_to_run(self, event: Event) -> None:
        match event:
            case StopRequested(reason=reason) if self._stopping is None:
                self._stopping = reason
            case RunStarted():
                self._stopping = self._wanted_stop = None
            case RunReopened(revoked=revoked):
                self._reopen(revoked)

    def _fail(self, event: FailureEvent) -> None:
        self._troubles.charge(event)
        self._n_failed += 1
        self._block_descendants(event.index)
        if self._wanted_stop is None:
            self._wanted_stop = self._policy.wants_stop(event, self._n_failed)

    def _reopen(self, revoked: Iterable[int]) -> None:
        """Let what had failed, was blocked or is revoked wait again, and what waits for that with it."""
        again = [index for code in _REOPENED for index in self._indices_in(code)]
        for index in set(revoked):
            again.append(index)
            for successor in self._plan.successors(index):
                self._missing[successor] += 1
                if self._states[successor] == _READY:
                    self._n_ready -= 1
                    self._move(successor, _WAITING)
        for index in again:
            self._move(index, _WAITING)
            if not self._missing[index]:
                self._make_ready(index)
        self._n_failed, self._wanted_stop = 0, None
        self._troubles.forgive()

    def select(self, capacity: Resources) -> list[Attempt]:
        """Choose what to start now.

        Changes no state: the caller applies `AttemptStarted` for each attempt that it starts.

        Parameters
        ----------
        capacity
            What is free now. Quanta of serial labels do not count against its cores.

        Returns
        -------
        attempts
            The best ready quantum of each serial label that has none running, and the best
            ready quanta of the others, that fit into ``capacity`` together. O(log n) time each.
            Of quanta with equally long remaining paths those that ask for most memory come first.

        Notes
        -----
        Nothing overtakes the best ready quantum: if it asks for more than is free, what is free is kept for
        it until enough has ended. Nobody knows how long a quantum will run, so any rule by which smaller
        ones go first can put off a large one for as long as small ones come up. The price is that some
        cores idle for at most as long as the quanta that run at that moment.
        """
        if self._stopping is not None:
            return []
        attempts: list[Attempt] = []
        cores, memory = capacity.cores, capacity.memory_bytes
        n_quanta, counts = len(self._states), self._counts
        queues = [queue for code, queue in self._serial if not counts[_N_STATES * code + _RUNNING]]
        queues += [q for q in self._shared.values() if q.request.fits_memory(self._all_memory)]
        heads = [
            (key // n_quanta, -queue.memory_of(key), key, place)
            for place, queue in enumerate(queues)
            if (key := queue.begin()) is not None
        ]
        heapify(heads)
        while heads and (cores > 0 or self._serial):
            _, less_memory, key, place = heads[0]
            queue = queues[place]
            if memory is not None:
                memory += less_memory
                if memory < 0:
                    break
            needed = min(queue.request.cores, self._all_cores)
            if not queue.alone and needed > cores:
                # Its memory is kept, too; only quanta that need none of these cores may use what is left.
                heads = [head for head in heads if queues[head[-1]].alone]
                heapify(heads)
                continue
            attempts.append(self._attempt(key, queue.request))
            following = queue.take()
            if queue.alone:
                heappop(heads)
                continue
            cores -= needed
            if following is None:
                heappop(heads)
            else:
                heapreplace(heads, (following // n_quanta, less_memory, following, place))
        return attempts

    def left(self) -> list[Attempt]:
        """Return the next attempt at each quantum that has not begun or waits for others, ascending."""
        if self._stopping is not None:
            return []
        waiting = np.isin(np.frombuffer(self._states, dtype=np.uint8), _NOT_BEGUN)
        return [
            self._attempt(self._keys[index], self._rules[self._label_codes[index]].request)
            for index in np.flatnonzero(waiting).tolist()
        ]

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
        for code, n_left, request in self._left_by_request():
            needed = 0 if self._queues[code].alone else min(request.cores, self._all_cores)
            if needed > capacity.cores or not request.fits_memory(capacity.memory_bytes):
                return (
                    f"each of the {n_left} quanta of task {self._plan.labels[code]} that are left asks for "
                    f"{request}, but there is no more than {capacity}"
                )
        return None

    def _left_by_request(self) -> Iterator[tuple[int, int, Resources]]:
        """Yield label codes, and how many of such quanta that have not begun ask for how much."""
        for code, rules in enumerate(self._rules):
            row = _N_STATES * code
            if n_left := self._counts[row + _WAITING] + self._counts[row + _READY]:
                yield code, n_left, rules.request
        for index, request in self._grown.items():
            if self._states[index] in _NOT_BEGUN:
                yield self._label_codes[index], 1, request

    def _next_state(self, event: Event) -> int | None:
        """Return the code of the state that this event leads to; `None` if it is not about one quantum."""
        moves = _MOVES.get(type(event))
        if moves is None:
            if type(event) is RunReopened:
                self._check_reopening(event)
            if type(event) in _EVENTS_OF_THE_RUN:
                return None
            raise IllegalEventError(f"{type(event).__name__} is not an event of a run")
        index: int = event.index  # type: ignore[union-attr]  # an isinstance would cost as much as the rest
        states = self._states
        if 0 <= index < len(states):
            following = moves[states[index]]
            if following == _FAILED and event.retried:  # type: ignore[union-attr]
                following = _RETRY_MOVES[type(event)][states[index]]
            if following != ILLEGAL:
                expected = self._attempts[index] + (following == _RUNNING)
                if event.attempt == expected:  # type: ignore[union-attr]
                    return following
        raise self._illegal(event)

    def _check_reopening(self, event: RunReopened) -> None:
        if self._n_running:
            raise IllegalEventError(f"RunReopened: {self._n_running} quanta are running")
        for index in event.revoked:
            if not 0 <= index < len(self._states):
                raise self._no_such_quantum("RunReopened", index)
            if self.state(index) is not REVOKED:
                raise IllegalEventError(
                    f"RunReopened: quantum {index} ({self._plan.describe(index)}) "
                    f"is {self.state(index).value}, not {REVOKED.value}"
                )

    def _illegal(self, event: Event) -> IllegalEventError:
        """Return what to say about an event that leads nowhere."""
        event = cast("AttemptEvent", event)
        kind, index = type(event).__name__, event.index
        if not 0 <= index < len(self._states):
            return self._no_such_quantum(kind, index)
        where = f"{kind} of quantum {index} ({self._plan.describe(index)}), attempt {event.attempt}"
        return IllegalEventError(
            f"{where}: the quantum is {self.state(index).value} after {self._attempts[index]} attempts",
            hint="See docs/states.md for what may happen then.",
        )

    def _no_such_quantum(self, kind: str, index: int) -> IllegalEventError:
        return IllegalEventError(f"{kind}: there is no quantum {index} in a plan of {len(self._states)}")

    def _move(self, index: int, following: int) -> None:
        row = _N_STATES * self._label_codes[index]
        counts, states = self._counts, self._states
        counts[row + states[index]] -= 1
        counts[row + following] += 1
        states[index] = following

    def _make_ready(self, index: int) -> None:
        self._move(index, _READY)
        self._n_ready += 1
        self._queue_of(index).add(self._keys[index])

    def _queue_of(self, index: int) -> ReadyQueue:
        queue = self._queues[self._label_codes[index]]
        if self._grown and index in self._grown and not queue.alone:
            return self._shared_queue(self._grown[index])
        return queue

    def _release_successors(self, index: int) -> None:
        missing, states = self._missing, self._states
        for successor in self._plan.successors(index):
            left = missing[successor] - 1
            missing[successor] = left
            # Not one that had ended before this prerequisite of it was revoked.
            if not left and states[successor] == _WAITING:
                self._make_ready(successor)

    def _block_descendants(self, index: int) -> None:
        states, pending = self._states, [index]
        while pending:
            for successor in self._plan.successors(pending.pop()):
                if states[successor] == _WAITING:
                    self._move(successor, _BLOCKED)
                    pending.append(successor)

    def _attempt(self, key: int, request: Resources) -> Attempt:
        index = key % len(self._states)
        plan, code = self._plan, self._label_codes[index]
        rules = self._rules[code]
        if self._grown:
            request = self._grown.get(index, request)
        return Attempt(
            index,
            self._attempts[index] + 1,
            plan.quantum_id(index),
            plan.labels[code],
            request,
            rules.timeout_s,
            request.memory_bytes if rules.enforce_memory else None,
            isolated=rules.isolated,
            keeps_processes=rules.keeps_processes,
        )
