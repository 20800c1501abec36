"""The states of a quantum and the one table of what leads from one to another, as data.

1. A quantum is in exactly one state.
2. An event about it changes its state as `TRANSITIONS` says, or `RETRIED` where the event says that it
   is tried again; what is not in these tables is illegal.
3. What follows for the quanta behind it is in `CONSEQUENCES`, and follows at once.
4. `RunReopened` is about all quanta in the states of `REOPENED`, and those that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from qgexec.events import (
    AttemptEvent,
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    Event,
    RunReopened,
)

__all__ = [
    "CONSEQUENCES",
    "FINAL_STATES",
    "ILLEGAL",
    "REOPENED",
    "RETRIED",
    "REVOKED",
    "TRANSITIONS",
    "State",
    "compile_moves",
    "state_diagram",
    "states_page",
]


class State(Enum):
    """The states of a quantum, each with a sentence that says what is true then."""

    truth: str
    """What is true of a quantum in this state."""

    def __new__(cls, value: str, truth: str) -> State:
        """Keep the sentence beside the value."""
        member = object.__new__(cls)
        member._value_ = value
        member.truth = truth
        return member

    WAITING = "waiting", "At least one prerequisite has not ended, and none has failed or is blocked."
    READY = "ready", "All prerequisites succeeded or were skipped; it may be started."
    RUNNING = "running", "An execution model has an attempt at it in hand."
    SUCCEEDED = "succeeded", "An attempt ran to its end."
    SKIPPED = "skipped", "It had been done before the run; for its successors that is as good as succeeded."
    FAILED = "failed", "An attempt ended badly, and no other follows."
    BLOCKED = "blocked", "It is never run, because a direct or indirect prerequisite failed."


FINAL_STATES = frozenset({State.SUCCEEDED, State.SKIPPED, State.FAILED, State.BLOCKED})
"""States that no attempt leads out of."""

TRANSITIONS: Mapping[tuple[State, type[AttemptEvent]], State] = {
    (State.READY, AttemptStarted): State.RUNNING,
    (State.RUNNING, AttemptSucceeded): State.SUCCEEDED,
    (State.RUNNING, AttemptSkipped): State.SKIPPED,
    (State.RUNNING, AttemptFailed): State.FAILED,
    (State.RUNNING, AttemptLost): State.FAILED,
    (State.RUNNING, AttemptTimedOut): State.FAILED,
    (State.RUNNING, AttemptOutOfMemory): State.FAILED,
    (State.RUNNING, AttemptReturned): State.READY,
}
"""What an event makes of the quantum it is about; what is not here is illegal."""

RETRIED: Mapping[tuple[State, type[AttemptEvent]], State] = {
    pair: State.READY for pair, following in TRANSITIONS.items() if following is State.FAILED
}
"""The same, for events that say that another attempt follows."""

REOPENED: frozenset[State] = frozenset({State.FAILED, State.BLOCKED})
"""What `RunReopened` makes waiting again, and at once ready where no prerequisite is missing."""

REVOKED = State.SUCCEEDED
"""What a quantum must be that `RunReopened` names; it does the same to it."""

CONSEQUENCES: Mapping[tuple[State, State], str] = {
    (State.WAITING, State.READY): "last prerequisite succeeded or skipped",
    (State.WAITING, State.BLOCKED): "a prerequisite failed or blocked",
    (State.READY, State.WAITING): "a prerequisite revoked",
}
"""What becomes of the successors of a quantum, at once and without an event of their own."""


ILLEGAL = len(State)
"""In what `compile_moves` returns, the code of no state."""


def compile_moves(table: Mapping[tuple[State, type[AttemptEvent]], State]) -> dict[type[Event], bytes]:
    """Return for each type of event the code of the next state at the code of each state.

    The code of a state is its position in `State`; a bytearray of them is all there is of a million quanta.
    """
    states = tuple(State)
    moves: dict[type[Event], bytes] = {}
    for kind in dict.fromkeys(kind for _, kind in table):
        following = (table.get((state, kind)) for state in states)
        moves[kind] = bytes(ILLEGAL if state is None else states.index(state) for state in following)
    return moves


def state_diagram() -> str:
    """Return all tables as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.WAITING.value}"]
    causes: dict[tuple[State, State], list[str]] = {pair: [cause] for pair, cause in CONSEQUENCES.items()}
    for (state, kind), following in TRANSITIONS.items():
        causes.setdefault((state, following), []).append(kind.__name__)
    for (state, kind), following in RETRIED.items():
        causes.setdefault((state, following), []).append(f"{kind.__name__} (retried)")
    for state in State:
        if state in REOPENED:
            causes.setdefault((state, State.WAITING), []).append(RunReopened.__name__)
    causes[REVOKED, State.WAITING] = [f"{RunReopened.__name__} (revoked)"]
    lines += [f"    {a.value} --> {b.value}: {', '.join(words)}" for (a, b), words in causes.items()]
    lines += [f"    {state.value} --> [*]" for state in State if state in FINAL_STATES]
    return "\n".join(lines) + "\n"


def states_page() -> str:
    """Return the text of ``docs/states.md``."""
    sentences = [f"- **{state.value}**: {state.truth}" for state in State]
    final = ", ".join(state.value for state in State if state in FINAL_STATES)
    return "\n".join(
        [
            "# The states of a quantum",
            "",
            "This page is generated from the tables in `qgexec.scheduling.states`; a test compares them.",
            "",
            "```mermaid",
            state_diagram().rstrip(),
            "```",
            "",
            *sentences,
            "",
            f"Final are {final}: no attempt leads out of them.",
            "Only when a run is resumed, what failed is to be run again, with what it blocked",
            "(and what had succeeded, where its outputs were lost).",
            "A change between waiting and ready, or to blocked, has no event of its own:",
            "it follows at once from what becomes of a prerequisite.",
            "",
        ]
    )
