"""A scheduler that can follow events of which some are missing: lines of a journal that were damaged.

An event that does not follow from those before has happened all the same. So it is believed, and what
must have come before it is not made up: a quantum whose success is missing runs until somebody looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from qgexec.errors import IllegalEventError
from qgexec.events import (
    AttemptEvent,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    Event,
    FailureEvent,
    RunReopened,
)
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State

__all__ = ["FollowingScheduler"]

_DONE = frozenset({State.SUCCEEDED, State.SKIPPED})
_CODES = {state: code for code, state in enumerate(State)}

_FOLLOWING: Mapping[type[AttemptEvent], State] = {
    AttemptStarted: State.RUNNING,
    AttemptSucceeded: State.SUCCEEDED,
    AttemptSkipped: State.SKIPPED,
    AttemptReturned: State.READY,
}
"""State of a quantum after an event, whatever was before; after others it has failed, or is tried again."""


class FollowingScheduler(Scheduler):
    """Follows events also where some before them are missing; parameters are those of `Scheduler`."""

    def follow(self, event: Event) -> None:
        """Take in an event as `apply` does, also where it does not follow from those before.

        Raises
        ------
        qgexec.errors.IllegalEventError
            There is no such quantum in the plan.
        """
        try:
            self.apply(event)
        except IllegalEventError:
            if isinstance(event, RunReopened):
                known = [index for index in event.revoked if 0 <= index < len(self._states)]
                self._reopen([index for index in known if self.state(index) is State.SUCCEEDED])
            elif isinstance(event, AttemptEvent) and 0 <= event.index < len(self._states):
                self._believe(event)
            else:
                raise

    def _believe(self, event: AttemptEvent) -> None:
        index, before = event.index, self.state(event.index)
        following = _FOLLOWING.get(type(event))
        if following is None:
            following = State.READY if cast("FailureEvent", event).retried else State.FAILED
        self._attempts[index] = event.attempt
        self._n_running -= before is State.RUNNING
        self._n_ready -= before is State.READY
        self._n_failed -= before is State.FAILED
        if before in _DONE and following not in _DONE:
            self._withhold_from_successors(index)
        match following:
            case State.READY:
                if not isinstance(event, AttemptReturned):
                    self._troubles.charge(cast("FailureEvent", event))
                self._make_ready(index)
            case State.FAILED:
                self._move(index, _CODES[State.FAILED])
                self._fail(cast("FailureEvent", event))
            case _:
                self._move(index, _CODES[following])
                self._n_running += following is State.RUNNING
                if following in _DONE and before not in _DONE:
                    self._release_successors(index)

    def _withhold_from_successors(self, index: int) -> None:
        """Have what follows wait again for a quantum that is not done after all."""
        for successor in self._plan.successors(index):
            self._missing[successor] += 1
            if self.state(successor) is State.READY:
                self._n_ready -= 1
                self._move(successor, _CODES[State.WAITING])

    def _make_ready(self, index: int) -> None:
        """Make a quantum ready, unless the success of one that it follows from is missing."""
        if self._missing[index]:
            self._move(index, _CODES[State.WAITING])
        else:
            super()._make_ready(index)
