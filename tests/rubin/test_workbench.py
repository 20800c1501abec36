"""Workbench and ExecutorBench, against real repositories and upstream's own executor."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import ButlerLogRecords
from lsst.pipe.base import InvalidQuantumError, NoWorkFound, QuantumSuccessCaveats
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult, QuantumExecutor

from qgexec.books.journal import segment_path
from qgexec.errors import GraphError, QuantumTimeUp, RepositoryError, RunDirError, RunInterrupted
from qgexec.quantum import OutcomeStatus
from qgexec.rubin.graphfile import read_plan
from qgexec.rubin.opener import ExecutorBenchOpener
from qgexec.rubin.recorder import MESSAGE_LENGTH
from tests.kit.butler import benchwork
from tests.kit.butler.benchwork import Site, attempts, registered, remembered
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository, copy_template
from tests.kit.butler.sites import CHAINED, make_moody
from tests.kit.tasks.moods import MoodyTask, UnprintableError, complaining, mood, partial, raising


@pytest.fixture
def twin(moody_template: MockRepository, tmp_path: Path) -> Site:
    """Another copy, for upstream's executor."""
    return Site(copy_template(moody_template, tmp_path / "twin"), tmp_path / "twin_run")


def assert_same(site: Site, twin: Site) -> None:
    """The two repositories hold the same in the output RUN."""
    ours, theirs = registered(site.repository), registered(twin.repository)
    assert ours.keys() == theirs.keys() != set()
    for key, expected in theirs.items():
        assert ours[key] == expected, key


ISR = ("isr",)


@pytest.mark.every(7)
@pytest.mark.parametrize(
    ("moods", "options"),
    [
        ({}, {}),
        ({"before_put": raising(ValueError("before"))}, {}),
        ({"after_put": raising(ValueError("after"))}, {}),
        ({"before_put": raising(NoWorkFound("nothing"))}, {}),
        ({"at_construction": raising(ValueError("not built"))}, {}),
        ({"after_put": partial}, {"raise_on_partial_outputs": True}),
        ({"after_put": partial}, {"raise_on_partial_outputs": False}),
    ],
    ids=["good", "before put", "after put", "no work", "constructor", "partial raised", "partial accepted"],
)
def test_same_as_pipetask(site: Site, twin: Site, moods: dict[str, Any], options: dict[str, Any]) -> None:
    """Whatever the tasks do, what a plain butler reads afterwards is what pipetask would have left.

    Calibrations are shared by several quanta, calibrate reads isr's
    init-output, and finds no work in adjustQuantum where isr found none.
    """
    with mood(**moods):
        run = site.run(**options)
        twin.run_as_pipetask(**options)
    site.ingest(list(run.details.values()))
    assert_same(site, twin)


def test_outcome_says_what_was_taken(site: Site) -> None:
    """Times, CPU, peak memory, host and process of an attempt are those of this process."""
    before_s = time.process_time()
    outcome = site.run(ISR).label("isr")[0]
    assert outcome.status is OutcomeStatus.SUCCEEDED
    assert outcome.started_at <= outcome.ended_at
    assert 0 < outcome.cpu_s <= time.process_time() - before_s
    assert outcome.peak_rss_bytes is not None
    assert outcome.peak_rss_bytes > 10_000_000
    assert outcome.pid == os.getpid()
    assert outcome.host == os.uname().nodename
    assert outcome.caveats == 0


@pytest.mark.parametrize(
    ("error", "type_name", "message", "exit_code"),
    [
        (SystemExit(3), "SystemExit", "called sys.exit(3)", None),
        (SystemExit(), "SystemExit", "called sys.exit()", None),
        (
            UnprintableError(),
            "tests.kit.tasks.moods.UnprintableError",
            "(its message cannot be had: str() raised",
            None,
        ),
        (ValueError("x" * 100_000), "ValueError", "x" * MESSAGE_LENGTH, None),
        (InvalidQuantumError("bad"), "lsst.pipe.base.InvalidQuantumError", "bad", 21),
        (GeneratorExit(), "GeneratorExit", "", None),
    ],
    ids=["exit", "bare exit", "unprintable", "huge", "invalid", "generator exit"],
)
def test_failures_are_values(
    site: Site, error: BaseException, type_name: str, message: str, exit_code: int | None
) -> None:
    """Whatever a task raises is summarised in two lines, with the whole traceback in the detail."""
    with mood(at_construction=raising(error)):
        run = site.run(ISR)
    exception = run.label("isr")[0].exception
    assert exception is not None
    assert exception.type == type_name
    assert exception.message.startswith(message)
    assert len(exception.message) <= MESSAGE_LENGTH
    assert exception.exit_code == exit_code
    assert "moods.py" in exception.where
    detail = run.detail("isr")
    assert "in act" in detail["traceback"]
    assert len(detail["traceback"]) > len(str(exception.message)) - 1
    assert pickle.loads(pickle.dumps(exception)) == exception


@pytest.mark.parametrize("when", ["at_construction", "before_put"])
def test_interrupt_is_not_the_quantums(site: Site, when: str) -> None:
    """Ctrl-C in a process that does not handle it ends the loop, not the quantum; the bench stays usable."""
    plan = read_plan(site.repository.graph)
    first, second = attempts(plan, ISR)[:2]
    with site.bench() as bench:
        with mood(**{when: raising(RunInterrupted)}), pytest.raises(RunInterrupted):
            bench.execute(first)
        assert remembered(bench) == []
        event = bench.execute(second)
    assert event.outcome.status is OutcomeStatus.SUCCEEDED  # type: ignore[union-attr]


def test_caveats(site: Site) -> None:
    """A quantum without work succeeds with upstream's caveats, wherever it finds out."""
    with mood(before_put=raising(NoWorkFound("nothing"))):
        run = site.run(("isr", "calibrate"))
    isr = QuantumSuccessCaveats(run.label("isr")[0].caveats)
    calibrate = QuantumSuccessCaveats(run.label("calibrate")[0].caveats)
    assert QuantumSuccessCaveats.NO_WORK in isr
    assert QuantumSuccessCaveats.ADJUST_QUANTUM_RAISED not in isr
    assert calibrate == QuantumSuccessCaveats.from_adjust_quantum_no_work()
    with mood(after_put=partial):
        accepted = site.run(ISR, raise_on_partial_outputs=False).label("isr")[0]
    assert QuantumSuccessCaveats.PARTIAL_OUTPUTS_ERROR in QuantumSuccessCaveats(accepted.caveats)


@pytest.mark.every(2)
@pytest.mark.parametrize("config", ["", CHAINED], ids=["file", "chained"])
def test_nothing_is_remembered(tmp_path: Path, config: str) -> None:
    """After any quantum, good or failed, the datastore has no row and no object, logging no handler more."""
    site = Site(make_moody(tmp_path / "data", config), tmp_path / "run")
    plan = read_plan(site.repository.graph)
    handlers = list(logging.getLogger().handlers)
    with site.bench() as bench:
        with_ours = list(logging.getLogger().handlers)
        for attempt in attempts(plan):
            after = raising(ValueError) if attempt.index % 3 == 2 else (lambda task: None)
            with mood(after_put=after):
                bench.execute(attempt)
            assert remembered(bench) == []
            assert logging.getLogger().handlers == with_ours
    assert logging.getLogger().handlers == handlers


def test_log_datasets_do_not_grow(site: Site) -> None:
    """A log dataset names no earlier quantum and has as many records as the first; metadata the same."""
    run = site.run(ISR)
    site.ingest(list(run.details.values()))
    with site.repository.butler(collections=[OUTPUT_RUN]) as butler:
        logs: list[ButlerLogRecords] = [
            butler.get(ref) for ref in butler.query_datasets("isr_log", collections=OUTPUT_RUN)
        ]
    assert len(logs) == 8
    assert {len(log) for log in logs} == {len(logs[0])}
    assert len(logs[0]) > 3
    assert {str(log.extra.get("previous_process_quanta")) for log in logs} == {"[]"}
    assert {record.MDC["RUN"] for log in logs for record in log} == {OUTPUT_RUN}


def test_log_is_streamed(site: Site) -> None:
    """While a quantum runs its log is in a plain file, flushed; the next quantum begins the file anew."""
    seen: list[str] = []
    path = site.run_dir / "logs" / "driver.log"

    def look(task: MoodyTask) -> None:
        task.log.warning("about to be %s", "killed")
        seen.append(path.read_text())

    with mood(before_put=look):
        run = site.run(ISR)
    for text, attempt in zip(seen, attempts(run.plan, ISR), strict=True):
        assert text.startswith(f"isr quantum {attempt.quantum_id} attempt 1\n")
        assert "WARNING tests.isr: about to be killed" in text
        assert text.count("about to be") == 1


def logs_of(site: Site) -> set[str]:
    return {path.name for path in (site.run_dir / "logs").iterdir()}


def test_log_of_a_failure_is_kept(site: Site) -> None:
    """The log of each attempt that failed has a name of its own; of those that did not, none is kept."""
    plan = read_plan(site.repository.graph)
    failing, good, last = attempts(plan, ISR)[:3]
    with site.bench() as bench:
        with mood(before_put=complaining("first")):
            bench.execute(failing)
        # A worker killed now has no log: the one of the failure is not to be taken for its.
        assert logs_of(site) == {f"{failing.index}.1.log"}
        logging.getLogger("lsst").warning("between attempts")
        with mood(before_put=complaining("second")):
            bench.execute(benchwork.later(failing))
        bench.execute(good)
        assert "quantum" in (site.run_dir / "logs" / "driver.log").read_text()
        bench.execute(last)
        assert logs_of(site) == {f"{failing.index}.1.log", f"{failing.index}.2.log", "driver.log"}
    assert logs_of(site) == {f"{failing.index}.1.log", f"{failing.index}.2.log"}
    for number, text in ((1, "first"), (2, "second")):
        lines = (site.run_dir / "logs" / f"{failing.index}.{number}.log").read_text().splitlines()
        assert lines[0] == f"isr quantum {failing.quantum_id} attempt {number}"
        assert any(f"WARNING tests.isr: {text}" in line for line in lines)
        assert any("ERROR lsst.pipe.base" in line for line in lines)
        assert not any("between" in line for line in lines)


def test_log_of_what_did_not_end_is_kept(site: Site) -> None:
    """A bench that closes in the middle of a quantum, by Ctrl-C, leaves its log."""
    with site.bench() as bench, mood(before_put=raising(RunInterrupted)), pytest.raises(RunInterrupted):
        bench.execute(attempts(read_plan(site.repository.graph), ISR)[0])
    assert logs_of(site) == {"driver.log"}


def test_time_that_is_up_is_not_the_quantums(site: Site) -> None:
    """What ends a quantum whose time is up comes out; its log is kept, the bench stays usable."""
    plan = read_plan(site.repository.graph)
    first, second = attempts(plan, ISR)[:2]
    with site.bench() as bench:
        with mood(before_put=raising(QuantumTimeUp)), pytest.raises(QuantumTimeUp):
            bench.execute(first)
        assert remembered(bench) == []
        assert logs_of(site) == {f"{first.index}.1.log"}
        event = bench.execute(second)
    assert event.outcome.status is OutcomeStatus.SUCCEEDED  # type: ignore[union-attr]


def test_logging_is_left_as_it_was(site: Site) -> None:
    """Levels, record factory and warnings are as before when a bench is closed; closing twice is nothing."""
    lsst = logging.getLogger("lsst")
    before = (lsst.level, logging.getLogger().level, logging.getLogRecordFactory(), warnings.showwarning)
    with site.bench() as bench:
        assert lsst.level == logging.INFO
        bench.close()
    assert (
        lsst.level,
        logging.getLogger().level,
        logging.getLogRecordFactory(),
        warnings.showwarning,
    ) == before


def test_skip_existing(site: Site) -> None:
    """Done quanta are skipped, and say what they had left, so that a registry that lost it can be healed."""
    first = site.run()
    second = site.run(run_is_new=False, skip_existing=True)
    assert {outcome.status for outcome in second.outcomes.values()} == {OutcomeStatus.SKIPPED}
    site.ingest(list(second.details.values()))
    assert first.details.keys() == first.outcomes.keys()
    for index, detail in first.details.items():
        again = second.details[index]
        assert sorted(again["outputs"]) == sorted(detail["outputs"])
        assert again["replaces"]
        assert "absent" not in again
        for datastore, data in detail["records"].items():
            assert again["records"][datastore]["records"] == data["records"]
    assert len(registered(site.repository)) >= sum(
        len(detail["outputs"]) for detail in first.details.values()
    )


@pytest.mark.thorough
def test_clobber(site: Site, twin: Site) -> None:
    """Outputs in the way are removed; what is not made again is named as absent."""
    first = site.run()
    site.ingest(list(first.details.values()))
    twin.run_as_pipetask()
    with mood(before_put=raising(NoWorkFound("not this time"))):
        second = site.run(run_is_new=False, clobber_outputs=True)
        twin.run_as_pipetask(clobber_outputs=True)
    site.ingest(list(second.details.values()))
    detail = second.detail("isr")
    assert len(detail["absent"]) == 1
    assert_same(site, twin)


def test_outputs_in_the_way(site: Site) -> None:
    """Without clobbering the quantum fails before it does anything; what was there stays and is reported."""
    first = site.run(ISR)
    files = sorted(path for path in site.repository.root.rglob("*") if path.is_file())
    second = site.run(ISR, run_is_new=False)
    assert {outcome.status for outcome in second.outcomes.values()} == {OutcomeStatus.FAILED}
    assert sorted(path for path in site.repository.root.rglob("*") if path.is_file()) == files
    assert sorted(second.detail("isr")["outputs"]) == sorted(first.detail("isr")["outputs"])


def test_rewritten_elsewhere(site: Site) -> None:
    """An intermediate that another worker has written anew, with another size, is read as it is now."""
    plan = read_plan(site.repository.graph)
    isr = attempts(plan, ISR)[0]
    calibrate = next(a for a in attempts(plan, ("calibrate",)) if isr.index in plan.prerequisites(a.index))
    with site.bench() as bench, site.bench(run_is_new=False, clobber_outputs=True) as other:
        bench.execute(isr)
        bench.execute(calibrate)
        other.execute(benchwork.later(isr))
        for path in site.repository.root.rglob("post_isr*/**/*.json"):
            path.write_text(path.read_text().rstrip() + " " * 100 + "\n")
        event = bench.execute(benchwork.later(calibrate))
    assert event.outcome.exception is None  # type: ignore[union-attr]


def test_opener_is_a_value(site: Site) -> None:
    """Openers travel by pickle and open in the process that gets them."""
    opener = site.opener(clobber_outputs=True)
    assert pickle.loads(pickle.dumps(opener)) == opener


@pytest.mark.parametrize("what", ["graph", "repository", "logs", "segment"])
def test_bad_openings(site: Site, what: str) -> None:
    """A file that is missing is one clear error when the bench opens; logging is as before."""
    opener = site.opener()
    handlers = list(logging.getLogger().handlers)
    expected: type[Exception] = RunDirError
    match what:
        case "graph":
            site.repository.graph.unlink()
            expected = GraphError
        case "repository":
            (site.repository.root / "butler.yaml").unlink()
            expected = RepositoryError
        case "logs":
            (site.run_dir / "logs").rmdir()
        case "segment":
            segment_path(site.run_dir / "segments", site.epoch, "driver").touch()
    with pytest.raises(expected):
        opener("driver")
    assert logging.getLogger().handlers == handlers


class CountingExecutor(QuantumExecutor):
    """A client's own executor, full of state."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def execute(self, task_node: Any, /, quantum: Any, quantum_id: Any = None, **kwargs: Any) -> Any:
        self.calls.append((task_node.label, str(quantum_id)))
        if len(self.calls) == 2:
            raise InvalidQuantumError("second")
        return QuantumExecutionResult(quantum, None, skipped_existing=len(self.calls) == 3)


def test_executor_bench(site: Site) -> None:
    """A client's executor is called as upstream calls it, keeps its state, and nothing is exported for it."""
    executor = CountingExecutor()
    opener = ExecutorBenchOpener(executor, str(site.repository.graph), site.opener().books)
    chosen = attempts(read_plan(site.repository.graph))[:4]
    bench = opener("driver")
    outcomes = [bench.execute(attempt).outcome for attempt in chosen]  # type: ignore[union-attr]
    bench.close()
    assert executor.calls == [(attempt.task_label, str(attempt.quantum_id)) for attempt in chosen]
    assert [outcome.status.name for outcome in outcomes] == ["SUCCEEDED", "FAILED", "SKIPPED", "SUCCEEDED"]
    assert [outcome.detail is not None for outcome in outcomes] == [False, True, False, False]
    assert outcomes[1].exception is not None
    assert outcomes[1].exception.exit_code == 21


def test_no_threads_are_left(site: Site) -> None:
    """A bench starts no threads, and tells libraries to start none."""
    before = threading.active_count()
    with site.bench():
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert threading.active_count() == before
