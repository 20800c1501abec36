"""`qgexec.scheduling.states`: the tables are whole, and the documentation is what they say."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from qgexec.events import AttemptEvent, FailureEvent
from qgexec.scheduling.states import (
    CONSEQUENCES,
    FINAL_STATES,
    REOPENED,
    RETRIED,
    REVOKED,
    TRANSITIONS,
    State,
    state_diagram,
    states_page,
)


def test_table_is_closed() -> None:
    """Nothing leads out of a final state, something out of every other, and every state can be reached."""
    leaving = {state for state, _ in TRANSITIONS} | {state for state, _ in CONSEQUENCES}
    reached = set(TRANSITIONS.values()) | {state for _, state in CONSEQUENCES}
    assert leaving == set(State) - FINAL_STATES
    assert reached == set(State)
    assert {kind for _, kind in TRANSITIONS} == set(get_args(AttemptEvent))


def test_what_failed_can_be_retried() -> None:
    """Every event that ends an attempt badly, and no other, may say that another follows."""
    assert {kind for _, kind in RETRIED} == set(get_args(FailureEvent))
    assert {state for state, _ in RETRIED} == {State.RUNNING}
    assert set(RETRIED.values()) == {State.READY}
    assert {kind for (_, kind), state in TRANSITIONS.items() if state is State.FAILED} == set(
        get_args(FailureEvent)
    )


def test_only_final_states_are_reopened() -> None:
    """What waits, is ready or runs needs no reopening; what was skipped was there before the run."""
    assert REOPENED | {REVOKED} == FINAL_STATES - {State.SKIPPED}


def test_diagram_has_every_transition() -> None:
    """The diagram shows each transition with its event."""
    lines = state_diagram().splitlines()

    def shows(before: State, after: State, word: str) -> bool:
        return any(f"{before.value} --> {after.value}: " in line and word in line for line in lines)

    assert all(shows(state, following, kind.__name__) for (state, kind), following in TRANSITIONS.items())
    assert all(
        shows(state, following, f"{kind.__name__} (retried)") for (state, kind), following in RETRIED.items()
    )
    assert all(shows(state, State.WAITING, "RunReopened") for state in REOPENED | {REVOKED})
    assert all(shows(before, after, word) for (before, after), word in CONSEQUENCES.items())


def test_documentation_is_the_table() -> None:
    """docs/states.md is what the tables say."""
    page = Path(__file__).parents[2] / "docs" / "states.md"
    code = "from qgexec.scheduling.states import states_page; print(states_page(), end='')"
    assert page.read_text() == states_page(), f'run: python -c "{code}" > docs/states.md'
