"""Submitted runs for the tests of batch jobs, and file layers that show late what other machines wrote."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qgexec.api import GraphExecutor
from qgexec.batch.rounds import Round, last_round
from qgexec.books.journal import read_detail, read_events
from qgexec.books.rundir import RunDir
from qgexec.config.batchsettings import BatchSettings
from qgexec.events import AttemptEvent, AttemptSucceeded
from qgexec.quantum import SegmentRef
from qgexec.rubin.preexec import Preparation
from tests.kit.batch.handsystem import JOB_PATIENCE_S, Hand, HandSystem, run_once
from tests.kit.butler.repos import MockRepository
from tests.kit.checkout import PYTHONPATH
from tests.kit.processes import warm

_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run that was submitted; its jobs run when the test says so."""

    repository: MockRepository
    batch_round: Round

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.batch_round.run_dir)

    def jobs(self, name: str) -> list[int]:
        """Return the jobs of a name: of a task, or of a named cluster."""
        return [job for job in self.batch_round.jobs if self.batch_round.jobs.name(job) == name]

    def run(self, job: int, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one try of a job, as a process of its own."""
        return run_once(self.batch_round, job, {"PYTHONPATH": PYTHONPATH, **env})

    def run_anew(self, job: int, **env: str) -> subprocess.CompletedProcess[str]:
        """Do so in a new interpreter, which has imported nothing."""
        command = self.batch_round.job_command(str(job))
        return subprocess.run(
            command,
            env={**os.environ, **env},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def run_well(self, *names: str) -> None:
        """Run all jobs of these names; none may go wrong."""
        for name in names:
            for job in self.jobs(name):
                assert self.run(job).returncode == 0

    @contextmanager
    def running(self, job: int) -> Iterator[subprocess.Popen[str]]:
        """Start a try of a job; whatever is left of it is killed when the block ends."""
        process = warm.Popen(
            self.batch_round.job_command(str(job)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def events(self, job: int) -> list[AttemptEvent]:
        """Return what a job's journal says of attempts."""
        folder = self.batch_round.journal(job)
        events = read_events(folder) if folder.is_dir() else ()
        return [event for event in events if isinstance(event, AttemptEvent)]

    def kinds(self, job: int) -> list[str]:
        """Return the kinds of those events."""
        return [type(event).__name__ for event in self.events(job)]

    def details(self, job: int) -> list[SegmentRef]:
        """Return where the details of a job's successes are."""
        outcomes = [event.outcome for event in self.events(job) if isinstance(event, AttemptSucceeded)]
        return [outcome.detail for outcome in outcomes if outcome.detail is not None]

    def segment(self, job: int) -> Path:
        """Return the file with the details of a job."""
        (name,) = {ref.segment for ref in self.details(job)}
        return self.run_dir.segments / name

    def visit(self, job: int) -> int:
        """Return the visit of a job of one quantum."""
        (index,) = self.batch_round.jobs.quanta(job)
        return int(self.run_dir.load_plan().data_id(index)["visit"])

    def output(self, job: int, dataset_type: str, visit: int | None = None) -> Path:
        """Return the file of the first output of a job that is of this type, and of this visit if given."""
        for ref in self.details(job):
            detail = read_detail(self.run_dir.segments, ref)
            for name, values, dataset_id in detail["outputs"]:
                if name == dataset_type and visit in (None, values[-1]):
                    (datastore,) = detail["records"].values()
                    (records,) = datastore["records"].values()
                    ((record,),) = records[dataset_id].values()
                    return self.repository.root / str(record["path"])
        raise AssertionError(f"job {job} has put no {dataset_type}")


def submit(
    system: HandSystem, repository: MockRepository, run_dir: Path, settings: BatchSettings, **options: object
) -> Submitted:
    """Submit the repository's graph; no job runs."""
    system.pause = True
    executor = GraphExecutor(
        str(repository.root),
        Hand(settings),
        run_dir=run_dir,
        prepare=Preparation(register_dataset_types=True),
        **options,  # type: ignore[arg-type]
    )
    executor.submit(repository.graph)
    found = last_round(RunDir(run_dir))
    assert found is not None
    return Submitted(repository, found)


@contextmanager
def hidden(path: Path) -> Iterator[Callable[[], None]]:
    """Have a file not be there; what is given brings it back, and so does the end of the block."""
    aside = path.with_name(f"hidden-{path.name}")
    path.rename(aside)

    def show() -> None:
        if aside.exists():
            aside.rename(path)

    try:
        yield show
    finally:
        show()


@contextmanager
def half_written(path: Path) -> Iterator[Callable[[], None]]:
    """Have only the first half of a file be there; as `hidden`."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    def show() -> None:
        path.write_bytes(content)

    try:
        yield show
    finally:
        show()


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again until something is so; a test in which it never is has failed."""
    deadline = time.monotonic() + JOB_PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(_LOOK_S)
