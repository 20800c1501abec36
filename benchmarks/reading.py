"""Measures what an executor pays that gets its real `Quantum`, beside what reading it takes by itself.

A process of its own (``python -m benchmarks.reading``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

from benchmarks.journals import outcomes
from benchmarks.nullexecutor import NullExecutor
from qgexec import GraphExecutor
from qgexec.rubin.graphfile import GraphSource, read_plan

__all__ = ["ReadCost", "measure_reading"]


@dataclass(frozen=True, slots=True)
class ReadCost:
    """CPU time of a worker for each quantum, microseconds: means without the first tenth."""

    n_quanta: int
    """Number of quanta."""
    read_us: float
    """Reading the quantum from the graph file, in a loop."""
    attempt_us: float
    """A whole attempt in a worker, with an executor that does nothing."""

    @property
    def ratio(self) -> float:
        """Attempt over reading."""
        return self.attempt_us / self.read_us


def measure_reading(graph_file: Path, workers: int, run_dir: Path) -> ReadCost:
    """Read all quanta in a loop, then run them on the pool with an executor that does nothing."""
    plan = read_plan(graph_file)
    source = GraphSource(graph_file)
    source.quantum(plan.quantum_id(0))
    reads = []
    for index in range(len(plan)):
        started = time.process_time()
        source.quantum(plan.quantum_id(index))
        reads.append(time.process_time() - started)
    executor = GraphExecutor(
        model="pool", processes=workers, quantum_executor=NullExecutor(), run_dir=str(run_dir)
    )
    executor.execute(str(graph_file))
    ended = sorted(chain.from_iterable(outcomes(run_dir).values()), key=lambda outcome: outcome.started_at)
    attempts = [outcome.cpu_s for outcome in ended]
    return ReadCost(len(plan), _settled_us(reads), _settled_us(attempts))


def _settled_us(times_s: Sequence[float]) -> float:
    # Not the median: the kernel may count a process's CPU time in ticks that are longer than an attempt.
    return 1e6 * fmean(times_s[len(times_s) // 10 :])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one graph and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("graph_file", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args(arguments)
    cost = measure_reading(options.graph_file, options.workers, options.result.parent / "run")
    options.result.write_text(json.dumps({**asdict(cost), "ratio": cost.ratio}))


if __name__ == "__main__":
    main()
