"""Kills drivers, workers and ingesters of real runs at random moments, resumes, and looks at what is left."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.compare import Settings
from benchmarks.endstate import EndState, read_end_state, read_work
from benchmarks.measure import BenchmarkError
from benchmarks.mockgraph import OUTPUT_RUN, MockGraph, make_mock_graph
from benchmarks.tables import Section, Table, spread
from qgexec.books.journal import read_events
from qgexec.events import WorkerEnded, WorkerStarted
from qgexec.processes.forked import process_started_at

__all__ = ["soak"]

_TARGETS = {"driver": 0.5, "worker": 0.35, "ingester": 0.15}
"""What is killed, and how often."""

_SLEEP_S = 0.05
"""Time that each quantum sleeps: a run lasts long enough to be killed in many times."""

_LONGEST_WAIT = 0.5
"""A kill comes at most so long after the driver's start, or the kill before: part of an undisturbed run's
time, so that a busy machine makes no difference. Start-up takes half of it."""

_HOW = (
    "SIGKILL of the driver, a worker or the ingester, up to {wait_s:.0f} s after the driver's start or the "
    "kill before, seed {seed}; then the same command or `qgexec resume`, until the run is done."
)

_CHECKS = (
    "Checked through a plain butler after each run: every dataset read, every file's size, and its content "
    "where that is the same in every run."
)

_MOST_DRIVERS = 100
"""In one run; more of them and something does not go on."""

_LAST_S = 900.0
"""Longest time of a driver that nothing is done to, seconds."""

_GONE_S = 60.0
"""Longest time that workers may take to go after their driver, seconds."""

_OK, _FAILED, _BROKEN = 0, 1, 2
_KILLED = -signal.SIGKILL


@dataclass(slots=True)
class _Tally:
    """What happened in all runs."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    resumes: int = 0
    repeated: int = 0
    attempts: int = 0
    quanta: int = 0
    differences: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    done_twice: int = 0
    left_over: int = 0
    run_s: list[float] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)

    @property
    def n_kills(self) -> int:
        return self.kills.total()


def soak(settings: Settings) -> Section:
    """Kill what is at work in runs of 411 quanta, some hundred times; ends soon after the time limit."""
    shape = settings.shape(10, 20, _SLEEP_S)
    graph = make_mock_graph(settings.scratch / "soak", shape)
    rng = random.Random(settings.seed)
    expected, undisturbed_s = _undisturbed(settings, graph)
    tally = _Tally()
    until = time.monotonic() + settings.timeout_s
    while tally.n_kills < settings.kills and time.monotonic() < until:
        with _Round(settings, graph, rng, tally, until, _LONGEST_WAIT * undisturbed_s) as played:
            played.play()
            played.check(expected)
        settings.say(f"soak: {tally.n_kills} kills in {tally.runs} runs, {len(tally.problems)} problems")
    return _section(tally, graph, undisturbed_s, settings)


class _Place:
    """A copy of the repository, and one run in it."""

    def __init__(self, settings: Settings, graph: MockGraph, name: str) -> None:
        self.folder = settings.scratch / name
        self.repository = self.folder / "repo"
        self.run_dir = self.folder / "run"
        self._graph = graph
        self._workers = settings.workers
        shutil.copytree(graph.repository, self.repository)
        self._log = (self.folder / "log").open("ab")

    def start(self) -> subprocess.Popen[bytes]:
        """Start a driver: the run's first, or one that resumes."""
        command = [sys.executable, "-m", "qgexec"]
        if (self.run_dir / "run.json").exists():
            command += ["resume", str(self.run_dir), "-j", str(self._workers)]
        else:
            command += ["run", "-b", str(self.repository), "-g", str(self._graph.graph_file)]
            command += ["--register-dataset-types", "--run-dir", str(self.run_dir), "-j", str(self._workers)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    def last_words(self) -> str:
        """Return the end of what the drivers have printed."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def close(self) -> None:
        """Remove it."""
        self._log.close()
        shutil.rmtree(self.folder)


def _undisturbed(settings: Settings, graph: MockGraph) -> tuple[EndState, float]:
    """Return what a run leaves in which nothing is killed, and how long it takes."""
    place = _Place(settings, graph, "undisturbed")
    began = time.monotonic()
    driver = place.start()
    if not _ends(driver, _LAST_S) or driver.returncode != _OK:
        driver.kill()
        driver.wait()
        raise BenchmarkError(f"a run in which nothing was killed failed:\n{place.last_words()}")
    took_s = time.monotonic() - began
    state, problems = read_end_state(place.repository, OUTPUT_RUN, place.run_dir)
    if problems:
        raise BenchmarkError(f"a run in which nothing was killed left {problems[0]}")
    place.close()
    return state, took_s


class _Round:
    """One run, killed in until it is done."""

    def __init__(
        self,
        settings: Settings,
        graph: MockGraph,
        rng: random.Random,
        tally: _Tally,
        until: float,
        longest_wait_s: float,
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._tally = tally
        self._until = until
        self._longest_wait_s = longest_wait_s
        self._place = _Place(settings, graph, f"round{tally.runs}")
        self._driver: subprocess.Popen[bytes] | None = None
        self._began = time.monotonic()

    def __enter__(self) -> _Round:
        return self

    def __exit__(self, *_: object) -> None:
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        self._tally.left_over += _await_end(self._place.run_dir)
        self._place.close()

    def play(self) -> None:
        """Start drivers until one comes to the run's end."""
        tally = self._tally
        tally.runs += 1
        for number in range(_MOST_DRIVERS):
            self._driver = self._place.start()
            tally.resumes += number > 0
            code = self._disturb(self._driver)
            tally.codes[code] += 1
            if code == _OK:
                tally.run_s.append(time.monotonic() - self._began)
                return
            if code not in (_KILLED, _FAILED, _BROKEN):
                break
        raise BenchmarkError(f"a run did not come to its end:\n{self._place.last_words()}")

    def _disturb(self, driver: subprocess.Popen[bytes]) -> int:
        """Kill at random moments until the driver ends, of that or by itself; return how it ended."""
        while self._tally.n_kills < self._settings.kills and time.monotonic() < self._until:
            if _ends(driver, self._rng.uniform(0.0, self._longest_wait_s)):
                return driver.returncode
            self._kill(driver)
        if not _ends(driver, _LAST_S):
            raise BenchmarkError(f"a driver did not come to its end:\n{self._place.last_words()}")
        return driver.returncode

    def _kill(self, driver: subprocess.Popen[bytes]) -> None:
        (target,) = self._rng.choices(list(_TARGETS), list(_TARGETS.values()))
        if not (self._place.run_dir / "journal").exists():
            return  # it is still importing: nothing has begun
        wants_ingester = target == "ingester"
        # Without run.json nobody but the driver is at work yet.
        has_begun = (self._place.run_dir / "run.json").exists()
        workers = _at_work(self._place.run_dir) if has_begun else []
        at_work = [each for each in workers if (each.worker == 0) == wants_ingester]
        if target == "driver" or not at_work:
            driver.kill()
            driver.wait()
            self._tally.kills["driver"] += 1
        elif _kill_worker(self._rng.choice(at_work)):
            self._tally.kills[target] += 1

    def check(self, expected: EndState) -> None:
        """Compare what is there with what is there after a run in which nothing happens."""
        tally, place = self._tally, self._place
        state, problems = read_end_state(place.repository, OUTPUT_RUN, place.run_dir)
        tally.problems += problems
        tally.differences += expected.differences(state)
        work = read_work(place.run_dir)
        tally.repeated += work.n_repeated
        tally.attempts += sum(work.attempts.values())
        tally.quanta += len(work.attempts)
        tally.done_twice += sum(n > 1 for n in work.done.values())


def _ends(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
        return True
    return False


def _at_work(run_dir: Path) -> list[WorkerStarted]:
    """Return the workers and ingesters of all drivers that are not known to have ended."""
    found: dict[tuple[int, float], WorkerStarted] = {}
    numbers: dict[int, tuple[int, float]] = {}
    for event in read_events(run_dir / "journal"):
        match event:
            case WorkerStarted(worker=worker, pid=pid, pid_started_at=started_at):
                numbers[worker] = (pid, started_at)
                found[pid, started_at] = event
            case WorkerEnded(worker=worker):
                found.pop(numbers.get(worker, (0, 0.0)), None)
            case _:
                pass
    return [worker for worker in found.values() if _is_there(worker)]


def _is_there(worker: WorkerStarted) -> bool:
    started_at = process_started_at(worker.pid)
    return started_at is not None and abs(started_at - worker.pid_started_at) <= 2.0


@contextlib.contextmanager
def _hold(worker: WorkerStarted) -> Iterator[int | None]:
    """Open a descriptor of that process and no other; `None` where it is gone."""
    try:
        descriptor = os.pidfd_open(worker.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor if _is_there(worker) else None
    finally:
        os.close(descriptor)


def _kill_worker(worker: WorkerStarted) -> bool:
    with _hold(worker) as descriptor:
        if descriptor is None:
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True


def _await_end(run_dir: Path) -> int:
    """Return how many workers are still there a while after the last driver; they are ended."""
    if not (run_dir / "run.json").exists():
        return 0
    deadline, left = time.monotonic() + _GONE_S, 0
    for worker in _at_work(run_dir):
        with _hold(worker) as descriptor:
            if descriptor is not None:
                gone, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
                if not gone:
                    left += 1
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    return left


def _section(tally: _Tally, graph: MockGraph, undisturbed_s: float, settings: Settings) -> Section:
    def count(words: str) -> str:
        return str(sum(words in problem for problem in tally.problems + tally.differences))

    kills = ", ".join(f"{tally.kills[target]} {target}" for target in _TARGETS)
    rows = (
        ("kills", f"{tally.n_kills} ({kills})"),
        ("runs brought to their end", str(tally.runs)),
        ("resumes", str(tally.resumes)),
        ("quanta", str(tally.quanta)),
        ("quanta run more than once", str(tally.repeated)),
        ("attempts more than quanta", str(tally.attempts - tally.quanta)),
        ("quanta that succeeded twice", str(tally.done_twice)),
        ("datasets missing", count("missing")),
        ("datasets there twice", count("times")),
        ("datasets that cannot be read", count("cannot be read")),
        ("files of another size than recorded", count("bytes, not")),
        ("files of nobody", count("nobody")),
        ("other differences from an undisturbed run", str(len(tally.differences))),
        ("processes left", str(tally.left_over)),
        ("wall time of a run", spread(tally.run_s)),
        ("the same, undisturbed", f"{undisturbed_s:.2f} s"),
    )
    return Section(
        name="soak",
        title=f"{tally.n_kills} kills in runs of {graph.n_quanta} quanta, {settings.workers} workers",
        tables=(Table(("what", "number"), rows),),
        data={
            "seed": settings.seed,
            "problems": tally.problems,
            "differences": tally.differences,
            "exit_codes": dict(tally.codes),
            "run_s": tally.run_s,
            "undisturbed_s": undisturbed_s,
        },
        notes=(_HOW.format(wait_s=_LONGEST_WAIT * undisturbed_s, seed=settings.seed), _CHECKS),
    )
