"""Measures loading a large thin graph as a `Plan`, and walking it through the scheduler.

A process of its own (``python -m benchmarks.planning``), so that its memory is nobody else's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.mockgraph import MockShape
from benchmarks.synthetic import SyntheticQuantum, read_block, synthetic_id, write_synthetic_graph
from qgexec.events import AttemptStarted, AttemptSucceeded
from qgexec.quantum import Outcome, OutcomeStatus, Resources
from qgexec.rubin.graphfile import read_plan
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler

__all__ = ["PlanCost", "measure_plan", "write_large_graph"]

_RUNNING = Resources(cores=2)


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What a plan costs."""

    n_quanta: int
    """Number of quanta."""
    load_s: float
    """Time to load it."""
    load_peak_bytes: int
    """Resident memory of the whole process at the highest."""
    kept_bytes: int
    """What the plan adds to the resident memory once it is loaded."""
    scheduler_bytes: int
    """What the scheduler adds to it."""
    walk_us: float
    """Time per quantum to select it, to make its two events, and to check and apply them, microseconds."""
    events_us: float
    """Time per quantum to make the two events alone, microseconds."""


def write_large_graph(graph_file: Path, path: Path, shape: MockShape) -> Path:
    """Write the thin part of a mock graph of any size; its quanta cannot be executed.

    Parameters
    ----------
    graph_file
        A real mock graph, for its pipeline.
    path
        File to write.
    shape
        Number of exposures and detectors.
    """
    thin = json.loads(read_block(graph_file, "thin_graph"))["quanta"]
    samples = {label: quanta[0]["data_coordinate"] for label, quanta in thin.items()}
    return write_synthetic_graph(graph_file, path, _quanta(shape, samples))


def _quanta(shape: MockShape, samples: dict[str, list[int | str]]) -> Iterator[SyntheticQuantum]:
    """Make the quanta of the mock graph; only instrument, detector and exposure of a data ID are true."""
    n = shape.exposures * shape.detectors
    instrument, _, _, *rest = samples["isr"]
    for label, first in (("isr", 0), ("calibrate", n)):
        for number in range(n):
            exposure, detector = divmod(number, shape.detectors)
            before = [synthetic_id(number)] if first else []
            yield label, synthetic_id(first + number), [instrument, detector, exposure, *rest], before
    for exposure in range(shape.exposures):
        begin = n + exposure * shape.detectors
        before = [synthetic_id(begin + detector) for detector in range(shape.detectors)]
        values = [samples["summary"][0], exposure, *samples["summary"][2:]]
        yield "summary", synthetic_id(2 * n + exposure), values, before
    summaries = [synthetic_id(2 * n + exposure) for exposure in range(shape.exposures)]
    yield "final", synthetic_id(2 * n + shape.exposures), samples["final"], summaries


def measure_plan(graph_file: Path) -> PlanCost:
    """Load a graph and walk it through the scheduler, in this process."""
    before = _settled_rss_bytes()
    started = time.perf_counter()
    plan = read_plan(graph_file)
    load_s = time.perf_counter() - started
    peak = _status_bytes("VmHWM")
    kept = _settled_rss_bytes()
    scheduler = Scheduler(plan, policy=Policy())
    made = _settled_rss_bytes()
    walked = time.perf_counter()
    _walk(scheduler)
    walk_s = time.perf_counter() - walked
    return PlanCost(
        n_quanta=len(plan),
        load_s=load_s,
        load_peak_bytes=peak,
        kept_bytes=kept - before,
        scheduler_bytes=made - kept,
        walk_us=1e6 * walk_s / len(plan),
        events_us=1e6 * _time_events(plan) / len(plan),
    )


def _walk(scheduler: Scheduler) -> None:
    """Run every quantum on two workers that need no time."""
    status = OutcomeStatus.SUCCEEDED
    while not scheduler.finished:
        attempts = scheduler.select(_RUNNING)
        for attempt in attempts:
            started = AttemptStarted(0.0, attempt.index, attempt.number)
            scheduler.check(started)
            scheduler.apply(started)
        for attempt in attempts:
            ended = AttemptSucceeded(0.0, Outcome(attempt.index, attempt.number, status, 0.0, 0.0))
            scheduler.check(ended)
            scheduler.apply(ended)


def _time_events(plan: Plan) -> float:
    status = OutcomeStatus.SUCCEEDED
    started = time.perf_counter()
    for index in range(len(plan)):
        AttemptStarted(0.0, index, 1)
        AttemptSucceeded(0.0, Outcome(index, 1, status, 0.0, 0.0))
    return time.perf_counter() - started


def _settled_rss_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one graph and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("graph_file", type=Path)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.result.write_text(json.dumps(asdict(measure_plan(options.graph_file))))


if __name__ == "__main__":
    main()
