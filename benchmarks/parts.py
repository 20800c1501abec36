"""The parts by themselves: transport, reading, plan, and where the time of a run goes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.compare import Settings
from benchmarks.measure import Measurement, run_measured
from benchmarks.mockgraph import MockGraph, MockShape, make_mock_graph
from benchmarks.planning import write_large_graph
from benchmarks.tables import Section, Table
from qgexec.books.journal import read_events
from qgexec.books.rundir import RunDir
from qgexec.events import WorkerStarted

__all__ = ["plan", "read", "submit", "transport", "where"]

_MIB = 2.0**20


def transport(settings: Settings) -> Section:
    """Send no-op quanta through the pool, and through `concurrent.futures` in turn."""
    shape = settings.shape(50, 100)
    folder = settings.scratch / "transport"
    small = _mock(settings, "transport", MockShape(1, 2))
    graph_file = write_large_graph(small.graph_file, folder / "thin.qg", shape)
    engines: dict[str, list[dict[str, Any]]] = {"pool": [], "futures": []}
    for number in range(settings.repeat):
        for engine, found in engines.items():
            options = ["--workers", str(settings.workers)]
            found.append(
                _module(settings, folder / f"{engine}-{number}", "transport", engine, graph_file, *options)[0]
            )
    rates = {engine: median([run["per_s"] for run in found]) for engine, found in engines.items()}
    names = {"pool": "`pool`, no-op bench", "futures": "`concurrent.futures`, no-op function"}
    rows = tuple(
        (
            name,
            f"{rates[engine]:,.0f}",
            f"{rates['pool'] / rates[engine]:.2f}",
            f"{median([run['driver_us'] for run in engines[engine]]):.0f} us",
            f"{median([run['start_s'] for run in engines[engine]]):.2f} s",
        )
        for engine, name in names.items()
    )
    return Section(
        name="transport",
        title=f"{shape.n_quanta} no-op quanta, {settings.workers} workers",
        tables=(
            Table(("", "quanta / s", "ours / this", "driver CPU per quantum", "first result after"), rows),
        ),
        data=engines,
        notes=(
            "Both keep the order of the same graph. `pool` is driven by our scheduler, without a journal.",
            f"Medians of {settings.repeat} runs in turns; rates from the first result to the last.",
        ),
    )


def read(settings: Settings) -> Section:
    """Compare an executor that gets its real quantum with reading that quantum."""
    graph = _mock(settings, "read", settings.shape(20, 40))
    runs = [
        _module(settings, graph.graph_file.parent / f"run-{number}", "reading", graph.graph_file)[0]
        for number in range(settings.repeat)
    ]
    ratio = median([run["ratio"] for run in runs])
    rows = (
        ("reading a quantum, in a loop", f"{median([run['read_us'] for run in runs]):.0f} us", ""),
        ("a whole attempt in a worker", f"{median([run['attempt_us'] for run in runs]):.0f} us", ""),
        ("attempt / reading", f"**{ratio:.2f}**", "1.10"),
    )
    return Section(
        name="read",
        title=f"An executor that gets its quantum and does nothing, {graph.n_quanta} quanta",
        tables=(Table(("", "CPU per quantum", "limit"), rows),),
        data={"runs": runs, "ratio": ratio},
    )


def plan(settings: Settings) -> Section:
    """Load a thin graph of a million quanta and walk it through the scheduler."""
    shape = settings.shape(500, 1000)
    small = _mock(settings, "plan", MockShape(1, 2))
    folder = small.graph_file.parent
    graph_file = write_large_graph(small.graph_file, folder / "thin.qg", shape)
    runs = [
        _module(settings, folder / f"run-{number}", "planning", graph_file)[0]
        for number in range(settings.repeat)
    ]
    figures = {key: median([run[key] for run in runs]) for key in runs[0]}
    rows = (
        ("load", f"{figures['load_s']:.1f} s", "15 s"),
        ("peak memory of the process", f"{figures['load_peak_bytes'] / _MIB:.0f} MiB", "1.5 GB"),
        ("kept by the plan", f"{figures['kept_bytes'] / _MIB:.0f} MiB", "150 MB"),
        ("added by the scheduler", f"{figures['scheduler_bytes'] / _MIB:.0f} MiB", ""),
        ("walk through the scheduler, per quantum", f"{figures['walk_us']:.1f} us", "10 us"),
        ("of which making the events", f"{figures['events_us']:.1f} us", ""),
    )
    return Section(
        name="plan",
        title=f"A plan of {shape.n_quanta:,} quanta",
        tables=(Table(("", "measured", "limit"), rows),),
        data={"runs": runs},
        notes=(f"Medians of {settings.repeat} runs. Each event is checked and applied, as the loop does.",),
    )


def submit(settings: Settings) -> Section:
    """Cluster a graph of 100,000 quanta, and write all that would be submitted."""
    shape = settings.shape(500, 100)
    small = _mock(settings, "submit", MockShape(1, 2))
    folder = small.graph_file.parent
    graph_file = write_large_graph(small.graph_file, folder / "thin.qg", shape)
    found: dict[str, dict[str, Any]] = {}
    rows = []
    for model in ("htcondor", "slurm"):
        for algorithm in ("single", "chunks of 10", "auto"):
            name = f"{model}-{algorithm.split()[0]}"
            cost, _ = _module(
                settings, folder / name, "submitting", graph_file, folder / name / "out", model, algorithm
            )
            found[name] = cost
            mib = [f"{cost[key] / _MIB:.1f} MiB" for key in ("n_bytes", "peak_bytes")]
            counts = [f"{cost[key]:,}" for key in ("n_jobs", "n_calls", "n_files")]
            rows.append((model, algorithm, *counts, mib[0], f"{cost['wall_s']:.1f} s", mib[1]))
    header = ("", "clusters", "jobs", "calls", "files", "bytes", "time (limit 60 s)", "memory (limit 2 GB)")
    return Section(
        name="submit",
        title=f"A submission of {shape.n_quanta:,} quanta, written and not submitted",
        tables=(Table(header, tuple(rows)),),
        data=found,
        notes=("One run each. Memory is that of the whole process, the plan and the stack included.",),
    )


def where(settings: Settings) -> Section:
    """Say where the time of driver, workers and ingester goes, per quantum."""
    graph = _mock(settings, "where", settings.shape(20, 40))
    folder = graph.graph_file.parent
    found: dict[str, dict[str, Any]] = {}
    rows: list[tuple[str, ...]] = []
    for model, processes in (("inprocess", 1), ("pool", settings.workers)):
        repository, run_dir = folder / f"{model}-repo", folder / f"{model}-run"
        shutil.copytree(graph.repository, repository)
        command: list[str | Path] = [
            "run",
            "-b",
            repository,
            "-g",
            graph.graph_file,
            "-j",
            str(processes),
            "--model",
            model,
        ]
        command += ["--register-dataset-types", "--run-dir", run_dir]
        figures, measurement = _module(settings, folder / model, "breakdown", after=command)
        found[model] = {**figures, "roles": _roles(measurement, run_dir)}
        rows += _part_rows(model, found[model], graph.n_quanta)
    return Section(
        name="where",
        title=f"Where the time goes, {graph.n_quanta} quanta",
        tables=(Table(("model: part", "wall per quantum", "CPU per quantum", "calls"), tuple(rows)),),
        data=found,
        notes=(
            (
                "`inprocess`: driver and worker are one process: all that happens to a quantum. "
                "`pool`: the driver's own process; workers and ingester by their CPU time, start-up included."
            ),
            (
                "`export` is all that a worker does besides reading and executing: input records in, output "
                "records out, the detail to its segment. `send` includes waiting (its CPU time does not)."
            ),
            "The clock adds about 1.5 us a call to a part's figure, and 4 us to the whole.",
        ),
    )


def _part_rows(model: str, figures: dict[str, Any], n_quanta: int) -> Iterator[tuple[str, ...]]:
    timed = {**figures["parts"], "whole driver": figures["whole"]}
    for name, part in timed.items():
        yield (
            f"{model}: {name}",
            _us(part["wall_s"], n_quanta),
            _us(part["cpu_s"], n_quanta),
            str(part["calls"]),
        )
    for role, cpu_s in figures["roles"].items():
        if cpu_s:
            yield f"{model}: all of {role}", "", _us(cpu_s, n_quanta), ""


def _us(seconds: float, n_quanta: int) -> str:
    return f"{1e6 * seconds / n_quanta:,.0f} us"


def _roles(measurement: Measurement, run_dir: Path) -> dict[str, float]:
    """Return the CPU seconds of the workers and of the other processes below the driver."""
    events = read_events(RunDir.open(run_dir).journal)
    workers = {event.pid for event in events if isinstance(event, WorkerStarted)}
    roles = {"workers": 0.0, "ingester and others": 0.0}
    for child in measurement.children:
        roles["workers" if child.pid in workers else "ingester and others"] += child.cpu_s
    return roles


def _mock(settings: Settings, name: str, shape: MockShape) -> MockGraph:
    settings.say(f"{name}: making a graph of {shape.n_quanta} quanta")
    return make_mock_graph(settings.scratch / name, shape)


def _module(
    settings: Settings,
    folder: Path,
    module: str,
    *arguments: str | Path,
    after: Sequence[str | Path] = (),
) -> tuple[dict[str, Any], Measurement]:
    """Run one of our measuring modules in a process of its own; return what it wrote, and what it cost."""
    folder.mkdir()
    result = folder / "result.json"
    settings.say(f"{module} {folder.name}")
    measurement = run_measured(
        [sys.executable, "-m", f"benchmarks.{module}", "--result", result, *arguments, *after],
        timeout_s=settings.timeout_s,
        log=folder / "command.log",
    )
    found: dict[str, Any] = json.loads(result.read_text())
    return found, measurement
