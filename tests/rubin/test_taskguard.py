"""What tasks do to their process, at a real bench: children that come back, bad texts, isolation."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lsst.daf.butler import Butler

from qgexec.events import AttemptLost, AttemptSucceeded
from qgexec.quantum import OutcomeStatus
from qgexec.rubin.graphfile import read_plan
from tests.kit.butler.benchwork import Site, attempts, registered, remembered
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository, copy_template
from tests.kit.tasks.moods import Mood, MoodyTask, complaining, mood, raising

ISR = ("isr",)
BAD_NAME = os.fsdecode(b"caf\xe9.fits")


def forking(act: Callable[[], object]) -> Mood:
    """Return a mood whose child does something and comes back."""

    def mood_(task: MoodyTask) -> None:
        if pid := os.fork():
            os.waitpid(pid, 0)
        else:
            task.log.warning("of the child")
            act()

    return mood_


def _raise() -> None:
    raise RuntimeError("the child could not do its work")


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.every(5)
@pytest.mark.parametrize("place", ["at_construction", "before_put", "after_put"])
@pytest.mark.parametrize(
    "act", [_raise, sys.exit, _interrupt, lambda: None], ids=["raise", "exit", "interrupt", "return"]
)
def test_a_child_that_comes_back(site: Site, place: str, act: Callable[[], object]) -> None:
    """The quantum is its parent's alone: one outcome, log and metadata once, nothing of the child in them."""
    with mood(**{place: forking(act)}):
        run = site.run(ISR)
    assert {outcome.status for outcome in run.outcomes.values()} == {OutcomeStatus.SUCCEEDED}
    assert {outcome.pid for outcome in run.outcomes.values()} == {os.getpid()}
    site.ingest([*run.details.values()])
    with Butler.from_config(str(site.repository.root), collections=OUTPUT_RUN) as butler:
        refs = butler.query_datasets("isr_log")
        assert len(refs) == len(run.outcomes)
        for ref in refs:
            assert "of the child" not in str(butler.get(ref))


def test_interrupt_of_the_tasks_own(site: Site) -> None:
    """A `KeyboardInterrupt` that the user has not sent is the quantum's failure."""
    with mood(before_put=raising(KeyboardInterrupt("by itself"))):
        run = site.run(ISR)
    assert {each.exception.type for each in run.outcomes.values() if each.exception} == {"KeyboardInterrupt"}
    assert all(each.status is OutcomeStatus.FAILED for each in run.outcomes.values())


def test_undecodable_names(site: Site) -> None:
    """In a log message they are escaped, and the quantum succeeds."""

    def log(task: MoodyTask) -> None:
        task.log.warning("bad file name %s", BAD_NAME)

    with mood(before_put=log):
        run = site.run(ISR)
    site.ingest([*run.details.values()])
    with Butler.from_config(str(site.repository.root), collections=OUTPUT_RUN) as butler:
        for ref in butler.query_datasets("isr_log"):
            assert "bad file name caf\\udce9.fits" in [record.message for record in butler.get(ref)]


def test_undecodable_metadata(site: Site) -> None:
    """In metadata, too."""

    def note(task: MoodyTask) -> None:
        task.metadata["file"] = BAD_NAME

    with mood(before_put=note):
        run = site.run(ISR)
    assert {outcome.status for outcome in run.outcomes.values()} == {OutcomeStatus.SUCCEEDED}
    site.ingest([*run.details.values()])
    with Butler.from_config(str(site.repository.root), collections=OUTPUT_RUN) as butler:
        for ref in butler.query_datasets("isr_metadata"):
            assert butler.get(ref)["isr"]["file"] == "caf\\udce9.fits"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError(BAD_NAME), "caf\\udce9.fits"),
        (FileNotFoundError(2, "No such file", BAD_NAME), "[Errno 2] No such file: 'caf\\udce9.fits'"),
    ],
)
def test_undecodable_causes(site: Site, error: Exception, message: str) -> None:
    """A failure keeps its own type and message, with the name escaped; its log is kept."""
    with mood(before_put=raising(error)):
        run = site.run(ISR)
    summary = run.label("isr")[0].exception
    assert summary is not None
    assert summary.type.endswith(type(error).__name__)
    assert summary.message == message
    assert "isr_log" in str(run.detail("isr")["outputs"])


def test_isolated(site: Site) -> None:
    """Nothing that a quantum does to a process of its own is seen by the next."""
    pids = []

    def leave(task: MoodyTask) -> None:
        pids.append(os.getpid())
        os.environ["LEFT"] = "1"
        assert len(pids) == 1

    with mood(before_put=leave), site.bench() as bench:
        plan = read_plan(site.repository.graph)
        events = [bench.execute(replace(each, isolated=True)) for each in attempts(plan, ISR)]
        assert remembered(bench) == []
    assert all(isinstance(event, AttemptSucceeded) for event in events)
    assert pids == []
    assert "LEFT" not in os.environ
    run = [event.outcome for event in events if isinstance(event, AttemptSucceeded)]
    assert all(each.peak_rss_bytes and each.cpu_s > 0 for each in run)


def test_isolated_is_the_same(site: Site, tmp_path: Path, moody_template: MockRepository) -> None:
    """Outputs, records and failures are those of a quantum that ran in the worker itself."""
    twin = Site(copy_template(moody_template, tmp_path / "twin"), tmp_path / "twin_run")
    for each, isolated in ((site, True), (twin, False)):
        run = each.run(ISR, isolated=isolated)
        each.ingest([*run.details.values()])
    ours, theirs = registered(site.repository), registered(twin.repository)
    assert ours.keys() == theirs.keys() != set()
    for key, expected in theirs.items():
        assert ours[key] == expected, key


def test_isolated_failure(site: Site) -> None:
    """It has its exception, traceback and log."""
    with mood(before_put=complaining("not today")):
        run = site.run(ISR, isolated=True)
    exception = run.label("isr")[0].exception
    assert exception is not None
    assert exception.message == "not today"
    assert "in act" in run.detail("isr")["traceback"]
    assert "not today" in next((site.run_dir / "logs").glob("*.1.log")).read_text()


def test_isolated_death(site: Site) -> None:
    """A quantum that ends its own process is lost, and its worker goes on."""

    def die(task: MoodyTask) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    first, second = attempts(read_plan(site.repository.graph), ISR)[:2]
    with site.bench() as bench:
        with mood(before_put=die):
            lost = bench.execute(replace(first, isolated=True))
        assert isinstance(lost, AttemptLost)
        assert lost.exit_code == -signal.SIGKILL
        assert "its process was killed by signal 9 (SIGKILL)" in lost.reason
        assert isinstance(bench.execute(replace(second, isolated=True)), AttemptSucceeded)
        assert isinstance(bench.execute(replace(first, number=2)), AttemptSucceeded)
