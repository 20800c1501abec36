"""Whole processes side by side, on small, large and sleeping graphs: medians, and ratios of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.journals import cost_drift, log_size_drift, memory_drift, outcomes
from benchmarks.mockgraph import OUTPUT_RUN, MockGraph, MockShape, make_mock_graph
from benchmarks.sides import (
    Run,
    Side,
    Sides,
    own_time_side,
    pipetask_side,
    qgexec_side,
    run_interleaved,
    run_qbb_side,
)
from benchmarks.tables import Section, Table, spread

__all__ = ["Settings", "large", "sleep", "small"]

_MIB = 2.0**20
_LABEL = "calibrate"
"""The task whose quanta are compared with each other: half of them all, and all alike."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user may choose."""

    scratch: Path
    """Folder for repositories and copies."""
    say: Callable[[str], None]
    """Told what happens."""
    repeat: int = 3
    """Runs of each side."""
    repeat_slow: int = 1
    """Runs of the sides that take minutes."""
    workers: int = 2
    """Processes where there are several."""
    exposures: int | None = None
    """Instead of the benchmark's own size."""
    detectors: int | None = None
    """Instead of the benchmark's own size."""
    qbb: bool = False
    """Run ``run-qbb`` as well."""
    slow: bool = True
    """Run the sides that take minutes."""
    timeout_s: float = 3600.0
    """Longest time of one command."""
    kills: int = 200
    """Processes that are killed in the soak."""
    seed: int = 1
    """Decides what is killed, and when."""

    def shape(self, exposures: int, detectors: int, sleep_s: float = 0.0) -> MockShape:
        """Return the shape asked for, or the one given here."""
        return MockShape(self.exposures or exposures, self.detectors or detectors, sleep_s)


def small(settings: Settings) -> Section:
    """Compare with ``pipetask run`` on 411 quanta."""
    shape = settings.shape(10, 20)
    ours = qgexec_side(settings.workers, settings.repeat)
    sides = [
        ours,
        qgexec_side(1, settings.repeat),
        pipetask_side(1, settings.repeat),
        own_time_side(settings.repeat),
    ]
    if settings.qbb:
        sides.append(run_qbb_side(1, settings.repeat))
    if settings.slow:
        sides.append(pipetask_side(settings.workers, settings.repeat_slow))
    graph, runs = _run(settings, "small", shape, sides)
    return Section(
        name="small",
        title=f"{graph.n_quanta} quanta, whole processes ({shape.exposures} x {shape.detectors})",
        tables=(_comparison(runs, ours.name),),
        data={"n_quanta": graph.n_quanta, "sides": _data(runs)},
        notes=(
            "All sides start from the same saved graph, each run on a fresh copy of the repository.",
            (
                "Wall and CPU times are those of the whole command, start-up and ingest included; "
                "CPU is that of all its processes."
            ),
            "Sides in turns; medians, with the range where there are several runs.",
            (
                f"`pipetask run -j {settings.workers}` takes minutes: run {settings.repeat_slow} time(s)."
                if settings.slow
                else f"`pipetask run -j {settings.workers}` takes minutes: not run this time."
            ),
            "The loop over `SingleQuantumExecutor` ends without anything in the registry.",
        ),
    )


def large(settings: Settings) -> Section:
    """Compare wall time with own time on 10,051 quanta; look at what grows during the run."""
    return _against_own_time(settings, "large", settings.shape(50, 100), limit=1.35)


def sleep(settings: Settings) -> Section:
    """Compare wall time with own time where every quantum sleeps 50 ms."""
    return _against_own_time(settings, "sleep", settings.shape(20, 40, 0.05), limit=1.10)


def _against_own_time(settings: Settings, name: str, shape: MockShape, *, limit: float) -> Section:
    ours = qgexec_side(settings.workers, settings.repeat)
    own = own_time_side(settings.repeat if not shape.sleep_s else settings.repeat_slow)
    graph, runs = _run(settings, name, shape, [ours, own])
    # The smallest graph there is: what its wall time has beside its own time is start-up and shut-down.
    _, tiny_runs = _run(settings, f"{name}-start", MockShape(1, 1), [ours, own_time_side(settings.repeat)])
    start_s = median([run.wall_s for run in tiny_runs[ours.name]]) - median(
        [run.own_time().own_s for run in tiny_runs[own.name]]
    )
    wall_s = median([run.wall_s for run in runs[ours.name]])
    ideal_s = median([run.own_time().own_s for run in runs[own.name]]) / settings.workers
    ratio = (wall_s - start_s) / ideal_s
    sleeping = f", each sleeping {shape.sleep_s * 1000:g} ms" if shape.sleep_s else ""
    return Section(
        name=name,
        title=f"{graph.n_quanta} quanta{sleeping}, against their own time",
        tables=(
            Table(
                ("", "measured", "limit"),
                (
                    ("(wall - start-up) / (own time / workers)", f"{ratio:.2f}", f"{limit:.2f}"),
                    ("wall / (own time / workers)", f"{wall_s / ideal_s:.2f}", ""),
                    *_course(runs[ours.name]),
                ),
            ),
            _comparison(runs, ours.name),
        ),
        data={
            "n_quanta": graph.n_quanta,
            "workers": settings.workers,
            "start_s": start_s,
            "ideal_s": ideal_s,
            "ratio_without_start": ratio,
            "ratio": wall_s / ideal_s,
            "sides": _data(runs),
        },
        notes=(
            "Own time: inside `SingleQuantumExecutor.execute` for the same graph in one undisturbed process.",
            f"Start-up: {start_s:.2f} s, the wall time of a graph of 4 quanta less their own time.",
            (
                f"First against last: means over the first and the last tenth of the quanta of `{_LABEL}`, "
                "which are all alike; medians over the runs."
            ),
        ),
    )


def _course(runs: Sequence[Run]) -> tuple[tuple[str, ...], ...]:
    """Return the rows that say what grows during a run, and the driver's memory."""
    walls, cpus, logs, memories = [], [], [], []
    for run in runs:
        by_label = outcomes(run.workspace.run_dir)
        wall, cpu = cost_drift(by_label, _LABEL)
        walls.append(wall.ratio)
        cpus.append(cpu.ratio)
        logs.append(log_size_drift(run.workspace.repository / OUTPUT_RUN, _LABEL).ratio)
        if (memory := memory_drift(by_label, _LABEL)) is not None:
            memories.append(memory.ratio)
    driver_mib = max(run.driver_peak_rss_bytes for run in runs) / _MIB
    return (
        ("a quantum's wall time, last / first tenth", f"{median(walls):.3f}", "1.05"),
        ("a quantum's CPU time, last / first tenth", f"{median(cpus):.3f}", "1.05"),
        ("a log dataset's size, last / first tenth", f"{median(logs):.3f}", "1.00"),
        (
            "a worker's peak memory, last / first tenth",
            f"{median(memories):.3f}" if memories else "unknown",
            "1.00",
        ),
        ("driver's peak memory", f"{driver_mib:.0f} MiB", "400 MB"),
    )


def _run(settings: Settings, name: str, shape: MockShape, sides: Sequence[Side]) -> tuple[MockGraph, Sides]:
    folder = settings.scratch / name
    settings.say(f"{name}: making a graph of {shape.n_quanta} quanta")
    graph = make_mock_graph(folder, shape)
    runs = run_interleaved(
        graph,
        sides,
        folder / "runs",
        timeout_s=settings.timeout_s,
        say=lambda text: settings.say(f"{name}: {text}"),
    )
    return graph, runs


def _comparison(sides: Sides, ours: str) -> Table:
    """Return a row for each side, with its wall and CPU time as multiples of ours."""
    our_wall = median([run.wall_s for run in sides[ours]])
    our_cpu = median([run.cpu_s for run in sides[ours]])
    rows = []
    for name, runs in sides.items():
        walls, cpus = [run.wall_s for run in runs], [run.cpu_s for run in runs]
        rows.append(
            (
                f"`{name}`" if " -j " in name else name,
                str(len(runs)),
                spread(walls),
                f"**{median(walls) / our_wall:.2f}**",
                spread(cpus),
                f"{median(cpus) / our_cpu:.2f}",
                f"{median([run.driver_peak_rss_bytes for run in runs]) / _MIB:.0f} MiB",
            )
        )
    return Table(
        ("", "runs", "wall", "wall / ours", "CPU", "CPU / ours", "driver's peak memory"), tuple(rows)
    )


def _data(sides: Sides) -> dict[str, list[dict[str, object]]]:
    return {name: [_run_data(run) for run in runs] for name, runs in sides.items()}


def _run_data(run: Run) -> dict[str, object]:
    measurements = [asdict(m) for m in run.measurements]
    found: dict[str, object] = {"wall_s": run.wall_s, "cpu_s": run.cpu_s, "measurements": measurements}
    if run.workspace.result.exists():
        found["own_time"] = asdict(run.own_time())
    return found
