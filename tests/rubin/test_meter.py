"""Meter: what an attempt took, and what the kernel cannot tell."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lsst.pipe.base import TaskMetadata

from qgexec.events import AttemptSucceeded, Event
from qgexec.models.base import Run
from qgexec.models.pool import Pool
from qgexec.quantum import Attempt, Outcome, OutcomeStatus
from qgexec.rubin.meter import Meter
from tests.kit.butler.benchwork import Site, registered
from tests.kit.butler.repos import OUTPUT_RUN
from tests.kit.butler.sites import make_moody
from tests.kit.runs.benches import attempts, endings, make_run, take, work_off
from tests.kit.tasks.moods import MoodyTask, mood

BIG = 300 << 20

CHILD = "import sys; block = bytearray(b'x') * int(sys.argv[1])"


def test_peak_is_unknown_where_it_cannot_be_set_back(tmp_path: Path) -> None:
    """Where the mark cannot be reset, the peak is unknown rather than that of an earlier quantum."""
    (tmp_path / "status").write_text("VmHWM: 12 kB\n")
    meter = Meter(tmp_path / "missing")
    assert meter.read().peak_rss_bytes is None
    (tmp_path / "clear_refs").touch()
    meter = Meter(tmp_path)
    assert meter.read().peak_rss_bytes == 12 * 1024


def test_usage_is_that_since_the_start() -> None:
    """CPU time is counted from the start, not from that of the process."""
    meter = Meter()
    sum(range(2_000_000))
    first = meter.read()
    meter.start()
    second = meter.read()
    assert second.cpu_s <= first.cpu_s
    assert first.started_at <= first.ended_at <= second.started_at


class MeteredBench:
    """Measures as the benches of real runs do; what upstream reads, too, is in the caveats, in kB."""

    def __init__(self) -> None:
        self._meter = Meter()

    def execute(self, attempt: Attempt) -> Event:
        self._meter.start()
        match attempt.task_label:
            case "big":
                take(BIG).close()
            case "parent":
                subprocess.run([sys.executable, "-S", "-c", CHILD, str(BIG)], check=True)
        usage = self._meter.read()
        outcome = Outcome(
            attempt.index,
            attempt.number,
            OutcomeStatus.SUCCEEDED,
            usage.started_at,
            usage.ended_at,
            peak_rss_bytes=usage.peak_rss_bytes,
            pid=os.getpid(),
            caveats=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        )
        return AttemptSucceeded(time.time(), outcome)

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class MeteredOpener:
    def __call__(self, name: str) -> MeteredBench:
        return MeteredBench()


def run_in_one_worker(folder: Path, *labels: str) -> list[Outcome]:
    """Run these one after another in the same warm worker."""
    run = make_run(folder)
    pool = Pool(1)
    pool.open(Run(run.context, MeteredOpener(), run.logs))
    events = endings(work_off(pool, attempts(*labels)))
    pool.close(cancel=True)
    outcomes = [event.outcome for event in events if isinstance(event, AttemptSucceeded)]
    assert len({outcome.pid for outcome in outcomes}) == 1
    return outcomes


def test_big_then_small_in_a_warm_worker(tmp_path: Path) -> None:
    """After a big quantum a small one in the same process has its own peak, in our figure and upstream's."""
    first, big, small = run_in_one_worker(tmp_path, "small", "big", "small")
    for peaks in (
        [outcome.peak_rss_bytes or 0 for outcome in (first, big, small)],
        [outcome.caveats * 1024 for outcome in (first, big, small)],
    ):
        assert peaks[1] > peaks[0] + BIG * 0.9
        assert peaks[2] < peaks[0] + BIG * 0.1


def test_peak_of_a_child(tmp_path: Path) -> None:
    """A child that was larger than its parent counts, however short the quantum; the next is small again."""
    first, parent, small = run_in_one_worker(tmp_path, "small", "parent", "small")
    peaks = [outcome.peak_rss_bytes or 0 for outcome in (first, parent, small)]
    assert peaks[1] >= BIG
    assert peaks[2] < peaks[0] + BIG * 0.1


def test_metadata_datasets_of_a_big_and_a_small_quantum(tmp_path: Path) -> None:
    """Upstream's metadata of a small quantum does not have the peak of a big one before it."""
    site = Site(make_moody(tmp_path / "data"), tmp_path / "run")
    executed: list[MoodyTask] = []

    def be_big(task: MoodyTask) -> None:
        executed.append(task)
        if len(executed) == 2:
            take(BIG).close()

    with mood(before_put=be_big):
        run = site.run(("isr",))
    site.ingest(list(run.details.values()))
    assert registered(site.repository)
    with site.repository.butler() as butler:
        written: list[TaskMetadata] = [
            butler.get(ref) for ref in butler.query_datasets("isr_metadata", collections=OUTPUT_RUN)
        ]
    for figures in (
        sorted(int(metadata["quantum"]["endMaxResidentSetSize"]) for metadata in written),
        sorted(outcome.peak_rss_bytes or 0 for outcome in run.outcomes.values()),
    ):
        assert len(figures) == 8
        assert figures[-1] > figures[0] + BIG * 0.9
        assert figures[-2] < figures[0] + BIG * 0.2
    big = list(run.outcomes.values())[1]
    assert big.peak_rss_bytes == max(outcome.peak_rss_bytes or 0 for outcome in run.outcomes.values())
