"""What a run does about failures: decided from one event, without any state."""

from __future__ import annotations

from dataclasses import dataclass

from qgexec.events import AttemptFailed, AttemptLost, AttemptTimedOut, Event, StopReason

__all__ = ["INVALID_QUANTUM_EXIT_CODE", "Policy"]

INVALID_QUANTUM_EXIT_CODE = 21
"""``lsst.pipe.base.InvalidQuantumError.EXIT_CODE``: the graph or the configuration is wrong."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user asked for in case of failures."""

    fail_fast: bool = False
    """Start nothing more after the first failure."""

    def wants_stop(self, event: Event) -> StopReason | None:
        """Return why the run should stop after this event, or `None` if it should go on."""
        match event:
            case AttemptFailed(outcome=outcome):
                exception = outcome.exception
                if exception is not None and exception.exit_code == INVALID_QUANTUM_EXIT_CODE:
                    return StopReason.INVALID_QUANTUM
            case AttemptLost() | AttemptTimedOut():
                pass
            case _:
                return None
        return StopReason.FAILED_FAST if self.fail_fast else None
