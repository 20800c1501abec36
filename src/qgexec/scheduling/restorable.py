"""A scheduler that only follows, and whose states can be put down and taken up again: for readers.

What attempts have cost is not in its states, so it must not decide about retries; what is ready is not in any
order, so it chooses nothing.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from qgexec.scheduling.gaps import FollowingScheduler
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.states import State
from qgexec.scheduling.topology import int_array

__all__ = ["STATE_CODES", "RestorableScheduler"]

STATE_CODES: tuple[State, ...] = tuple(State)
"""The states, each at the place that is its code in `RestorableScheduler.save`."""

_WAITING, _READY, _RUNNING = map(STATE_CODES.index, (State.WAITING, State.READY, State.RUNNING))
_DONE = [STATE_CODES.index(state) for state in (State.SUCCEEDED, State.SKIPPED)]


class RestorableScheduler(FollowingScheduler):
    """Follows the events of a run, without any policy.

    Parameters
    ----------
    plan
        The quanta.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, policy=Policy())

    def save(self) -> tuple[bytes, npt.NDArray[np.int32]]:
        """Return the state of each quantum (see `STATE_CODES`) and its number of attempts; shape ``(n,)``."""
        return bytes(self._states), np.array(self._attempts, dtype=np.int32)

    def running(self) -> list[int]:
        """Return the indices of the quanta that run; about 1 ns per quantum."""
        codes = np.frombuffer(self._states, dtype=np.uint8)
        running: list[int] = np.flatnonzero(codes == _RUNNING).tolist()
        return running

    def restore(self, states: bytes, attempts: npt.NDArray[np.int32]) -> None:
        """Take up what `save` returned; about 10 ns per quantum.

        Raises
        ------
        ValueError
            It is not of this plan; nothing has changed.
        """
        n_quanta = len(self._states)
        codes = np.frombuffer(states, dtype=np.uint8)
        if codes.shape != (n_quanta,) or attempts.shape != (n_quanta,) or np.any(codes >= len(STATE_CODES)):
            raise ValueError(f"these are not the states of {n_quanta} quanta")
        self._attempts = array("i", attempts.astype(np.int32).tobytes())
        self._missing = _count_missing(self._plan, np.isin(codes, _DONE))
        self._put(codes)

    def _begin(self) -> None:
        self._put(np.where(np.asarray(self._missing) == 0, _READY, _WAITING).astype(np.uint8))

    def _put(self, codes: npt.NDArray[np.uint8]) -> None:
        """Bring all quanta into these states."""
        self._states[:] = codes.tobytes()
        labels = np.asarray(self._label_codes, dtype=np.int64)
        n_counts = len(self._counts)
        self._counts[:] = np.bincount(len(STATE_CODES) * labels + codes, minlength=n_counts).tolist()
        counts = self.counts()
        self._n_running, self._n_failed = counts[State.RUNNING], counts[State.FAILED]
        self._n_ready = counts[State.READY]

    def _make_ready(self, index: int) -> None:
        if self._missing[index]:  # after a gap
            self._move(index, _WAITING)
            return
        self._move(index, _READY)
        self._n_ready += 1


def _count_missing(plan: Plan, done: npt.NDArray[np.bool_]) -> array[int]:
    """Return for each quantum how many of its prerequisites have not ended well."""
    arrays = plan.to_arrays()
    successors = arrays["successor_targets"]
    offsets: npt.NDArray[np.int64] = arrays["successor_offsets"].astype(np.int64)
    predecessors = np.repeat(np.arange(len(plan)), offsets[1:] - offsets[:-1])
    return int_array("i", np.bincount(successors[~done[predecessors]], minlength=len(plan)))
