"""`qgexec.scheduling.readyqueue`: the best first, each once, and only what is ready and asks for the same."""

from __future__ import annotations

from qgexec.quantum import Resources
from qgexec.scheduling.readyqueue import ReadyQueue, keys_of
from qgexec.scheduling.states import State
from qgexec.testing import make_plan

_REQUEST, _MORE = Resources(1, 4), Resources(1, 8)
_READY, _RUNNING = (list(State).index(state) for state in (State.READY, State.RUNNING))


def _taken(queue: ReadyQueue) -> list[int]:
    """Take all."""
    keys, key = [], queue.begin()
    while key is not None:
        keys.append(key)
        key = queue.take()
    return keys


def _queue(n_ready: int, grown: dict[int, Resources], *, alone: bool = False) -> tuple[ReadyQueue, bytearray]:
    states = bytearray([_READY]) * n_ready
    queue = ReadyQueue(_REQUEST, states, grown, alone=alone)
    for key in reversed(range(n_ready)):
        queue.add(key)
    return queue, states


def test_longer_paths_have_smaller_keys() -> None:
    """Then smaller indices; a plan without quanta has none."""
    assert list(keys_of(make_plan("a; b -> c; d -> e -> f"))) == [12, 7, 14, 3, 10, 17]
    assert list(keys_of(make_plan(""))) == []


def test_best_first_and_put_back() -> None:
    """What was taken and is still ready is there at the next selection."""
    queue, states = _queue(4, {})
    assert _taken(queue) == [0, 1, 2, 3]
    states[2] = _RUNNING
    assert _taken(queue) == [0, 1, 3]


def test_added_twice_is_taken_once() -> None:
    """A quantum that came back has its key here twice."""
    queue, _ = _queue(3, {})
    queue.add(1)
    queue.add(1)
    assert _taken(queue) == [0, 1, 2]
    queue.add(1)
    assert _taken(queue) == [0, 1, 2]


def test_what_asks_for_more_has_moved() -> None:
    """Its key may still be here, taken or not; what asks for the same as before stays."""
    grown: dict[int, Resources] = {}
    queue, _ = _queue(4, grown)
    queue.begin()
    queue.take()
    grown |= {0: _MORE, 2: _MORE, 3: _REQUEST}
    assert _taken(queue) == [1, 3]


def test_quanta_of_a_serial_label_stay_together() -> None:
    """Whatever each of them asks for."""
    grown = {1: _MORE}
    queue, _ = _queue(3, grown, alone=True)
    assert [queue.memory_of(key) for key in _taken(queue)] == [4, 8, 4]
