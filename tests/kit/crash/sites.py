"""Runs drivers in forks of the test's own process, and kills them, their workers or ingesters where told.

A fork of a process that has imported the stack is there at once, and so is a server forked from it: an
interpreter of its own for each of some hundred drivers would take half an hour. What is killed is the
real process by the real signal, and what has to end with it ends by the same means as always; the kernel
tells, by a pipe that all of them hold, when the last one is gone.
"""

from __future__ import annotations

import functools
import gc
import io
import os
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import Config
from lsst.utils.packages import getPythonPackages

from benchmarks.endstate import EndState, read_end_state, read_work
from qgexec import assembly, executor
from qgexec.api import GraphExecutor, Preparation, QuantaFailedError
from qgexec.assembly import OpenRun
from qgexec.books.holder import this_process
from qgexec.books.journal import Journal
from qgexec.errors import QgexecError
from qgexec.ingestion.batches import Batching
from qgexec.processes import forked
from qgexec.rubin import PRELOAD
from tests.kit.butler.repos import (
    OUTPUT,
    OUTPUT_RUN,
    MockRepository,
    add_standard_tasks,
    connection,
    open_repository,
)
from tests.kit.crash.faults import Fault, nothing
from tests.kit.processes.forks import DEADLINE_S, Fork, complain, die_with, replace, start_fork
from tests.kit.processes.warm import start_servers_warm
from tests.kit.tasks.moods import MoodyTask

LABELS = ("isr", "calibrate", "pair", "summary", "final")


@dataclass(frozen=True, slots=True)
class Site:
    """A repository whose registry is ready for one run, and the run's directory, whose journal is empty."""

    folder: Path
    """All that a case may change."""
    opened: OpenRun
    """The run, as `GraphExecutor` opened it in this place."""
    pristine: Path
    """A copy of the folder before anything ran."""

    @property
    def run_dir(self) -> Path:
        """Run directory."""
        return self.opened.run_dir.path

    @property
    def repository(self) -> Path:
        """Root of the repository."""
        return Path(self.opened.context.repository.removeprefix("file://"))

    def restore(self) -> None:
        """Make the folder what it was before anything ran."""
        self.bring_back(self.pristine)

    def bring_back(self, copy: Path) -> None:
        """Make the folder what it was when it was copied."""
        self.log.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(copy, self.folder)

    def save(self, name: str) -> Path:
        """Copy the folder as it is now; nothing of its runs may be there any more."""
        copy = self.pristine.with_name(name)
        shutil.copytree(self.folder, copy)
        return copy

    def mark(self, name: str) -> Path:
        """Return the file that says that something has gone wrong as it was to go wrong once."""
        return self.folder / f"{name}.mark"

    @property
    def log(self) -> Path:
        """Gets what all drivers in this place print."""
        return self.pristine.with_name("drivers.log")

    @property
    def said(self) -> str:
        """What they have printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def end(self) -> tuple[EndState, list[str]]:
        """Return what is there now, and what is wrong with it."""
        return read_end_state(self.repository, OUTPUT_RUN, self.run_dir)


def make_small(folder: Path, config: Config | None = None) -> MockRepository:
    """Make a repository and a graph of a quantum for each task; ``pair`` puts two datasets."""
    made = MockRepository(folder / "repo", folder / "graph.qg", folder / "bare.qg")
    detector = ["visit", "detector"]
    with open_repository(made.root, config=config) as repo:
        add_standard_tasks(repo, task_classes=dict.fromkeys(LABELS, MoodyTask))
        repo.add_task(
            "pair",
            task_class=MoodyTask,
            dimensions=detector,
            inputs={"exposure": connection("post_isr", detector)},
            outputs={"one": connection("one", detector), "other": connection("other", detector)},
        )
        builder = repo.make_quantum_graph_builder(output_run=OUTPUT_RUN)
        builder.where = "instrument = 'Cam1' AND visit = 1 AND detector = 1"
        builder.finish(output=OUTPUT, attach_datastore_records=True).write(str(made.graph))
    return made


def make_site(
    template: MockRepository,
    folder: Path,
    *,
    place: Path | None = None,
    run_dir: Path | None = None,
    before: Fault | None = None,
    **options: Any,
) -> Site:
    """Open a run in a copy of a repository, as far as all drivers of it are alike.

    Parameters
    ----------
    template
        What is copied.
    folder
        Gets what belongs to the place.
    place
        Where the place is to be; in that folder, if not given.
    run_dir
        Where the run directory is to be; in the place, if not given, and only then can that be restored.
    before
        What goes wrong in another run that there was before, if there was one: the RUN is not new.
    **options
        Of `GraphExecutor`, for the run.
    """
    place = place or folder / "site"
    shutil.copytree(template.root.parent, place)
    shutil.copytree(place, folder / "bare")
    prepare = Preparation()
    if before is not None:
        earlier = make_site(template, folder / "earlier", place=folder / "earlier" / "site")
        begin(earlier, fault=before)
        shutil.rmtree(place)
        shutil.copytree(earlier.folder, place, ignore=shutil.ignore_patterns("run"))
        prepare = Preparation(extend_run=True)
    run_dir = run_dir or place / "run"
    maker = GraphExecutor(str(place / "repo"), run_dir=run_dir, prepare=prepare, **options)
    opened, journal = maker._open_books(str(place / "graph.qg"))  # what `execute` does first
    journal.withdraw()
    shutil.copytree(place, folder / "pristine")
    return Site(place, opened, folder / "pristine")


def start(site: Site, model: str = "inprocess", fault: Fault = nothing, **options: Any) -> Fork:
    """Begin to execute a site's run."""

    def execute() -> None:
        driver = GraphExecutor(str(site.repository), model, processes=2, run_dir=site.run_dir, **options)
        replace(driver, "_open_books", lambda _graph: (site.opened, claim(site.opened)))
        driver.execute(site.opened.context.graph_file)

    return _drive(site, model, fault, execute)


def claim(opened: OpenRun) -> Journal:
    """Take a run in hand that was opened elsewhere."""
    return Journal.create(opened.run_dir.journal, writer=this_process())


def begin_anew(site: Site, model: str = "inprocess", fault: Fault = nothing, **options: Any) -> int:
    """Prepare and execute a run in a place in which nothing is prepared; return as `begin`."""

    def execute() -> None:
        driver = GraphExecutor(
            str(site.repository), model, processes=2, run_dir=site.run_dir, prepare=Preparation(), **options
        )
        driver.execute(site.folder / "graph.qg")

    return _drive(site, model, fault, execute).finish()


def start_resume(
    site: Site, model: str = "inprocess", fault: Fault = nothing, *, force: bool = False, **changes: Any
) -> Fork:
    """Begin to go on with a site's run."""

    def go_on() -> None:
        GraphExecutor.of_run(site.run_dir, model=model, **changes).resume(force=force)

    return _drive(site, model, fault, go_on)


def begin(site: Site, model: str = "inprocess", fault: Fault = nothing, **options: Any) -> int:
    """Execute a site's run from its beginning; return how the driver ended when all of it is gone.

    Returns
    -------
    status
        0 all succeeded, 1 some failed, 2 refused or broken off, `KILLED`.
    """
    return start(site, model, fault, **options).finish()


def resume(
    site: Site, model: str = "inprocess", fault: Fault = nothing, *, force: bool = False, **changes: Any
) -> int:
    """Go on with a site's run; return as `begin`."""
    return start_resume(site, model, fault, force=force, **changes).finish()


def _drive(site: Site, model: str, fault: Fault, action: Callable[[], None]) -> Fork:
    def work() -> int:
        log = os.open(site.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(
            io.FileIO(log, "w"), write_through=True
        )  # not the test runner's
        _make_eager(model)
        fault()
        if model == "pool":
            start_servers_warm()
            forked.warm_up(PRELOAD)
        try:
            action()
        except QuantaFailedError:
            return 1
        except QgexecError:
            complain()
            return 2
        finally:
            forked.shut_down()
        return 0

    return start_fork(work)


def _make_eager(model: str) -> None:
    """Ingest after every other quantum instead of every other second: there is more to be killed at."""
    replace(assembly, "Batching", functools.partial(Batching, quanta=2, seconds=0.0))
    replace(executor, "PULSE_S", 0.0 if model == "inprocess" else 0.02)


Case = Callable[[Site], None]
"""Plays in a place of its own, and asserts."""


def judge(cases: Mapping[str, Case], sites: Sequence[Site]) -> dict[str, str]:
    """Play cases, as many at a time as there are places; return what is wrong with each, empty if nothing."""
    getPythonPackages()  # what it remembers serves all forks
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all pages: a quarter of a case's time
    waiting, free = list(cases.items()), list(sites)
    playing: dict[int, tuple[str, Site, int]] = {}
    verdicts: dict[str, str] = {}
    try:
        while waiting or playing:
            while waiting and free:
                name, case = waiting.pop(0)
                site = free.pop()
                pid = _play(case, site)
                playing[os.pidfd_open(pid)] = (name, site, pid)
            ready, _, _ = select.select(list(playing), [], [], 3 * DEADLINE_S)
            assert ready, f"no end: {[name for name, _, _ in playing.values()]}"
            for descriptor in ready:
                name, site, pid = playing.pop(descriptor)
                os.close(descriptor)
                os.waitpid(pid, 0)
                verdicts[name] = _verdict_file(site).read_text()
                free.append(site)
    finally:
        for descriptor, (_, _, pid) in playing.items():
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(descriptor)
        gc.unfreeze()
    return verdicts


def _verdict_file(site: Site) -> Path:
    return site.pristine.with_name("verdict")


def _play(case: Case, site: Site) -> int:
    """Play a case in a fork of this process, and return its process ID."""
    _verdict_file(site).write_text("it was killed")
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    verdict = ""
    try:
        die_with(parent)
        site.restore()
        case(site)
    except BaseException:  # noqa: BLE001 - it must not come out in the copy of the test
        verdict = traceback.format_exc() + site.said[-6000:]
    finally:
        _verdict_file(site).write_text(verdict)
        os._exit(0)


def check_end(site: Site, undisturbed: EndState, *, done_once: bool = True) -> None:
    """Assert that nothing is lost, nothing is there twice, and nothing that was done was done again."""
    state, problems = site.end()
    problems += undisturbed.differences(state)
    if done_once:
        done = read_work(site.run_dir).done
        problems += [f"quantum {index} was done {n} times" for index, n in done.items() if n > 1]
    assert not problems, "\n".join(problems)
