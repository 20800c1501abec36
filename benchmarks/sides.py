"""The executors that are compared, each as whole processes on a fresh copy of the repository."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lsst.daf.butler import Butler

from benchmarks.measure import BenchmarkError, Measurement, run_measured
from benchmarks.mockgraph import OUTPUT_RUN, MockGraph
from benchmarks.owntime import OwnTime

__all__ = [
    "Run",
    "Side",
    "Sides",
    "Workspace",
    "own_time_side",
    "pipetask_side",
    "qgexec_side",
    "run_interleaved",
    "run_qbb_side",
]

_BIN = Path(sys.executable).parent
_INIT_DATASETS = 6
"""Four configurations, the package versions and the one init-output of the mock pipeline."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where one run of one side happens."""

    repository: Path
    """A fresh copy."""
    graph_file: Path
    """The saved graph, the same for all."""
    scratch: Path
    """A folder of the run's own."""

    @property
    def run_dir(self) -> Path:
        """The run directory, where the side is qgexec."""
        return self.scratch / "run"

    @property
    def result(self) -> Path:
        """What a side writes besides its outputs."""
        return self.scratch / "result.json"


@dataclass(frozen=True, slots=True)
class Side:
    """One way to execute the graph."""

    name: str
    """As it stands in the tables: the command."""
    commands: Callable[[Workspace], Sequence[Sequence[str | Path]]]
    """The commands that do it, one after another; their times are added."""
    repeat: int
    """How many times it is run."""
    fills_registry: bool = True
    """All outputs are in the registry afterwards."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one side."""

    measurements: tuple[Measurement, ...]
    """What its commands cost."""
    workspace: Workspace = field(repr=False)
    """What it left."""

    @property
    def wall_s(self) -> float:
        """From the start of the first process to the end of the last."""
        return sum(m.wall_s for m in self.measurements)

    @property
    def cpu_s(self) -> float:
        """User and system time of all processes."""
        return sum(m.cpu_s for m in self.measurements)

    @property
    def driver_cpu_s(self) -> float:
        """User and system time of the process of the command itself."""
        return sum(m.driver_cpu_s for m in self.measurements)

    @property
    def driver_peak_rss_bytes(self) -> int:
        """High-water mark of the process of the command itself."""
        return max(m.driver_peak_rss_bytes for m in self.measurements)

    def own_time(self) -> OwnTime:
        """Return what `benchmarks.owntime` found; only its side has it."""
        return OwnTime(**json.loads(self.workspace.result.read_text()))


Sides = Mapping[str, Sequence[Run]]
"""The runs of each side, by its name."""


def qgexec_side(processes: int, repeat: int) -> Side:
    """Return ``qgexec run -j N``."""
    return Side(
        f"qgexec run -j {processes}",
        lambda w: [
            [
                *(_BIN / "qgexec", "run", "-b", w.repository, "-g", w.graph_file),
                *("-j", str(processes), "--register-dataset-types", "--run-dir", w.run_dir),
            ]
        ],
        repeat,
    )


def pipetask_side(processes: int, repeat: int) -> Side:
    """Return ``pipetask run -j N``."""
    return Side(
        f"pipetask run -j {processes}",
        lambda w: [
            [
                *(_BIN / "pipetask", "run", "-b", w.repository, "-g", w.graph_file),
                *("-j", str(processes), "--register-dataset-types"),
            ]
        ],
        repeat,
    )


def run_qbb_side(processes: int, repeat: int) -> Side:
    """Return what a batch job does: ``pre-exec-init-qbb``, ``run-qbb``, ``transfer-from-graph``."""
    return Side(
        f"pipetask run-qbb -j {processes} with init and transfer",
        lambda w: [
            [_BIN / "pipetask", "pre-exec-init-qbb", w.repository, w.graph_file],
            [_BIN / "pipetask", "run-qbb", "-j", str(processes), w.repository, w.graph_file],
            [
                *(_BIN / "butler", "transfer-from-graph", w.graph_file, w.repository),
                *("--register-dataset-types", "--update-output-chain"),
            ],
        ],
        repeat,
    )


def own_time_side(repeat: int) -> Side:
    """Return the loop over upstream's `SingleQuantumExecutor`: own time only, nothing in the registry."""
    return Side(
        "SingleQuantumExecutor in a loop",
        lambda w: [
            [
                *(sys.executable, "-m", "benchmarks.owntime", w.repository, w.graph_file),
                *("--result", w.result),
            ]
        ],
        repeat,
        fills_registry=False,
    )


def run_interleaved(
    graph: MockGraph, sides: Sequence[Side], scratch: Path, *, timeout_s: float, say: Callable[[str], None]
) -> Sides:
    """Run all sides in turn, round after round, so that a drift of the machine hits every side alike.

    Parameters
    ----------
    graph
        Repository and graph; the repository is copied for each run.
    sides
        What to run; a side that is to run fewer times sits the later rounds out.
    scratch
        Folder for the copies; a copy goes as soon as the run has been looked at, the rest stays.
    timeout_s
        Longest time of one command.
    say
        Told what happens.

    Raises
    ------
    BenchmarkError
        A run failed or did not execute everything.
    """
    runs: dict[str, list[Run]] = {side.name: [] for side in sides}
    for number, side in _turns(sides):
        folder = scratch / f"{side.name.replace(' ', '-')}-{number}"
        say(f"{side.name}, run {number} of {side.repeat}")
        run = _run_once(graph, side, folder, timeout_s)
        say(f"{side.name}, run {number} of {side.repeat}: {run.wall_s:.2f} s")
        runs[side.name].append(run)
    return runs


def _turns(sides: Sequence[Side]) -> Iterator[tuple[int, Side]]:
    for number in range(1, max(side.repeat for side in sides) + 1):
        # Every other round backwards: whoever follows a heavy neighbour does not do so each time.
        for side in sides if number % 2 else reversed(sides):
            if number <= side.repeat:
                yield number, side


def _run_once(graph: MockGraph, side: Side, folder: Path, timeout_s: float) -> Run:
    folder.mkdir(parents=True)
    workspace = Workspace(folder / "repo", graph.graph_file, folder)
    shutil.copytree(graph.repository, workspace.repository)
    run = Run(
        tuple(
            run_measured(command, timeout_s=timeout_s, log=folder / f"command-{i}.log")
            for i, command in enumerate(side.commands(workspace), start=1)
        ),
        workspace,
    )
    if side.fills_registry:
        _check_complete(workspace.repository, graph.n_quanta)
    return run


def _check_complete(repository: Path, n_quanta: int) -> None:
    """Refuse a run that left something out: it has no time to compare."""
    expected = 3 * n_quanta + _INIT_DATASETS
    with Butler.from_config(str(repository), writeable=False) as butler:
        found = len(butler.query_all_datasets(OUTPUT_RUN, find_first=False, limit=None))
    if found != expected:
        raise BenchmarkError(f"{found} datasets in {OUTPUT_RUN} instead of {expected}")
