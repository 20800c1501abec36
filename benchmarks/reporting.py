"""Measures how long reports take: of a run of 100,000 quanta, and of 5,000 from the repository alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.compare import Settings
from benchmarks.measure import Measurement, run_measured
from benchmarks.mockgraph import MockGraph, make_mock_graph
from benchmarks.tables import Section, Table

__all__ = ["reporting"]

_LIMIT_S = 10.0
_MIB = 2.0**20
_REPORT = """
import sys
from qgexec.cli.main import main
try:
    main()
except SystemExit as end:
    sys.exit(0 if end.code == 1 else end.code)
"""
"""The command itself; that quanta failed is no failure of the benchmark."""


def reporting(settings: Settings) -> Section:
    """Report on synthetic books of 100,000 quanta, and on a real repository without any books."""
    folder = settings.scratch / "report"
    folder.mkdir()
    books, n_books = _books(settings, folder)
    repository, n_repository = _repository(settings, folder)
    rows = [
        *(_row(name, runs, f"{_LIMIT_S:g} s") for name, runs in books.items()),
        *(_row(name, runs, "") for name, runs in repository.items()),
    ]
    return Section(
        name="report",
        title=f"Reports of {n_books:,} quanta from run directories, of {n_repository:,} from a repository",
        tables=(Table(("", "wall", "CPU", "peak memory", "limit"), tuple(rows)),),
        data={
            "n_books": n_books,
            "n_repository": n_repository,
            "wall_s": {name: [run.wall_s for run in runs] for name, runs in (books | repository).items()},
        },
        notes=(
            "Whole commands, start-up included: where the repository is read, 2 s of CPU time are imports.",
            "The books are synthetic, as above. The repository is real, with 3 datasets a quantum.",
            f"Medians of {settings.repeat} runs.",
        ),
    )


def _books(settings: Settings, folder: Path) -> tuple[dict[str, list[Measurement]], int]:
    """Report on one run, and on two of the same graph."""
    shape = settings.shape(50, 1000)
    settings.say(f"report: writing the journals of two runs of {shape.n_quanta} quanta")
    run_dirs = [folder / "first", folder / "second"]
    for run_dir in run_dirs:
        size = (str(shape.exposures), str(shape.detectors))
        make = (sys.executable, "-m", "benchmarks.status", "make", run_dir, *size)
        run_measured(make, timeout_s=settings.timeout_s, log=folder / "make.log")
    first = run_dirs[0]
    found: dict[str, list[Measurement]] = {"`qgexec report`, first reader": []}
    for _ in range(settings.repeat):
        (first / "snapshot.npz").unlink(missing_ok=True)
        found["`qgexec report`, first reader"].append(_report(settings, folder, first))
    commands: dict[str, Sequence[str | Path]] = {
        "`qgexec report`, snapshot": [first],
        "`qgexec report --json`, snapshot": [first, "--json"],
        "`qgexec report` of two runs, snapshots": run_dirs,
    }
    for name, words in commands.items():
        found[name] = [_report(settings, folder, *words) for _ in range(settings.repeat)]
    return found, shape.n_quanta


def _repository(settings: Settings, folder: Path) -> tuple[dict[str, list[Measurement]], int]:
    """Report on a graph that was executed, as anybody might have, and its books lost."""
    settings.say("report: executing a graph")
    made = make_mock_graph(folder / "mock", settings.shape(50, 50))
    options = ("-j", str(settings.workers), "--register-dataset-types", "--run-dir", folder / "lost")
    run: list[str | Path] = [sys.executable, "-m", "qgexec", "run"]
    run += ["-b", made.repository, "-g", made.graph_file, *options]
    run_measured(run, timeout_s=settings.timeout_s, log=folder / "run.log")
    given = ("-b", made.repository, "-g", made.graph_file)
    commands: dict[str, Sequence[str | Path]] = {
        "`qgexec report -b -g`": given,
        "`qgexec report -b -g --read-caveats exhaustive`": (*given, "--read-caveats", "exhaustive"),
    }
    found = {
        name: [_report(settings, folder, *words) for _ in range(settings.repeat)]
        for name, words in commands.items()
    }
    if settings.slow:
        for how in ("lazy", "exhaustive"):
            name = f"`pipetask report --force-v2 --read-caveats {how}`"
            found[name] = [_pipetask(settings, folder, made, how) for _ in range(settings.repeat_slow)]
    return found, made.n_quanta


def _report(settings: Settings, folder: Path, *words: str | Path) -> Measurement:
    settings.say(f"report: qgexec report {' '.join(str(word) for word in words if isinstance(word, str))}")
    command = [sys.executable, "-c", _REPORT, "report", *words]
    return run_measured(command, timeout_s=settings.timeout_s, log=folder / "read.log")


def _pipetask(settings: Settings, folder: Path, made: MockGraph, read_caveats: str) -> Measurement:
    settings.say("report: pipetask report")
    program = Path(sys.executable).with_name("pipetask")
    options = ("--force-v2", "--read-caveats", read_caveats)
    command: list[str | Path] = [program, "report", made.repository, made.graph_file, *options]
    return run_measured(command, timeout_s=settings.timeout_s, log=folder / "pipetask.log")


def _row(name: str, runs: Sequence[Measurement], limit: str) -> tuple[str, ...]:
    """Return medians: wall, CPU, peak memory."""
    wall_s, cpu_s = median([run.wall_s for run in runs]), median([run.cpu_s for run in runs])
    peak_mib = median([run.driver_peak_rss_bytes for run in runs]) / _MIB
    return name, f"{wall_s:.1f} s", f"{cpu_s:.1f} s", f"{peak_mib:.0f} MiB", limit
