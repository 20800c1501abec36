"""Tests of `qgexec.cli.display`."""

from __future__ import annotations

import re

import pytest

from qgexec.cli.display import Display
from qgexec.events import AttemptFailed, AttemptLost, AttemptOutOfMemory, AttemptStarted, EndReason, RunEnded
from qgexec.quantum import Attempt, ExceptionSummary, Outcome, OutcomeStatus
from qgexec.testing import Ending, ended, make_plan

PLAN = make_plan("isr:1 isr:2 isr:3 isr:4")
ERROR = ExceptionSummary("builtins.ValueError", "no stars\nat all")


def failed(index: int, *, retried: bool) -> AttemptFailed:
    outcome = Outcome(index, 1, OutcomeStatus.FAILED, 1.0, 2.0, exception=ERROR)
    return AttemptFailed(2.0, outcome, retried=retried)


@pytest.mark.parametrize("on_terminal", [False, True])
class TestDisplay:
    """On a terminal and elsewhere."""

    def test_failures_and_retries(self, on_terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
        """Each is said in a line, with what follows; retried attempts are counted."""
        with Display(on_terminal=on_terminal) as display:
            observe = display.observe(PLAN, {})
            for index in range(4):
                observe(AttemptStarted(1.0, index, 1))
            observe(failed(0, retried=True))
            observe(failed(1, retried=False))
            observe(AttemptOutOfMemory(2.0, 2, 1, 5_100_000_000, 4_000_000_000, retried=True))
            observe(AttemptLost(2.0, 3, 1, "worker 1 was killed", retried=False))
            observe(RunEnded(3.0, EndReason.COMPLETED))
        shown = " ".join(capsys.readouterr().err.split())
        assert "isr{detector: 1} attempt 1 failed, another follows: builtins.ValueError: no stars" in shown
        assert "isr{detector: 2} failed: builtins.ValueError: no stars" in shown
        assert (
            "isr{detector: 3} attempt 1 failed, another follows: out of memory: used 5.1 GB of 4.0 GB"
            in shown
        )
        assert "isr{detector: 4} failed: worker 1 was killed" in shown
        assert "0/4 succeeded, 2 failed, 2 retried" in shown
        assert "at all" not in shown

    def test_show_now(self, on_terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
        """A line of progress when it is asked for, also before anything has happened."""
        with Display(on_terminal=on_terminal) as display:
            display.show_now()
            observe = display.observe(PLAN, {})
            observe(AttemptStarted(1.0, 0, 1))
            capsys.readouterr()
            observe(AttemptStarted(1.0, 1, 1))
            display.show_now()
            assert "0/4 succeeded, 2 running" in capsys.readouterr().err


def _colours(capsys: pytest.CaptureFixture[str], n_failed: int) -> list[str]:
    """Return the colours in which the last bar of a run of two quanta is drawn."""
    with Display(on_terminal=True) as display:
        observe = display.observe(make_plan("isr:1 isr:2"), {})
        for index in range(2):
            observe(AttemptStarted(1.0, index, 1))
            attempt = Attempt(index, 1, PLAN.quantum_id(index), "isr")
            observe(ended(attempt, Ending.FAIL if index < n_failed else Ending.SUCCEED, 2.0))
        observe(RunEnded(3.0, EndReason.COMPLETED))
    bar = capsys.readouterr().err.rpartition("\x1b[2K")[2]
    return re.findall(r"\x1b\[([\d;]+)m[━╸╺]+", bar)


def test_the_bar_is_full_and_green_only_where_all_succeeded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With failures it ends short of that, in red."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    green, red = "38;5;70", "31"
    assert _colours(capsys, 0) == [green]
    some_failed = _colours(capsys, 1)
    assert some_failed[0] == red
    assert len(some_failed) > 1
    assert green not in some_failed


def test_nothing_to_show_yet(capsys: pytest.CaptureFixture[str]) -> None:
    """It says so."""
    Display(on_terminal=False).show_now()
    assert capsys.readouterr().err == "nothing has been started yet\n"


@pytest.mark.parametrize("survives", [False, True])
def test_interrupts(survives: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what a Ctrl-C does: to quanta that run here, or to jobs that do not."""
    display = Display(on_terminal=False, survives=survives)
    display.interrupted(1)
    display.interrupted(2)
    said = capsys.readouterr().err.splitlines()
    if survives:
        assert said == ["Interrupted: leaving; what was submitted goes on without this process."]
    else:
        assert [line.partition(":")[0] for line in said] == ["Interrupted", "Interrupted again"]
