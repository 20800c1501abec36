"""Measures how fast no-op quanta go through two worker processes: qgexec's pool beside `concurrent.futures`.

Both walk the same graph, each quantum after its prerequisites; a worker gets
the index and returns at once. A process of its own (``python -m benchmarks.transport``).
"""

from __future__ import annotations

import argparse
import json
import time
from array import array
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue

from qgexec.events import AttemptStarted, AttemptSucceeded, Event
from qgexec.models.base import ExecutionModel, Run
from qgexec.models.pool import Pool
from qgexec.quantum import Attempt, Outcome, OutcomeStatus, RunContext
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler

__all__ = ["NoOpBench", "Rate", "open_no_op_bench", "run_futures", "run_pool"]

_WAIT_S = 5.0
_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast quanta went through."""

    n_quanta: int
    """Number of quanta."""
    start_s: float
    """From opening the workers to the first result."""
    run_s: float
    """From the first result to the last."""
    driver_cpu_s: float
    """CPU time of the driver between them."""

    @property
    def per_s(self) -> float:
        """Quanta per second once the workers are there."""
        return (self.n_quanta - 1) / self.run_s

    @property
    def driver_us(self) -> float:
        """CPU time of the driver for one quantum, microseconds."""
        return 1e6 * self.driver_cpu_s / (self.n_quanta - 1)


class NoOpBench:
    """Executes nothing: gets an index, says that it succeeded."""

    def execute(self, attempt: Attempt) -> Event:
        """Return at once."""
        now = time.time()
        status = OutcomeStatus.SUCCEEDED
        return AttemptSucceeded(now, Outcome(attempt.index, attempt.number, status, now, now))

    def close(self) -> None:
        """Nothing to release."""


def open_no_op_bench(_segment: str) -> NoOpBench:
    """Return a bench; module-level, so that workers find it by name."""
    return NoOpBench()


def run_pool(plan: Plan, workers: int, folder: Path) -> Rate:
    """Send a plan through qgexec's scheduler and pool, without a journal."""
    context = RunContext(run_dir=str(folder), repository="", graph_file="", output_run="")
    run = Run(context=context, bench_opener=open_no_op_bench, logs=folder)
    model: ExecutionModel = Pool(processes=workers)
    scheduler = Scheduler(plan, policy=Policy())
    opened = time.perf_counter()
    model.open(run)
    try:
        first, first_cpu = _drive(scheduler, model, opened + _LIMIT_S)
        ended, ended_cpu = time.perf_counter(), time.thread_time()
    finally:
        model.close(cancel=True)
    return Rate(len(plan), first - opened, ended - first, ended_cpu - first_cpu)


def _drive(scheduler: Scheduler, model: ExecutionModel, deadline: float) -> tuple[float, float]:
    """Run everything; return wall and CPU clock at the first result."""
    first: tuple[float, float] | None = None
    while not scheduler.finished:
        attempts = scheduler.select(model.capacity())
        if attempts:
            now = time.time()
            for attempt in attempts:
                scheduler.apply(AttemptStarted(now, attempt.index, attempt.number))
            model.start(attempts)
        for event in model.wait(_WAIT_S):
            scheduler.apply(event)
            if first is None and isinstance(event, AttemptSucceeded):
                first = time.perf_counter(), time.thread_time()
        if time.perf_counter() > deadline:
            raise TimeoutError("the pool did not finish in time")
    assert first is not None
    return first


def _no_op(index: int) -> int:
    return index


def run_futures(plan: Plan, workers: int) -> Rate:
    """Send a plan through a `ProcessPoolExecutor` in the leanest loop that keeps the order."""
    missing: array[int] = array("i", plan.prerequisite_counts())
    results: SimpleQueue[Future[int]] = SimpleQueue()
    opened = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:

        def submit(index: int) -> None:
            pool.submit(_no_op, index).add_done_callback(results.put)

        for index in range(len(plan)):
            if not missing[index]:
                submit(index)
        first = first_cpu = 0.0
        for number in range(len(plan)):
            index = results.get(timeout=_LIMIT_S).result()
            if not number:
                # The executor manages its workers in a thread of its own.
                first, first_cpu = time.perf_counter(), time.process_time()
            for successor in plan.successors(index):
                missing[successor] -= 1
                if not missing[successor]:
                    submit(successor)
        ended, ended_cpu = time.perf_counter(), time.process_time()
    return Rate(len(plan), first - opened, ended - first, ended_cpu - first_cpu)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one engine and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument("engine", choices=("pool", "futures"))
    parser.add_argument("graph_file", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args(arguments)
    # Workers import this module: what only the driver needs would be in their start-up.
    from qgexec.rubin.graphfile import read_plan

    plan = read_plan(options.graph_file)
    folder: Path = options.result.parent
    rate = (
        run_pool(plan, options.workers, folder)
        if options.engine == "pool"
        else run_futures(plan, options.workers)
    )
    options.result.write_text(json.dumps({**asdict(rate), "per_s": rate.per_s, "driver_us": rate.driver_us}))


if __name__ == "__main__":
    main()
