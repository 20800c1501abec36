"""Measures how long readers take over a run of a million quanta, with and without a snapshot.

``python -m benchmarks.status make`` writes the books of a run that never was;
``read`` is a command of qgexec's whose exit code 1 is no failure of the benchmark.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.compare import Settings
from benchmarks.measure import Measurement, run_measured
from benchmarks.mockgraph import MockShape
from benchmarks.synthetic import synthetic_id
from benchmarks.tables import Section, Table
from qgexec.books.journal import Journal, SegmentWriter, segment_path
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.cli.main import main as qgexec
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptStarted,
    AttemptSucceeded,
    EndReason,
    Event,
    OutputsIngested,
    RunEnded,
    RunStarted,
    WorkerStarted,
)
from qgexec.quantum import ExceptionSummary, Outcome, OutcomeStatus, RunContext, SegmentRef
from qgexec.reports.keeper import LINES_BETWEEN
from qgexec.reports.snapshot import SnapshotReader
from qgexec.scheduling.dataids import DataIds
from qgexec.scheduling.plan import Plan

__all__ = ["make_books", "status"]

_LIMIT_S = 5.0
_MIB = 2.0**20
_BEGAN = 1_790_000_000.0
_LOST_EACH = 1000
"""One in so many of the first task loses its worker, and succeeds then."""
_FAILS_EACH = 20_000
"""One in so many of the first task fails, and blocks its exposure."""
_INGESTED_TOGETHER = 200


def status(settings: Settings) -> Section:
    """Read the books of a run of a million quanta: without a snapshot, and with one."""
    shape = settings.shape(500, 1000)
    folder = settings.scratch / "status"
    folder.mkdir()
    run_dir = folder / "run"
    settings.say(f"status: writing the journal of {shape.n_quanta} quanta")
    size = (str(shape.exposures), str(shape.detectors))
    make = (sys.executable, "-m", "benchmarks.status", "make", run_dir, *size)
    run_measured(make, timeout_s=settings.timeout_s, log=folder / "make.log")
    books = RunDir(run_dir)
    journal_bytes = sum(path.stat().st_size for path in books.journal.iterdir())
    live = _read_live(settings, folder, books)
    without, snapshots = [], []
    for _ in range(settings.repeat):
        books.snapshot_file.unlink(missing_ok=True)
        without.append(_read(settings, folder, "status", run_dir))
        snapshots.append(books.snapshot_file.stat().st_size)
    commands = {"status": ["status"], "report": ["report"], "report --json": ["report", "--json"]}
    found = {
        name: [_read(settings, folder, *words, run_dir) for _ in range(settings.repeat)]
        for name, words in commands.items()
    }
    rows = [
        _row("`qgexec status`, first reader of a run without snapshots", without, ""),
        _row("`qgexec status`, while a driver is at it", live, f"{_LIMIT_S:g} s"),
        *(_row(f"`qgexec {name}`, snapshot", runs, f"{_LIMIT_S:g} s") for name, runs in found.items()),
    ]
    per_quantum = {
        "journal": journal_bytes,
        "plan": books.plan_file.stat().st_size,
        "snapshot": snapshots[-1],
    }
    keeper_us = 1e6 * median([run.cpu_s for run in without]) / shape.n_quanta  # it does what that reader does
    sizes = tuple(
        (name, f"{n_bytes / _MIB:.0f} MiB", f"{n_bytes / shape.n_quanta:.0f}")
        for name, n_bytes in per_quantum.items()
    )
    return Section(
        name="status",
        title=f"Status and report of a run of {shape.n_quanta:,} quanta",
        tables=(
            Table(("", "wall", "CPU", "peak memory", "limit"), tuple(rows)),
            Table(("on disk", "all", "bytes per quantum"), sizes),
        ),
        data={
            "n_quanta": shape.n_quanta,
            "bytes": per_quantum,
            "without_snapshot_s": [run.wall_s for run in without],
            "live_s": [run.wall_s for run in live],
            "keeper_cpu_us_per_quantum": keeper_us,
            "with_snapshot_s": {name: [run.wall_s for run in runs] for name, runs in found.items()},
        },
        notes=(
            "Whole commands, start-up included. The journal is synthetic, in the mock graph's shape.",
            f"While a driver is at it: the last snapshot is {LINES_BETWEEN:,} lines old, and gets no older.",
            f"What makes them, at the lowest priority, takes {keeper_us:.0f} us of CPU time a quantum.",
            "The first reader writes a snapshot too; so does `qgexec run`, when it prints its report.",
            f"Medians of {settings.repeat} runs.",
        ),
    )


def _read_live(settings: Settings, folder: Path, books: RunDir) -> list[Measurement]:
    """Read a run whose last snapshot is as old as it becomes while a driver is at it."""
    journal = books.journal / "0001.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    n_new = min(LINES_BETWEEN, len(lines) // 2)
    journal.write_bytes(b"".join(lines[:-n_new]))
    kept = folder / "kept.npz"
    SnapshotReader(books.journal, books.load_plan(), kept, worth_keeping=1).read_on()
    with journal.open("ab") as file:
        file.writelines(lines[-n_new:])
    del lines
    found = []
    for _ in range(settings.repeat):
        shutil.copyfile(kept, books.snapshot_file)
        found.append(_read(settings, folder, "status", books.path))
    return found


def _read(settings: Settings, folder: Path, *words: str | Path) -> Measurement:
    settings.say(f"status: qgexec {words[0]}")
    command = [sys.executable, "-m", "benchmarks.status", "read", *words]
    return run_measured(command, timeout_s=settings.timeout_s, log=folder / "read.log")


def _row(name: str, runs: Sequence[Measurement], limit: str) -> tuple[str, ...]:
    """Return medians: wall, CPU, peak memory."""
    wall_s, cpu_s = median([run.wall_s for run in runs]), median([run.cpu_s for run in runs])
    peak_mib = median([run.driver_peak_rss_bytes for run in runs]) / _MIB
    return name, f"{wall_s:.1f} s", f"{cpu_s:.1f} s", f"{peak_mib:.0f} MiB", limit


def make_books(path: Path, shape: MockShape) -> RunDir:
    """Write the run directory of a run of the mock graph's shape; it has no graph file."""
    plan = make_plan(shape)
    run_dir = RunDir.create(path)
    run_dir.save_plan(plan)
    context = RunContext(str(run_dir.path), "/repo", "/graph.qg", "u/bench/run", "u/bench", ("raw",))
    segment = SegmentWriter(segment_path(run_dir.segments, 1, "worker-0001"))
    failure = segment.append({"traceback": "Traceback (most recent call last):\nValueError: no stars\n"})
    segment.close()
    with Journal.create(run_dir.journal) as journal:
        for event in _events(plan, failure):
            journal.append(event)
    run_dir.write_settings(RunSettings(context, "pool", labels=plan.labels))
    return run_dir


def make_plan(shape: MockShape) -> Plan:
    """Return the plan of a mock graph, without the graph."""
    n, n_exposures = shape.exposures * shape.detectors, shape.exposures
    summaries = 2 * n + np.arange(n_exposures)
    first = np.arange(n)
    edges = [
        (first, n + first),
        (n + first, np.repeat(summaries, shape.detectors)),
        (summaries, np.full(n_exposures, 2 * n + n_exposures)),
    ]
    of_detector = [("MockCam", number % shape.detectors, number // shape.detectors) for number in range(n)]
    of_exposure = [("MockCam", exposure) for exposure in range(n_exposures)]
    ids = (synthetic_id(number) for number in range(shape.n_quanta))
    return Plan.from_edges(
        labels={
            "isr": ("instrument", "detector", "exposure"),
            "calibrate": ("instrument", "detector", "exposure"),
            "summary": ("instrument", "exposure"),
            "final": ("instrument",),
        },
        label_codes=np.repeat(np.arange(4), (n, n, n_exposures, 1)),
        quantum_ids=b"".join(quantum_id.bytes for quantum_id in ids),
        data_ids=DataIds.pack([*of_detector, *of_detector, *of_exposure, ("MockCam",)]),
        predecessors=np.concatenate([before for before, _ in edges]),
        successors=np.concatenate([after for _, after in edges]),
    )


def _events(plan: Plan, failure: SegmentRef) -> Iterator[Event]:
    """Yield what a run of two workers would have recorded."""
    yield RunStarted(_BEGAN, "node1", 1000, _BEGAN, "pool", len(plan))
    for worker in (1, 2):
        yield WorkerStarted(_BEGAN, worker, "node1", 1000 + worker, _BEGAN)
    bad = bytearray(len(plan))
    done: list[int] = []
    at = _BEGAN
    for index in range(len(plan)):
        if any(bad[before] for before in plan.prerequisites(index)):
            bad[index] = 1
            continue
        at += 0.003021
        yield from _attempts(plan, index, round(at, 6), failure, bad)
        if not bad[index]:
            done.append(index)
        if len(done) == _INGESTED_TOGETHER:
            yield OutputsIngested(at, tuple(done), 3 * len(done))
            done.clear()
    yield OutputsIngested(at, tuple(done), 3 * len(done))
    yield RunEnded(at, EndReason.COMPLETED)


def _attempts(plan: Plan, index: int, at: float, failure: SegmentRef, bad: bytearray) -> Iterator[Event]:
    number, first_task = 1, plan.label_codes[index] == 0
    yield AttemptStarted(at, index, number)
    if first_task and index % _LOST_EACH == 1:
        reason = "worker 1 was killed by signal 9 (SIGKILL)"
        yield AttemptLost(at + 0.02, index, number, reason, -9, 1, 900_000_000, retried=True)
        number = 2
        yield AttemptStarted(at + 0.03, index, number)
    times = {"started_at": round(at + 0.04, 6), "ended_at": round(at + 0.0473, 6), "cpu_s": 0.006412}
    where = {"peak_rss_bytes": 251_658_240 + index, "host": "node1", "pid": 1001 + index % 2}
    if first_task and index % _FAILS_EACH == 2:
        bad[index] = 1
        error = ExceptionSummary("builtins.ValueError", f"only {index} stars", "/stack/isr.py:7 run")
        status = OutcomeStatus.FAILED
        outcome = Outcome(index, number, status, **times, **where, exception=error, detail=failure)  # type: ignore[arg-type]
        yield AttemptFailed(at + 0.05, outcome)
        return
    detail = SegmentRef(f"0001-worker-{1 + index % 2:04d}.jsonl", 1_412 * (index // 2), 1_412)
    outcome = Outcome(index, number, OutcomeStatus.SUCCEEDED, **times, **where, detail=detail)  # type: ignore[arg-type]
    yield AttemptSucceeded(round(at + 0.05, 6), outcome)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the books, or read them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.status", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make")
    make.add_argument("run_dir", type=Path)
    make.add_argument("exposures", type=int)
    make.add_argument("detectors", type=int)
    commands.add_parser("read").add_argument("words", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.command == "make":
        began = time.perf_counter()
        run_dir = make_books(options.run_dir, MockShape(options.exposures, options.detectors))
        print(json.dumps({"run_dir": str(run_dir.path), "took_s": time.perf_counter() - began}))
        return
    sys.argv = ["qgexec", *options.words]
    try:
        qgexec()
    except SystemExit as end:
        if end.code not in (0, 1):
            raise


if __name__ == "__main__":
    main()
