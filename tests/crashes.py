"""Runs drivers in forks of the test's own process, and kills them, their workers or ingesters where told.

A fork of a process that has imported the stack is there at once, and so is a server forked from it: an
interpreter of its own for each of some hundred drivers would take half an hour. What is killed is the
real process by the real signal, and what has to end with it ends by the same means as always; the kernel
tells, by a pipe that all of them hold, when the last one is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import io
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import lsst.utils.packages
from kills import die
from lsst.daf.butler import Config
from lsst.utils.packages import getPythonPackages
from moods import MoodyTask
from repos import OUTPUT, OUTPUT_RUN, MockRepository, add_standard_tasks, connection, open_repository

from benchmarks.endstate import EndState, read_end_state, read_work
from qgexec import executor, forkserver, ingestion, linefile, processes
from qgexec.api import GraphExecutor, Preparation, QuantaFailedError
from qgexec.assembly import OpenRun
from qgexec.batches import Batching
from qgexec.errors import QgexecError
from qgexec.events import Event
from qgexec.journal import Journal
from qgexec.quantum import Attempt
from qgexec.rubin import PRELOAD
from qgexec.rubin.workbench import Workbench

KILLED = -signal.SIGKILL

DEADLINE_S = 90.0
"""Longest wait for something that must happen: reached only where it does not."""

_PR_SET_PDEATHSIG = 1
"""See prctl(2)."""

LABELS = ("isr", "calibrate", "pair", "summary", "final")

Fault = Callable[[], None]
"""Called in a driver's process before it begins: prepares what goes wrong, there or in its workers."""


# --- places ---------------------------------------------------------------------------------------------


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
    prepare = Preparation()
    if before is not None:
        earlier = make_site(template, folder / "earlier", place=folder / "earlier" / "site")
        begin(earlier, fault=before)
        shutil.rmtree(place)
        shutil.copytree(earlier.folder, place, ignore=shutil.ignore_patterns("run"))
        prepare = Preparation(extend_run=True)
    run_dir = run_dir or place / "run"
    maker = GraphExecutor(str(place / "repo"), run_dir=run_dir, prepare=prepare, **options)
    opened = maker._open_books(str(place / "graph.qg"))  # what `execute` does first
    shutil.copytree(place, folder / "pristine")
    return Site(place, opened, folder / "pristine")


class Flag:
    """Something that one process waits for and another one says; both by the flag's path alone.

    Parameters
    ----------
    path
        Where it is made.
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._path = path
        # Open for both: nobody waits for the other side to open it, and what was said stays.
        self._kept = os.open(path, os.O_RDWR)

    def raise_(self) -> None:
        """Say it."""
        descriptor = os.open(self._path, os.O_RDWR)
        os.write(descriptor, b"!")
        os.close(descriptor)

    def wait(self) -> None:
        """Wait for it; each time that it was said lets one go on."""
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            assert _is_ready(descriptor, time.monotonic() + DEADLINE_S), f"{self._path.name} was never said"
            os.read(descriptor, 1)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._kept)


# --- drivers --------------------------------------------------------------------------------------------


def _nothing() -> None:
    pass


def start(site: Site, model: str = "inprocess", fault: Fault = _nothing, **options: Any) -> Fork:
    """Begin to execute a site's run."""

    def execute() -> None:
        driver = GraphExecutor(str(site.repository), model, processes=2, run_dir=site.run_dir, **options)
        replace(driver, "_open_books", lambda _graph: site.opened)
        driver.execute(site.opened.context.graph_file)

    return _drive(site, model, fault, execute)


def start_resume(
    site: Site, model: str = "inprocess", fault: Fault = _nothing, *, force: bool = False, **changes: Any
) -> Fork:
    """Begin to go on with a site's run."""

    def go_on() -> None:
        GraphExecutor.of_run(site.run_dir, model=model, **changes).resume(force=force)

    return _drive(site, model, fault, go_on)


def begin(site: Site, model: str = "inprocess", fault: Fault = _nothing, **options: Any) -> int:
    """Execute a site's run from its beginning; return how the driver ended when all of it is gone.

    Returns
    -------
    status
        0 all succeeded, 1 some failed, 2 refused or broken off, `KILLED`.
    """
    return start(site, model, fault, **options).finish()


def resume(
    site: Site, model: str = "inprocess", fault: Fault = _nothing, *, force: bool = False, **changes: Any
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
            replace(processes, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": _ForkedServer}))
            processes.warm_up(PRELOAD)
        try:
            action()
        except QuantaFailedError:
            return 1
        except QgexecError:
            _complain()
            return 2
        finally:
            processes.shut_down()
        return 0

    return start_fork(work)


@functools.cache
def _packages() -> dict[str, str]:
    return getPythonPackages()


def _make_eager(model: str) -> None:
    """Ingest after every other quantum instead of every other second: there is more to be killed at."""
    replace(lsst.utils.packages, "getPythonPackages", _packages)  # a third of a second otherwise
    replace(ingestion, "Batching", functools.partial(Batching, quanta=2, seconds=0.0))
    replace(executor, "_PULSE_S", 0.0 if model == "inprocess" else 0.02)


@dataclass(slots=True)
class Fork:
    """A fork of this process at work."""

    pid: int
    lifeline: int
    """The end of a pipe whose other end the fork holds, and all that it started."""

    def finish(self) -> int:
        """Wait until it and all that it started is gone; return how it ended."""
        deadline = time.monotonic() + DEADLINE_S
        process = os.pidfd_open(self.pid)
        try:
            in_time = _is_ready(process, deadline)
            if not in_time:
                signal.pidfd_send_signal(process, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            assert in_time, "a driver did not come to its end"
            assert _is_ready(self.lifeline, deadline), "processes of a driver that is gone are still there"
        finally:
            os.close(process)
            os.close(self.lifeline)
        return os.waitstatus_to_exitcode(status)


def start_fork(work: Callable[[], int]) -> Fork:
    """Do something in a fork of this process, which ends with what is returned as its status."""
    ours, theirs = os.pipe()
    parent, pid = os.getpid(), os.fork()
    if not pid:
        status = 3
        try:
            _die_with(parent)
            os.close(ours)
            _ForkedServer.lifeline = theirs
            status = work()
        except BaseException:  # noqa: BLE001 - it must not come out in the copy of the test
            _complain()
        finally:
            os._exit(status)
    os.close(theirs)
    return Fork(pid, ours)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the one that forked it is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        die()


def _complain() -> None:
    """Print what was raised; where that cannot be printed, a full disk is what it is about."""
    with contextlib.suppress(OSError):
        traceback.print_exc()


def _is_ready(descriptor: int, deadline: float) -> bool:
    ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
    return bool(ready)


class _ForkedServer:
    """Stands in for `subprocess.Popen` where the server that forks workers is started: forks it, too."""

    lifeline = -1
    """The end of a pipe that all descendants of a driver hold."""

    def __init__(self, arguments: Sequence[str], *, pass_fds: Sequence[int], **_: object) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._be_server(*pass_fds)
        self._descriptor = os.pidfd_open(self.pid)

    def _be_server(self, control: int) -> NoReturn:
        os.setsid()
        # Above all the driver's end of the socket: it tells of the driver's death by being closed.
        kept = {0, 1, 2, control, self.lifeline}
        for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
            if descriptor not in kept:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        os.set_inheritable(control, False)
        try:
            forkserver.serve(control)
        finally:
            traceback.print_exc()
            os._exit(1)

    def poll(self) -> int | None:
        """Return the exit status; `None` while it runs."""
        return self._wait(time.monotonic())

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        status = self._wait(time.monotonic() + (DEADLINE_S if timeout is None else timeout))
        if status is None:
            raise subprocess.TimeoutExpired("server", timeout or DEADLINE_S)
        return status

    def _wait(self, deadline: float) -> int | None:
        if self.returncode is None and _is_ready(self._descriptor, deadline):
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """Kill it."""
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)


def replace(owner: Any, name: str, value: object) -> None:
    """Put something in the place of what an object or a module has, in this process and its forks."""
    setattr(owner, name, value)


# --- cases ----------------------------------------------------------------------------------------------

Case = Callable[[Site], None]
"""Plays in a place of its own, and asserts."""


def judge(cases: Mapping[str, Case], sites: Sequence[Site]) -> dict[str, str]:
    """Play cases, as many at a time as there are places; return what is wrong with each, empty if nothing."""
    _packages()
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
        _die_with(parent)
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


# --- faults ---------------------------------------------------------------------------------------------


def at_record(number: int, moment: str) -> Fault:
    """Have the driver killed ``before`` its so many-th record is written, ``within`` it, or ``after``."""
    return _at_append(lambda n, _event: n == number, moment)


def at_kind(kind: type[Event], moment: str) -> Fault:
    """Have the driver killed at its first record of a kind."""
    return _at_append(lambda _n, event: isinstance(event, kind), moment)


def _at_append(is_it: Callable[[int, Event], bool], moment: str) -> Fault:
    def prepare() -> None:
        append, write = Journal.append, os.write
        n = 0

        def tearing(descriptor: int, data: bytes) -> int:
            write(descriptor, data[: len(data) // 2])
            die()
            return 0

        def deadly(journal: Journal, event: Event) -> None:
            nonlocal n
            n += 1
            if not is_it(n, event):
                append(journal, event)
                return
            if moment == "before":
                die()
            if moment == "within":
                replace(linefile, "os", SimpleNamespace(**vars(os) | {"write": tearing}))
            append(journal, event)
            die()

        replace(Journal, "append", deadly)

    return prepare


def at_call(
    owner: Any, name: str, moment: str = "before", *, number: int = 1, act: Callable[[], None] = die
) -> Fault:
    """Have a process killed at its so many-th call of a function.

    Parameters
    ----------
    owner, name
        A class or module, and the function's name there.
    moment
        ``before`` the call, or ``after`` it.
    number
        Counted in each process from 1.
    act
        Done then, if not to die.
    """

    def prepare() -> None:
        function = getattr(owner, name)
        n = 0

        @functools.wraps(function)
        def deadly(*args: Any, **kwargs: Any) -> Any:
            nonlocal n
            n += 1
            now = n == number
            if now and moment == "before":
                act()
            result = function(*args, **kwargs)
            if now and moment == "after":
                act()
            return result

        replace(owner, name, deadly)

    return prepare


def die_once(mark: Path) -> None:
    """Kill this process, unless the mark says that one was killed already."""
    if is_first(mark):
        die()


def is_first(mark: Path) -> bool:
    """Make a mark; say whether it was not there."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def in_quantum(label: str, *stages: Fault, mark: Path) -> Fault:
    """Have faults prepared as a task's quantum begins, in the process that executes it: one for each attempt.

    Parameters
    ----------
    label
        The task's.
    stages
        The fault of the first attempt, of the second, ...; later ones are left alone.
    mark
        Counts attempts: files whose names begin like this.
    """

    def prepare() -> None:
        execute = Workbench.execute

        def deadly(bench: Workbench, attempt: Attempt) -> Event:
            if attempt.task_label == label:
                for n, stage in enumerate(stages):
                    if is_first(mark.with_name(f"{mark.name}.{n}")):
                        stage()
                        break
            return execute(bench, attempt)

        replace(Workbench, "execute", deadly)

    return prepare


def together(*faults: Fault) -> Fault:
    """Prepare several faults."""

    def prepare() -> None:
        for fault in faults:
            fault()

    return prepare


def in_task(**actions: Callable[[], None]) -> Fault:
    """Have something done in a quantum of a task, by label, before its first put."""

    def prepare() -> None:
        before = MoodyTask.before_put

        def mood(task: MoodyTask) -> None:
            if before is not None:
                before(task)
            actions.get(task.getName(), _nothing)()

        MoodyTask.before_put = staticmethod(mood)

    return prepare


def raising(error: BaseException, mark: Path | None = None) -> Callable[[], None]:
    """Return an action that raises, once where a mark is given."""

    def act() -> None:
        if mark is None or is_first(mark):
            raise error

    return act


def killed(mark: Path) -> Callable[[], None]:
    """Return an action that kills the process, once."""
    return functools.partial(die_once, mark)


def stuck(mark: Path) -> Callable[[], None]:
    """Return an action that waits for a signal, once."""

    def act() -> None:
        if is_first(mark):
            signal.pause()

    return act
