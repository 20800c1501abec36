"""What a run directory of qgexec tells about the course of a run: costs and memory, first and last."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from qgexec.books.journal import read_events
from qgexec.books.rundir import RunDir
from qgexec.events import AttemptSucceeded
from qgexec.quantum import Outcome

__all__ = ["Drift", "cost_drift", "log_size_drift", "memory_drift", "outcomes"]


@dataclass(frozen=True, slots=True)
class Drift:
    """A figure at the beginning and at the end of a run."""

    first: float
    """Over the first tenth."""
    last: float
    """Over the last tenth."""

    @property
    def ratio(self) -> float:
        """Last over first: 1 where nothing grows."""
        return self.last / self.first

    @classmethod
    def of(cls, values: Sequence[float]) -> Drift:
        """Return the means of the first and the last tenth."""
        tenth = max(1, len(values) // 10)
        return cls(fmean(values[:tenth]), fmean(values[-tenth:]))


def outcomes(run_dir: Path) -> dict[str, list[Outcome]]:
    """Return the outcomes of all quanta that succeeded, in order of their start, by task label."""
    opened = RunDir.open(run_dir)
    plan = opened.load_plan()
    found: dict[str, list[Outcome]] = defaultdict(list)
    for event in read_events(opened.journal):
        if isinstance(event, AttemptSucceeded):
            found[plan.label(event.index)].append(event.outcome)
    for of_label in found.values():
        of_label.sort(key=lambda outcome: outcome.started_at)
    return dict(found)


def cost_drift(by_label: dict[str, list[Outcome]], label: str) -> tuple[Drift, Drift]:
    """Return wall and CPU seconds per quantum of one task, whose quanta are all alike."""
    runs = by_label[label]
    return Drift.of([o.ended_at - o.started_at for o in runs]), Drift.of([o.cpu_s for o in runs])


def memory_drift(by_label: dict[str, list[Outcome]], label: str) -> Drift | None:
    """Return the workers' peak memory during quanta of one task, bytes; `None` where the kernel cannot tell.

    A worker's first quanta import what the tasks need, so the first tenth of each worker's is left out.
    """
    by_pid: dict[int, list[float]] = defaultdict(list)
    for outcome in by_label[label]:
        if outcome.peak_rss_bytes is None:
            return None
        by_pid[outcome.pid].append(outcome.peak_rss_bytes)
    drifts = [Drift.of(peaks[len(peaks) // 10 :]) for peaks in by_pid.values()]
    return Drift(median(d.first for d in drifts), median(d.last for d in drifts))


def worker_share(by_label: dict[str, list[Outcome]]) -> dict[int, int]:
    """Return how many quanta each worker ran, by its process ID."""
    return dict(Counter(outcome.pid for runs in by_label.values() for outcome in runs))


def log_size_drift(output_run: Path, label: str) -> Drift:
    """Return the bytes of a task's log datasets, in the order in which they were written.

    Parameters
    ----------
    output_run
        Folder of the RUN in the datastore.
    label
        Task.
    """
    files = [path.stat() for path in (output_run / f"{label}_log").rglob("*") if path.is_file()]
    return Drift.of([stat.st_size for stat in sorted(files, key=lambda stat: stat.st_mtime_ns)])
