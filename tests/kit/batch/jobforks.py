"""Jobs of a hand-driven batch system as forks of the test's own process: there at once, and killed for real.

A small repository (two detectors: isr and calibrate for each, summary, final), clustered into three jobs:
0 has the first four quanta, 1 has summary, 2 has final.
"""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.endstate import EndState, read_end_state, read_work
from qgexec import batchjob, executor
from qgexec.api import GraphExecutor, Preparation, QuantaFailedError
from qgexec.batch.rounds import Round, last_round
from qgexec.batch.system import JobEnd, JobState, JobStatus
from qgexec.batchjob import JobMargins
from qgexec.books.journal import Journal
from qgexec.books.rundir import RunDir
from qgexec.cli import EXIT_INTERRUPTED, EXIT_TRY_AGAIN
from qgexec.clustering.rules import ClusterRules, NamedCluster
from qgexec.config.batchsettings import BatchSettings
from qgexec.config.runconfig import RunConfig, TaskSettings
from qgexec.errors import QgexecError
from qgexec.events import AttemptSucceeded, Event
from qgexec.processes import forked
from qgexec.reports.report import RunReport, read_report
from tests.kit.batch.handsystem import HandSystem
from tests.kit.butler.repos import (
    N_QUANTA_OF_A_PAIR,
    ONE_PAIR,
    OUTPUT_RUN,
    MockRepository,
    add_standard_tasks,
    copy_template,
    open_repository,
    save_graph,
)
from tests.kit.crash.faults import Fault, in_task, is_first, nothing
from tests.kit.processes.forks import Flag, Fork, complain, replace, start_fork
from tests.kit.processes.warm import start_servers_warm
from tests.kit.tasks.moods import MoodyTask

LABELS = ("isr", "calibrate", "summary", "final")
N_QUANTA = N_QUANTA_OF_A_PAIR
N_JOBS = 3

CLUSTERING = ClusterRules(clusters={"pair": NamedCluster(pipetasks=("isr", "calibrate"))})


def make_moody(folder: Path) -> MockRepository:
    """Make the repository and its graph."""
    made = MockRepository(folder / "repo", folder / "graph.qg", folder / "bare.qg")
    with open_repository(made.root) as repo:
        add_standard_tasks(repo, task_classes=dict.fromkeys(LABELS, MoodyTask))
        save_graph(repo, made.graph, where=ONE_PAIR)
    return made


def start_job(
    batch_round: Round, job: int, fault: Fault = nothing, margins: JobMargins | None = None
) -> Fork:
    """Begin a try of a job; what it prints is in the round's logs."""

    def act() -> int:
        fault()
        done = batchjob.run_job(batch_round.run_dir, batch_round.number, job, margins or JobMargins())
        return 0 if done else EXIT_TRY_AGAIN

    return _start(act, batch_round.logs / f"{job}.txt")


def _start(act: Callable[[], int], output: Path) -> Fork:
    """Do something in a fork of this process that starts workers."""

    def work() -> int:
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(log, "w"), write_through=True)
        replace(executor, "PULSE_S", 0.02)
        start_servers_warm()
        try:
            return act()
        except QgexecError:
            complain()
            return 2
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        finally:
            forked.shut_down()

    return start_fork(work)


@dataclass
class Jobs:
    """Runs jobs as a batch system does: again while they ask for it, a few times."""

    faults: Mapping[tuple[int, int], Sequence[Fault]] = field(default_factory=dict)
    """What goes wrong, by round and job, in each of its tries; later ones are left alone."""
    ends: Mapping[tuple[int, int], JobEnd] = field(default_factory=dict)
    """What the batch system says of the end of a job, where it is not what can be seen."""
    tries: int = 2
    codes: list[tuple[int, int, int]] = field(default_factory=list)
    """Round, job and exit code of all tries."""
    margins: Mapping[tuple[int, int], JobMargins] = field(default_factory=dict)
    """What jobs keep for themselves in their first try, by round and job, where a test says so."""

    def __call__(self, batch_round: Round, job: int) -> JobStatus:
        """Run one to its end."""
        key = (batch_round.number, job)
        faults = self.faults.get(key, ())
        code = 0
        for n in range(self.tries):
            fault = faults[n] if n < len(faults) else nothing
            code = start_job(batch_round, job, fault, self.margins.get(key) if n == 0 else None).finish()
            self.codes.append((*key, code))
            if code == 0:
                break
        seen = JobEnd.EXITED if code >= 0 else JobEnd.SIGNALLED
        return JobStatus(JobState.ENDED, f"ended with {code}", self.ends.get(key, seen), code)


def killed_in(label: str, mark: Path) -> Fault:
    """Have a job killed, its own process alone, while its first quantum of a task runs.

    What it has done before is on record then: the two quanta of isr, where the task is calibrate.
    """

    def prepare() -> None:
        job = os.getpid()
        recorded = Flag(mark.with_name(f"{mark.name}.recorded"))
        append = Journal.append

        def append_and_tell(journal: Journal, event: Event) -> None:
            append(journal, event)
            if isinstance(event, AttemptSucceeded):
                recorded.raise_()

        def act() -> None:
            if is_first(mark):
                for _ in range(2 if label == "calibrate" else 0):
                    recorded.wait()
                os.kill(job, signal.SIGKILL)
                signal.pause()

        replace(Journal, "append", append_and_tell)
        in_task(**{label: act})()

    return prepare


def configured(common: TaskSettings | None = None, **tasks: TaskSettings) -> RunConfig:
    """Return a configuration with the three jobs, and this for all tasks, and by label."""
    # A parent that was killed says no last word.
    batch = BatchSettings(clustering=CLUSTERING, visibility_s=0.1)
    return RunConfig(common or TaskSettings(), tasks, batch)


def in_first(label: str, mark: Path, act: Callable[[], None]) -> Fault:
    """Have something done in the first quantum of a task, which then waits until it is ended."""

    def wait() -> None:
        if is_first(mark):
            act()
            signal.pause()

    return in_task(**{label: wait})


@dataclass
class Place:
    """A copy of the repository, the batch system, and a run in between."""

    repository: MockRepository
    hand: HandSystem
    folder: Path
    config: RunConfig = field(default_factory=configured)

    @property
    def run_dir(self) -> Path:
        """Run directory."""
        return self.folder / "run"

    @property
    def books(self) -> RunDir:
        """The same, opened."""
        return RunDir.open(self.run_dir)

    def executor(self, model: str = "hand", **options: Any) -> GraphExecutor:
        """Return an executor that has not begun."""
        prepare = Preparation(register_dataset_types=True)
        return GraphExecutor(
            str(self.repository.root),
            model,
            run_dir=self.run_dir,
            config=self.config,
            prepare=prepare,
            **options,
        )

    def run(self, model: str = "hand", **options: Any) -> int:
        """Execute the graph; return 1 if quanta failed, else 0."""
        return _code(functools.partial(self.executor(model, **options).execute, str(self.repository.graph)))

    def start(self, fault: Fault = nothing, model: str = "hand", **options: Any) -> Fork:
        """Begin to execute the graph in a driver of its own; its batch system is a copy of this one."""

        def act() -> int:
            fault()
            return self.run(model, **options)

        return _start(act, self.folder / "driver.log")

    def pending(self) -> Round:
        """Return the last round."""
        found = last_round(self.books)
        assert found is not None
        return found

    def submit(self, **options: Any) -> GraphExecutor:
        """Submit the graph, and leave it."""
        driver = self.executor(**options)
        self.hand.pause = True
        driver.submit(str(self.repository.graph))
        self.hand.pause = False
        return driver

    def resume(self, model: str | None = None, **changes: Any) -> int:
        """Go on; return as `run` does."""
        return _code(GraphExecutor.of_run(self.run_dir, model=model, **changes).resume)

    def work_off(self, jobs: Sequence[int] = range(N_JOBS)) -> Round:
        """Have the batch system run jobs of the last round while nobody watches."""
        pending = self.pending()
        ended = self.hand.jobs[pending.name]
        for job in pending.jobs:
            if job not in ended and job in jobs:
                ended[job] = self.hand.runs(pending, job)
                self.hand.tries.append((pending.name, job))
        return pending

    def report(self) -> RunReport:
        """Read the report."""
        return read_report(self.run_dir)

    def attempts(self) -> dict[str, list[int]]:
        """Return the numbers of attempts at the quanta of each task, ascending, as the journal has them."""
        plan = self.books.load_plan()
        found: dict[str, list[int]] = {label: [] for label in LABELS}
        for index, n in sorted(read_work(self.run_dir).attempts.items()):
            found[plan.label(index)].append(n)
        return {label: sorted(numbers) for label, numbers in found.items()}

    def end(self) -> EndState:
        """Return what the run left; nothing of it may be wrong."""
        state, problems = read_end_state(self.repository.root, OUTPUT_RUN, self.run_dir)
        assert problems == []
        done = read_work(self.run_dir).done
        assert set(done.values()) <= {1}, "a quantum was done twice"
        return state

    def mark(self, name: str) -> Path:
        """Return the file that says that something has gone wrong as it was to go wrong once."""
        return self.folder / f"{name}.mark"


def make_place(template: MockRepository, hand: HandSystem, folder: Path) -> Place:
    """Copy the repository."""
    return Place(copy_template(template, folder / "data"), hand, folder)


def _code(action: Callable[[], None]) -> int:
    try:
        action()
    except QuantaFailedError:
        return 1
    return 0
