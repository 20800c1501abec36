"""Runs ``qgexec run`` in this process with a clock on each part: where the time of driver and worker goes.

With ``--model inprocess`` driver and worker are this process, so everything
that happens to a quantum is seen; with ``--model pool`` only the driver is.
A process of its own (``python -m benchmarks.breakdown``).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["PARTS", "Clock", "PartTime", "clocked"]

PARTS = {
    "load": ("qgexec.rubin.graphfile:read_plan", "qgexec.rubin.graphfile:prepare_graph"),
    "prepare": ("qgexec.rubin.preexec:prepare_run",),
    "schedule": (
        "qgexec.scheduling.scheduler:Scheduler.select",
        "qgexec.scheduling.scheduler:Scheduler.check",
        "qgexec.scheduling.scheduler:Scheduler.apply",
    ),
    "journal": ("qgexec.books.journal:Journal.append",),
    "send": ("qgexec.models.pool:Pool.start", "qgexec.models.pool:Pool.wait"),
    "read": ("qgexec.rubin.graphfile:GraphSource.quantum",),
    "execute": ("lsst.pipe.base.single_quantum_executor:SingleQuantumExecutor.execute",),
    "export": ("qgexec.rubin.workbench:Workbench.execute",),
    "offer": (
        "qgexec.ingestion.process:IngestionProcess.offer",
        "qgexec.ingestion.process:IngestionProcess.collect",
    ),
    "ingest": ("qgexec.rubin.ingest:Ingester.ingest",),
}
"""What is clocked, by the name of its part: time in a part that is called by another is the inner one's.

So ``export`` is what a worker does with a quantum besides reading and executing it: input records in, output
records out, the detail to its segment.
"""


@dataclass(slots=True)
class PartTime:
    """What one part took."""

    calls: int = 0
    """How often it was called."""
    wall_s: float = 0.0
    """Wall time in it, not counting other parts that it calls."""
    cpu_s: float = 0.0
    """CPU time of the calling thread, likewise."""


class Clock:
    """Attributes time to the innermost part that is running; for one thread."""

    def __init__(self) -> None:
        self.parts: dict[str, PartTime] = {}
        self._stack: list[PartTime] = []
        self._wall = self._cpu = 0.0

    def _charge(self) -> None:
        """Charge what has passed since the last switch to the part that was running."""
        wall, cpu = time.perf_counter(), time.thread_time()
        if self._stack:
            self._stack[-1].wall_s += wall - self._wall
            self._stack[-1].cpu_s += cpu - self._cpu
        self._wall, self._cpu = wall, cpu

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Charge the block to a part."""
        self._charge()
        part = self.parts.setdefault(name, PartTime())
        part.calls += 1
        self._stack.append(part)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with the clock on it."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.running(name):
                return function(*args, **kwargs)

        return wrapped


@contextmanager
def clocked(clock: Clock, parts: dict[str, tuple[str, ...]] = PARTS) -> Iterator[None]:
    """Put the clock on all parts while the block runs.

    Functions must be clocked before other modules import them by name.
    """
    replaced: list[tuple[Any, str, Any]] = []
    try:
        for name, places in parts.items():
            for place in places:
                module, _, path = place.partition(":")
                *owners, attribute = path.split(".")
                owner = functools.reduce(getattr, owners, importlib.import_module(module))
                original = getattr(owner, attribute)
                setattr(owner, attribute, clock.wrap(name, original))
                replaced.append((owner, attribute, original))
        yield
    finally:
        for owner, attribute, original in reversed(replaced):
            setattr(owner, attribute, original)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with the clock on and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.breakdown", description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="arguments of qgexec")
    options = parser.parse_args(arguments)
    clock = Clock()
    started, started_cpu = time.perf_counter(), time.process_time()
    with clocked(clock):
        imported = time.perf_counter(), time.process_time()
        from qgexec.cli.main import main as qgexec_main

        sys.argv = ["qgexec", *options.command]
        exit_code = _exit_code(qgexec_main)
    parts = {name: asdict(part) for name, part in clock.parts.items()}
    parts["imports"] = asdict(PartTime(1, imported[0] - started, imported[1] - started_cpu))
    whole = asdict(PartTime(1, time.perf_counter() - started, time.process_time() - started_cpu))
    options.result.write_text(json.dumps({"parts": parts, "whole": whole}))
    sys.exit(exit_code)


def _exit_code(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


if __name__ == "__main__":
    main()
