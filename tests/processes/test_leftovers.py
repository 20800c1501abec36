"""`qgexec.processes.leftovers`: what nothing can put back is found, and what is a library's own is not."""

from __future__ import annotations

import atexit
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from qgexec.processes.leftovers import Leftovers
from qgexec.processes.proctree import adopt_orphans, end_descendants, living_descendants
from tests.kit.processes.forks import start_fork

_kept: list[object] = []
_never = threading.Event()


def _thread(name: str) -> None:
    threading.Thread(target=_never.wait, daemon=True, name=name).start()


def _daemon() -> None:
    if not (pid := os.fork()):
        os.setsid()
        if not os.fork():
            os.execvp("sleep", ["sleep", "1000"])
        os._exit(0)
    os.waitpid(pid, 0)


def _child_that_has_ended() -> None:
    with subprocess.Popen(["true"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()


def _register_for_a_moment() -> None:
    atexit.register(_thread, "late")
    atexit.unregister(_thread)


KINDS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "nothing": (lambda: None, []),
    "a thread": (lambda: _thread("poller"), ["a thread 'poller'"]),
    "a thread of fsspec's": (lambda: _thread("fsspecIO"), []),
    "a thread that ends": (lambda: threading.Thread(target=lambda: None).start(), []),
    "an exit handler": (lambda: atexit.register(print, end=""), ["an exit handler"]),
    "an exit handler that is taken back": (_register_for_a_moment, []),
    "a temporary folder": (lambda: _kept.append(tempfile.TemporaryDirectory()), []),
    "a few open files": (lambda: _kept.extend(map(open, ["/dev/null"] * 8)), []),
    "many open files": (lambda: _kept.extend(map(open, ["/dev/null"] * 100)), ["100 open files"]),
    "niceness": (lambda: os.nice(1), ["another niceness"]),
    "affinity": (
        lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        ["another CPU affinity"] if len(os.sched_getaffinity(0)) > 1 else [],
    ),
    "a process": (lambda: _kept.append(subprocess.Popen(["sleep", "1000"])), ["a process"]),
    "a daemon": (_daemon, ["a process"]),
    "a process that has ended": (_child_that_has_ended, []),
    "multiprocessing's tracker": (resource_tracker.ensure_running, []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_found(kind: str) -> None:
    """It is named; what serves all quanta of a process is not."""
    leave, expected = KINDS[kind]

    def act() -> int:
        adopt_orphans()
        leftovers = Leftovers(is_worker=True)
        leave()
        found = leftovers.look()
        end_descendants()
        assert found == expected, found
        assert not living_descendants()
        return 0

    assert start_fork(act).finish() == 0


def test_processes_that_may_stay() -> None:
    """They are named as kept, and found no more."""

    def act() -> int:
        leftovers = Leftovers()
        child = subprocess.Popen(["sleep", "1000"])
        assert leftovers.look(keep_processes=True) == []
        assert leftovers.kept == {child.pid}
        assert leftovers.look() == []
        end_descendants(leftovers.spared)
        assert child.poll() is None
        end_descendants()
        return 0

    assert start_fork(act).finish() == 0


def test_few_files_are_many_where_few_may_be_open() -> None:
    """A quarter of what the limit leaves."""

    def act() -> int:
        open_now = [int(each.name) for each in Path("/proc/self/fd").iterdir()]
        limit = max(open_now) + 41
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        few = min(64, (limit - len(open_now)) // 4) + 1
        leftovers = Leftovers()
        _kept.extend(map(open, ["/dev/null"] * few))
        assert leftovers.look() == [f"{few} open files"]
        return 0

    assert start_fork(act).finish() == 0


def test_exit_handlers_of_modules(tmp_path: Path) -> None:
    """One that is registered by an import is there once: it costs nothing."""
    (tmp_path / "lateguest.py").write_text("import atexit\natexit.register(print, end='')\n")

    def act() -> int:
        sys.path.insert(0, str(tmp_path))
        leftovers = Leftovers()
        __import__("lateguest")
        return 0 if leftovers.look() == [] else 1

    assert start_fork(act).finish() == 0
