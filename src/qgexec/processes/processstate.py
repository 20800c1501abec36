"""Saves what code may change in its process, puts it back afterwards, and says what cannot be put back.

A process that runs one quantum after another shows each of them what the one before has left: a working
folder, an environment, an alarm that rings later. `ProcessState` is what spares it that.
"""

from __future__ import annotations

import fcntl
import gc
import locale
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from _signal import getsignal  # type: ignore[import-not-found]  # signal's own makes an enum of each answer: ten times slower
from collections.abc import Collection
from contextlib import suppress

from qgexec.processes.loggingstate import LoggingState

__all__ = ["ProcessState"]

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_LIMITS = (
    resource.RLIMIT_AS,
    resource.RLIMIT_CORE,
    resource.RLIMIT_CPU,
    resource.RLIMIT_DATA,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_NPROC,
    resource.RLIMIT_STACK,
)
_HOOKS = (
    (sys, "excepthook"),
    (sys, "unraisablehook"),
    (sys, "displayhook"),
    (threading, "excepthook"),
    (tempfile, "tempdir"),
)
_LEAST_S = 1e-6
"""A timer that is set to 0 is none, seconds."""
_NUMPY_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
"""What numpy does about errors in a fresh process; see `numpy.seterr`."""


class ProcessState:
    """What code may change in this process, as it is now.

    Making one takes about 0.2 ms, `restore` about 0.1 ms where nothing was changed. Signals and alarms are
    those of the main thread; in another thread they are left alone. Handlers of `faulthandler`'s are not
    seen: who has registered them must look after them.
    """

    def __init__(self) -> None:
        self._is_main_thread = threading.current_thread() is threading.main_thread()
        self._saved_at = time.monotonic()
        self._folder = _open_folder()
        self._umask = _umask()
        self._environment = _environment().copy()
        self._zone = time.tzname
        self._timers = [signal.getitimer(timer) for timer in _TIMERS]
        self._handlers = [*map(getsignal, _SIGNALS)]
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._limits = [*map(resource.getrlimit, _LIMITS)]
        self._streams = _Streams()
        self._hooks = [getattr(owner, name) for owner, name in _HOOKS]
        self._path = [*sys.path]
        self._filters = [*warnings.filters]
        self._showwarning = warnings.showwarning
        self._recursion_limit = sys.getrecursionlimit()
        self._gc = (gc.isenabled(), gc.get_threshold())
        self._locale = locale.setlocale(locale.LC_ALL)
        self._numpy = _numpy_errors()
        self._logging = LoggingState()
        self._modules = {*sys.modules}

    def restore(self) -> list[str]:
        """Put back what has been changed since; return what could not be, in words.

        A module that was imported meanwhile keeps the hooks, loggers and warning filters of its own.
        """
        imported: Collection[str] = ()
        if len(sys.modules) != len(self._modules):
            imported = sys.modules.keys() - self._modules
            self._modules = {*sys.modules}
        left: list[str] = []
        if self._is_main_thread:
            self._restore_signals()
        self._restore_place()
        self._restore_limits(left)
        self._streams.restore()
        for (owner, name), saved in zip(_HOOKS, self._hooks, strict=True):
            if getattr(owner, name) is not saved:
                setattr(owner, name, saved)
        if sys.path != self._path:
            sys.path[:] = self._path
        self._restore_warnings(imported)
        self._restore_interpreter()
        self._logging.restore(imported)
        return left

    def close(self) -> None:
        """Close the files that it keeps open; may be called twice."""
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None
        self._streams.close()

    def _restore_signals(self) -> None:
        passed_s = time.monotonic() - self._saved_at
        for timer, (left_s, interval_s) in zip(_TIMERS, self._timers, strict=True):
            if left_s:
                signal.setitimer(timer, max(left_s - passed_s, _LEAST_S), interval_s)
            elif signal.getitimer(timer) != (0.0, 0.0):
                signal.setitimer(timer, 0.0)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        if mask != self._mask:
            # What came meanwhile was for the handlers of then.
            for number in signal.sigpending() & (mask - self._mask):
                signal.sigtimedwait({number}, 0)
        if [*map(getsignal, _SIGNALS)] != self._handlers:
            self._restore_handlers()
        if mask != self._mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _restore_handlers(self) -> None:
        for number, saved in zip(_SIGNALS, self._handlers, strict=True):
            if saved is not None and getsignal(number) != saved:
                signal.signal(number, saved)

    def _restore_place(self) -> None:
        if self._folder is not None:
            os.fchdir(self._folder)
        os.umask(self._umask)
        if _environment() != self._environment:
            now = _environment()
            for key in now.keys() - self._environment.keys():
                os.environb.pop(key, None)
            for key, value in self._environment.items():
                if now.get(key) != value:
                    os.environb[key] = value
            if time.tzname != self._zone:
                time.tzset()

    def _restore_limits(self, left: list[str]) -> None:
        limits = [*map(resource.getrlimit, _LIMITS)]
        if limits == self._limits:
            return
        for limit, now, saved in zip(_LIMITS, limits, self._limits, strict=True):
            if now != saved:
                try:
                    resource.setrlimit(limit, saved)
                except (OSError, ValueError):
                    left.append("a lowered resource limit")

    def _restore_warnings(self, imported: Collection[str]) -> None:
        if warnings.showwarning is not self._showwarning:
            if warnings.showwarning.__module__ in imported:
                self._showwarning = warnings.showwarning
            else:
                warnings.showwarning = self._showwarning
        if warnings.filters == self._filters:
            return
        if imported:
            new = [each for each in warnings.filters if each not in self._filters and _is_particular(each)]
            self._filters = [*new, *self._filters]
        warnings.resetwarnings()  # the interpreter remembers what it has filtered until it is told so
        warnings.filters[:] = self._filters  # type: ignore[index]

    def _restore_interpreter(self) -> None:
        if sys.getrecursionlimit() != self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        enabled, thresholds = self._gc
        if gc.isenabled() != enabled:
            (gc.enable if enabled else gc.disable)()
        if gc.get_threshold() != thresholds:
            gc.set_threshold(*thresholds)
        if locale.setlocale(locale.LC_ALL) != self._locale:
            locale.setlocale(locale.LC_ALL, self._locale)
        if self._numpy != _numpy_errors():
            numpy, (errors, call) = sys.modules["numpy"], self._numpy or (_NUMPY_ERRORS, None)
            numpy.seterr(**errors)
            numpy.seterrcall(call)


class _Streams:
    """Standard input, output and error: the descriptors, and the objects of `sys`."""

    _NAMES = ("stdin", "stdout", "stderr")

    def __init__(self) -> None:
        self._objects = [getattr(sys, name) for name in self._NAMES]
        self._files = [_file_of(number) for number in range(3)]
        self._copies = [
            None if file is None else fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
            for number, file in enumerate(self._files)
        ]

    def restore(self) -> None:
        for number, copy in enumerate(self._copies):
            if copy is not None and _file_of(number) != self._files[number]:
                os.dup2(copy, number)
        for number, (name, saved) in enumerate(zip(self._NAMES, self._objects, strict=True)):
            if saved is not None and getattr(saved, "closed", False):
                self._objects[number] = _open_stream(number)
            if getattr(sys, name) is not self._objects[number]:
                setattr(sys, name, self._objects[number])

    def close(self) -> None:
        for number, copy in enumerate(self._copies):
            if copy is not None:
                os.close(copy)
                self._copies[number] = None


def _open_stream(number: int) -> object:
    """Open a standard stream anew, on the descriptor that is there."""
    mode, buffering = ("r", -1) if number == 0 else ("w", 1)
    return open(number, mode, buffering=buffering, errors="backslashreplace", closefd=False)


def _file_of(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open_folder() -> int | None:
    """Open the working folder: what is open can be gone back to, also when it was renamed or removed."""
    with suppress(OSError):
        return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _environment() -> dict[bytes, bytes]:
    # The public mapping decodes each value: 50 us, instead of 1, for each comparison.
    found: dict[bytes, bytes] = os.environb._data  # type: ignore[attr-defined]  # noqa: SLF001
    return found


def _numpy_errors() -> tuple[dict[str, str], object] | None:
    """Return what numpy does about errors; `None` where nobody has imported it, or changed anything."""
    if (numpy := sys.modules.get("numpy")) is None or not hasattr(numpy, "geterrcall"):
        return None
    found = (numpy.geterr(), numpy.geterrcall())
    return None if found == (_NUMPY_ERRORS, None) else found


def _is_particular(warning_filter: tuple[object, ...]) -> bool:
    """Tell whether a filter is about some messages or modules: one about all of them is not a library's."""
    _, message, category, module, _ = warning_filter
    return message is not None or module is not None or category is not Warning
