"""Finds what code has left in its process that nothing can put back: threads, exit handlers, files, children.

Only a new process is free of it. What modules leave when they are imported, once, is no such thing.
"""

from __future__ import annotations

import atexit
import os
import resource
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from qgexec.processes.proctree import living_descendants

__all__ = ["Leftovers"]

_MOST_FILES = 64
"""So many more open files than at the start are too many; or a quarter of what is left of the limit."""
_LAST_WORDS_S = 0.1
"""Time for threads to end that are about to, seconds."""
_KEPT_THREADS = ("fsspecIO", "tqdm_monitor")
_KEPT_MODULES = ("fsspec", "tqdm", "lsst.daf.butler", "lsst.resources")
"""Whose threads serve all quanta of a process."""
_LIBRARY_HANDLERS = ("weakref", "multiprocessing", "concurrent", "logging", "threading", "asyncio")
"""Packages whose exit handlers are registered once, when they are first used."""


class Leftovers:
    """What belongs to this process, and what has come since; looking costs about 0.03 ms.

    Parameters
    ----------
    is_worker
        The process is ours: children that have ended are waited for. A caller's are left to the caller.
    """

    def __init__(self, *, is_worker: bool = False) -> None:
        self._is_worker = is_worker
        self._processes = living_descendants()
        weakref.finalize(self, int).detach()  # it registers an exit handler when it is first used
        self._threads = {*map(id, threading.enumerate())}
        self._n_files = _n_open_files()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_files = self._n_files + max(1, min(_MOST_FILES, (soft - self._n_files) // 4))
        self._niceness = os.getpriority(os.PRIO_PROCESS, 0)
        self._affinity = os.sched_getaffinity(0)
        self._handlers = _ExitHandlers()
        self.kept: frozenset[int] = frozenset()
        """Process IDs of descendants that may stay."""

    def look(self, *, keep_processes: bool = False) -> list[str]:
        """Return what has been left, in words that follow "leaves"; empty where nothing was.

        Parameters
        ----------
        keep_processes
            Processes that are left may stay, from now on.
        """
        left = [*self._threads_left(), *self._handlers.left()]
        if (n_more := _n_open_files() - self._most_files) > 0:
            left.append(f"{n_more + self._most_files - self._n_files} open files")
        if os.getpriority(os.PRIO_PROCESS, 0) != self._niceness:
            left.append("another niceness")
        if os.sched_getaffinity(0) != self._affinity:
            left.append("another CPU affinity")
        if processes := self._processes_left():
            if keep_processes:
                self.kept |= processes
            else:
                left.append(f"{'a process' if len(processes) == 1 else f'{len(processes)} processes'}")
        return left

    def _threads_left(self) -> Iterable[str]:
        threads = threading.enumerate()
        if len(threads) == 1:
            return
        new = [each for each in threads if id(each) not in self._threads and not _is_kept(each)]
        deadline = time.monotonic() + _LAST_WORDS_S
        for thread in new:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                yield f"a thread {thread.name!r}"

    @property
    def spared(self) -> frozenset[int]:
        """Process IDs of descendants that are no leftovers."""
        return self.kept | _tracker()

    def _processes_left(self) -> frozenset[int]:
        found = living_descendants(reaps=self._is_worker)
        return found - self._processes - self.spared if found else found

    def close(self) -> None:
        """Count exit handlers no more; may be called twice."""
        self._handlers.close()


class _ExitHandlers:
    """Knows exit handlers as they are registered; those that modules register at import do not count."""

    def __init__(self) -> None:
        self._register, self._unregister = atexit.register, atexit.unregister
        self._n_before = _n_exit_handlers()
        self._n_seen = 0
        self._left: list[Callable[..., Any]] = []
        vars(atexit).update(register=self._note, unregister=self._forget)

    def _note(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
        self._n_seen += 1
        package = (getattr(function, "__module__", None) or "").partition(".")[0]
        if package not in _LIBRARY_HANDLERS and not _is_importing():
            self._left.append(function)
        return self._register(function, *arguments, **options)

    def _forget(self, function: Callable[..., Any]) -> None:
        self._left = [each for each in self._left if each != function]
        self._unregister(function)

    def left(self) -> Iterable[str]:
        # Who has imported the function itself before is not seen, but its handler is counted.
        n_left = len(self._left) + max(0, _n_exit_handlers() - self._n_before - self._n_seen)
        if n_left:
            yield "an exit handler" if n_left == 1 else f"{n_left} exit handlers"

    def close(self) -> None:
        vars(atexit).update(register=self._register, unregister=self._unregister)


def _is_importing() -> bool:
    """Tell whether a module is being imported: its own code is called by nothing but the import system."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__spec__") is not None:
            return bool(getattr(frame.f_globals["__spec__"], "_initializing", False))
        frame = frame.f_back
    return False


def _n_exit_handlers() -> int:
    return atexit._ncallbacks()  # noqa: SLF001


def _n_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path for each would cost ten times as much


def _is_kept(thread: threading.Thread) -> bool:
    """Tell whether a thread is a library's, which serves all quanta, or not Python's to end."""
    if isinstance(thread, threading._DummyThread):  # noqa: SLF001
        return True
    module = type(thread).__module__
    return thread.name in _KEPT_THREADS or module.startswith(_KEPT_MODULES)


def _tracker() -> frozenset[int]:
    """Return the process of multiprocessing that takes care of shared memory: it ends with this one."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    pid = getattr(getattr(module, "_resource_tracker", None), "_pid", None)
    return frozenset() if pid is None else frozenset({pid})
