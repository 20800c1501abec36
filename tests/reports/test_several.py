"""Tests of `qgexec.reports.several`: the last word on each quantum, whoever had it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qgexec.books.journal import Journal
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.errors import UsageError
from qgexec.events import (
    AttemptFailed,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    EndReason,
    Event,
    RunEnded,
    RunStarted,
)
from qgexec.quantum import ExceptionSummary, Outcome, OutcomeStatus, RunContext
from qgexec.reports.several import SeveralRuns, read_several
from qgexec.reports.severaltext import format_several
from qgexec.scheduling.plan import Plan
from qgexec.testing import make_plan

PLAN = "isr:1 isr:2 isr:3; isr:1 -> calibrate:1; isr:2 -> calibrate:2; isr:3 -> calibrate:3"
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the books of runs, one after another: quanta by name, and what became of them."""
    made: list[Path] = []

    def make(plan: str, fates: dict[str, str], **settings: object) -> Path:
        path = tmp_path / f"run{len(made) + 1}"
        made.append(path)
        _write(path, make_plan(plan), fates, 1000.0 * len(made))
        return path

    return make


def _write(path: Path, plan: Plan, fates: dict[str, str], at: float) -> None:
    run_dir = RunDir.create(path)
    run_dir.save_plan(plan)
    context = RunContext(str(path), "/repo", "/graph.qg", f"u/me/{path.name}", "u/me", ("raw",))
    run_dir.write_settings(replace(RunSettings(context, "pool", labels=plan.labels), created_at=at))
    with Journal.create(run_dir.journal) as journal:
        journal.append(RunStarted(at, "node1", 42, at - 1, "pool", len(plan)))
        for index in range(len(plan)):
            fate = fates.get(f"{plan.label(index)}:{next(iter(plan.data_id(index).values()))}")
            if fate is not None:
                journal.append(AttemptStarted(at + 1, index, 1))
                journal.append(_ending(index, fate, at))
        journal.append(RunEnded(at + 9, EndReason.COMPLETED))


def _ending(index: int, fate: str, at: float) -> Event:
    def outcome(status: OutcomeStatus, **kwargs: object) -> Outcome:
        return Outcome(index, 1, status, at + 1, at + 3, 1.5, 1000 + index, "node1", 50, **kwargs)  # type: ignore[arg-type]

    match fate:
        case "ok":
            return AttemptSucceeded(at + 3, outcome(OutcomeStatus.SUCCEEDED))
        case "caveat":
            return AttemptSucceeded(at + 3, outcome(OutcomeStatus.SUCCEEDED, caveats=4))
        case "skipped":
            return AttemptSkipped(at + 3, replace(outcome(OutcomeStatus.SKIPPED), cpu_s=0.125))
        case _:
            error = ExceptionSummary("builtins.ValueError", fate, "isr.py:7 run")
            return AttemptFailed(at + 3, outcome(OutcomeStatus.FAILED, exception=error))


FIRST = {"isr:1": "ok", "isr:2": "no stars", "isr:3": "clouds", "calibrate:1": "caveat"}


def counts(runs: SeveralRuns) -> list[tuple[str, int, int, int, int, int]]:
    """Return label, succeeded, recovered, failed, blocked and not run of each task."""
    return [(t.label, t.succeeded, t.recovered, t.failed, t.blocked, t.not_run) for t in runs.tasks]


def test_a_success_anywhere_counts(make: Make) -> None:
    """Whether or not the graph that was built anew has the quantum; what failed again is failed."""
    first = make(PLAN, FIRST)
    second = make(
        "isr:2 -> calibrate:2; isr:3 -> calibrate:3",
        {"isr:2": "ok", "isr:3": "no stars", "calibrate:2": "ok"},
    )
    runs = read_several([second, first])
    assert [share.report.run_dir.path for share in runs.shares] == [first, second]
    assert counts(runs) == [("isr", 2, 1, 1, 0, 0), ("calibrate", 2, 1, 0, 1, 0)]
    assert [(share.n_known, share.recovered) for share in runs.shares] == [(0, 0), (4, 2)]
    assert [task.caveats for task in runs.tasks] == [{}, {"NO_WORK": 1}]
    assert runs.total.n_quanta == 6
    assert not runs.all_succeeded
    # Two failed in the first, one in the second, 1.5 s each.
    assert (runs.total.useful_cpu_s, runs.total.wasted_cpu_s) == (4 * 1.5, 3 * 1.5)
    assert [[q.message for q in share.report.failures] for share in runs.shares] == [[], ["no stars"]]
    assert [len(share.report.retried) for share in runs.shares] == [2, 0]
    assert runs.total.retried == 2


def test_the_same_graph_in_another_run(make: Make) -> None:
    """Quanta that are skipped as done were done in the first; what is done again counts from the last."""
    first = make(PLAN, FIRST)
    again = dict.fromkeys(("isr:2", "isr:3", "calibrate:2", "calibrate:3"), "ok")
    second = make(PLAN, {"isr:1": "skipped", "calibrate:1": "ok", **again})
    runs = read_several([first, second])
    assert counts(runs) == [("isr", 3, 2, 0, 0, 0), ("calibrate", 3, 2, 0, 0, 0)]
    assert runs.all_succeeded
    assert [task.caveats for task in runs.tasks] == [{}, {}]
    # Of calibrate 1 the second success counts, of isr 1 the first.
    assert (runs.total.useful_cpu_s, runs.total.wasted_cpu_s) == (6 * 1.5 + 0.125, 3 * 1.5)
    wall = runs.tasks[0].wall
    assert wall is not None
    assert wall.n == 3


def test_a_run_that_did_not_get_so_far_has_not_the_last_word(make: Make) -> None:
    """What is blocked or waits in a later run is still failed; what failed later has failed of that."""
    first = make(PLAN, FIRST)
    second = make(PLAN, {"isr:1": "ok", "isr:2": "other"})
    runs = read_several([first, second])
    assert counts(runs) == [("isr", 1, 0, 2, 0, 0), ("calibrate", 1, 0, 0, 2, 0)]
    assert [[q.message for q in share.report.failures] for share in runs.shares] == [["clouds"], ["other"]]


def test_nothing_wasted_is_nothing(make: Make) -> None:
    """What the second run found done was not done again."""
    first, second = (
        make(PLAN, {"isr:1": "ok", "isr:2": "ok"}),
        make(PLAN, {"isr:1": "skipped", "isr:3": "ok"}),
    )
    runs = read_several([first, second])
    assert (runs.total.useful_cpu_s, runs.total.wasted_cpu_s) == (4.625, 0.0)


def test_text(make: Make) -> None:
    """Runs, what holds in the end, and the causes of what is still failed, in 80 columns."""
    first, second = make(PLAN, FIRST), make("isr:2 isr:3", {"isr:2": "ok", "isr:3": "clouds"})
    text = format_several(read_several([first, second]), width=80)
    lines = text.splitlines()
    at = lines.index("CPU time       4.5 s useful, 4.5 s wasted")
    assert [line.split() for line in lines[at + 2 : at + 5]] == [
        ["run", "state", "quanta", "succeeded", "skipped", "recovered", "failed", "blocked", "not", "run"],
        ["1", "failed", "6", "2", "0", "0", "2", "2", "0"],
        ["2", "failed", "2", "1", "0", "1", "1", "0", "0"],
    ]
    assert f"Still failed, last tried in run 2 ({second})" in lines
    assert "Still failed, last tried in run 1" not in text
    assert "1. 1 x builtins.ValueError at isr.py:7 run" in lines
    assert [line for line in lines if len(line) > 80 and str(second.parent) not in line] == []
    brief = format_several(read_several([first, second]), width=80, brief=True)
    assert text.startswith(brief)
    assert "ValueError" not in brief


def test_strangers_are_pointed_at(make: Make) -> None:
    """A run that has no quantum of another may have been named by mistake."""
    text = format_several(read_several([make("isr:1", {}), make("isr:2", {})]))
    assert "No quantum of run 2 is in an earlier one" in text


def test_json(make: Make) -> None:
    """Each failure says which run's it is."""
    first, second = make(PLAN, FIRST), make("isr:2 isr:3", {"isr:2": "ok", "isr:3": "clouds"})
    report = json.loads(json.dumps(read_several([first, second]).to_json(), allow_nan=False))
    assert (report["kind"], report["all_succeeded"]) == ("runs", False)
    assert [(run["run_dir"], run["recovered"]) for run in report["runs"]] == [
        (str(first), 0),
        (str(second), 1),
    ]
    assert [(failure["run"], failure["index"]) for failure in report["failures"]] == [(2, 1)]
    assert [(quantum["run"], quantum["state"]) for quantum in report["retried"]] == [
        (1, "failed"),
        (1, "failed"),
    ]
    assert [cause["run"] for cause in report["causes"]] == [2]


def test_a_run_named_twice(make: Make) -> None:
    """It is refused: it would have recovered itself."""
    run = make(PLAN, FIRST)
    with pytest.raises(UsageError, match="twice"):
        read_several([run, run.parent / "." / run.name])
