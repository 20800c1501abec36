"""What runs in the server that forks processes, and in each before its own work; knows nothing of quanta.

The server does nothing but wait: for requests on the control socket, for
the end of its children, and for signals to pass on to them. It never
unpickles anything and has no threads, so that forking is safe and an end of
the driver is always noticed, whatever the children are doing.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import pickle
import resource
import runpy
import selectors
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn

from qgexec.errors import QgexecError, WorkerStartError
from qgexec.processes.channel import Channel
from qgexec.processes.interpreter import driver_search_path
from qgexec.processes.machine import offer_to_oom_killer
from qgexec.processes.orphans import MARK
from qgexec.processes.proctree import adopt_orphans, children_of

__all__ = ["MainModule", "StartOrder", "importing_main", "process_started_at", "serve"]

MAX_TEXT_BYTES = 24000
"""Longest traceback in a message."""

FORK = b"fork"
"""Request on the control socket, with the three file descriptors of `_Server.fork`; anything else is JSON."""

BORN = struct.Struct("=cqd")
"""News of a child, b"B": process ID and start time, UNIX seconds."""

GONE = struct.Struct("=cq")
"""News of a child, b"G": exit status, minus the signal's number where a signal ended it."""

UNBORN = b"U"
"""News of a child that could not be forked; the reason follows, UTF-8."""

_PR_SET_PDEATHSIG = 1


@cache
def _booted_at() -> int:
    """Return when the kernel started, UNIX seconds."""
    for line in Path("/proc/stat").read_text("ascii").splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    raise ProcessLookupError("/proc/stat has no btime")


def process_started_at(pid: int) -> float | None:
    """Return when a process started, UNIX seconds, or `None` where there is none that lives.

    Two readings agree within 2 s: the kernel counts from its own start, and
    gives that in whole seconds of a clock that may be corrected meanwhile (proc(5)).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name before the last parenthesis may hold anything; field 22 is the 20th after it.
    fields = stat.rpartition(b")")[2].split()
    if fields[0] in b"ZX":  # dead, and not yet waited for
        return None
    return _booted_at() + int(fields[19]) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class MainModule:
    """Where the driver's ``__main__`` came from."""

    name: str | None
    path: str | None

    @classmethod
    def here(cls) -> MainModule:
        """Return that of this process."""
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        return cls(name=getattr(spec, "name", None), path=getattr(main, "__file__", None))


@dataclass(frozen=True, slots=True)
class StartOrder:
    """What a child is to be, besides what it is to do: the driver's surroundings."""

    environment: dict[str, str]
    folder: str
    sys_path: tuple[str, ...]
    main: MainModule
    preload: tuple[str, ...]
    output: str
    """File to which standard output and error are appended; empty for where the server prints."""


class _MainImport:
    """Whether this process is importing the driver's ``__main__`` just now."""

    going_on = False


def importing_main() -> bool:
    """Say whether this code runs because a child imports the driver's ``__main__``: it must start nothing."""
    return _MainImport.going_on


def _import_main(main: MainModule) -> None:
    """Make the driver's ``__main__`` importable here under the name by which its classes were pickled."""
    if "__mp_main__" in sys.modules:
        return
    _MainImport.going_on = True
    try:
        if main.name is not None:
            content = runpy.run_module(main.name, run_name="__mp_main__", alter_sys=True)
        elif main.path is not None:
            content = runpy.run_path(main.path, run_name="__mp_main__")
        else:
            raise WorkerStartError(
                "what a worker needs was defined in an interactive session: no other process can import it",
                hint="Move the class or function to a module, or use the model `inprocess`.",
            )
    finally:
        _MainImport.going_on = False
    module = ModuleType("__mp_main__")
    module.__dict__.update(content)
    sys.modules["__mp_main__"] = sys.modules["__main__"] = module


class _Unpickler(pickle.Unpickler):
    """Imports the driver's ``__main__`` only when something was defined there."""

    def __init__(self, stream: IO[bytes], main: MainModule) -> None:
        super().__init__(stream)
        self._main = main

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__":
            _import_main(self._main)
        return super().find_class(module, name)


class _Server:
    """The loop of the server process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, socket.socket] = {}
        self._kept: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._signalled = socket.socketpair()
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._wakeup.setblocking(False)
        self._signalled.setblocking(False)

    def run(self) -> NoReturn:
        """Serve until the driver is gone."""
        # Descriptors that exceed the limit are dropped without an error when they arrive with a message.
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._limits[1], self._limits[1]))
        # Ctrl-C, and a batch system's SIGTERM to everybody, are the driver's to act upon.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, _note_signal)
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._control, selectors.EVENT_READ, None)
        self._selector.register(self._wakeup, selectors.EVENT_READ, None)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    self._obey()
                elif key.fileobj is self._wakeup:
                    self._wakeup.recv(4096)
                    self._reap()
                elif key.data in self._children:
                    self._pass_on(key.data)

    def _obey(self) -> None:
        """Take one request from the driver."""
        try:
            request, descriptors, _, _ = socket.recv_fds(self._control, 1 << 18, 3)
        except ConnectionError:
            request, descriptors = b"", []
        if not request:
            self._end()
        if request == FORK:
            self._fork(*descriptors)
            return
        order = json.loads(request)
        if "preload" not in order:
            self._kept.update(order.get("keep", ()))
            self._kept.difference_update(order.get("end", ()))
            self._end_orphans()
            return
        sys.path[:] = order["sys_path"]
        gc.disable()  # imports make many objects and no garbage: collecting takes a fifth of their time
        for module in order["preload"]:
            # The child imports it again and says what is wrong with it: here nobody listens.
            with suppress(Exception):
                importlib.import_module(module)
        # What is imported stays: without this the first collection in each child would copy every page of it.
        gc.freeze()
        gc.enable()

    def _fork(self, status_fd: int, channel_fd: int, payload_fd: int) -> None:
        status = socket.socket(fileno=status_fd)
        # A SIGTERM that arrives before the child has its own dispositions must not be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            pid = os.fork()
        except OSError as err:
            with suppress(OSError):
                status.send(UNBORN + str(err).encode())
            status.close()
            return
        else:
            if not pid:
                self._leave()
                status.close()
                _be_child(channel_fd, payload_fd)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            os.close(channel_fd)
            os.close(payload_fd)
        self._children[pid] = status
        with suppress(OSError):
            status.send(BORN.pack(b"B", pid, process_started_at(pid) or 0.0))
        self._selector.register(status, selectors.EVENT_READ, pid)

    def _leave(self) -> None:
        """In a new child: let go of all that is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self._selector.close()
        for end in (self._control, self._wakeup, self._signalled, *self._children.values()):
            end.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)

    def _pass_on(self, pid: int) -> None:
        """Send the signals that the driver asks for, or end a child that the driver has let go."""
        try:
            numbers = self._children[pid].recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            numbers = b""
        if not numbers:
            self._selector.unregister(self._children[pid])
        for number in numbers or [signal.SIGKILL]:
            _signal_group(pid, number)

    def _reap(self) -> None:
        """Tell the driver of every child that has ended, after the end of all that it had started."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            # Until it is waited for, its number is that of no other process or group.
            _signal_group(found.si_pid, signal.SIGKILL)
            self._end_orphans()
            _, status = os.waitpid(found.si_pid, 0)
            self._forget(found.si_pid, os.waitstatus_to_exitcode(status))

    def _end_orphans(self) -> None:
        """End what dead children have started, also where it has left their process group: it is ours now."""
        for pid in children_of(os.getpid()) - self._children.keys() - self._kept:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)  # a child of ours: its number is its own until we wait for it

    def _forget(self, pid: int, exit_code: int) -> None:
        end = self._children.pop(pid, None)
        if end is None:
            return
        with suppress(KeyError):
            self._selector.unregister(end)
        with suppress(OSError):
            end.send(GONE.pack(b"G", exit_code))
        end.close()

    def _end(self) -> NoReturn:
        for pid in self._children:
            _signal_group(pid, signal.SIGKILL)
        for pid in self._children:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._kept.clear()
        self._end_orphans()
        os._exit(0)


def _note_signal(_number: int, _frame: object) -> None:
    """Have Python write the signal's number to the wake-up socket; without a handler it would not."""


def _signal_group(pid: int, number: int) -> None:
    """Signal a child's group, or the child alone: right after the fork it does not lead one yet."""
    # Not both: a second signal would come in the middle of what the first has it do.
    for send in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            send(pid, number)
            return


_driver_stderr: int | None = None


def driver_stderr() -> int | None:
    """Return the standard error that the server was started with; `None` in a process whose own that is."""
    return _driver_stderr


def serve(control_fd: int) -> NoReturn:
    """Be the server; never returns.

    Parameters
    ----------
    control_fd
        The server's end of the control socket.
    """
    adopt_orphans()
    # What a preloaded module prints must not end up in the output of the driver's command.
    os.dup2(2, 1)
    _Server(socket.socket(fileno=control_fd)).run()


def _be_child(channel_fd: int, payload_fd: int) -> NoReturn:
    """Be a child of the server: do what the payload says, then end; tell the driver of what is raised."""
    channel = Channel(socket.socket(fileno=channel_fd))
    status = 1
    # Exit handlers that exist were registered by the server's imports, and are the server's.
    atexit._clear()  # noqa: SLF001 - as multiprocessing does in its forks
    try:
        os.setsid()
        _die_with(os.getppid())
        with os.fdopen(payload_fd, "rb") as payload:
            order: StartOrder = pickle.load(payload)  # noqa: S301 - memory that only the driver could write
            _adopt(order)
            target, arguments = _Unpickler(payload, order.main).load()
        target(channel, *arguments)
        status = 0
    except BaseException as err:  # noqa: BLE001 - what ends this process must reach the driver in words
        with suppress(OSError):
            channel.send(("raised", *_in_words(err)))
        if not isinstance(err, QgexecError):  # that one says it all, and whoever is told prints it
            with suppress(OSError, ValueError):  # the disk that the output goes to may be full
                traceback.print_exc()
    finally:
        # Those that were registered since the fork: folders for copies of remote files are removed by them.
        try:
            atexit._run_exitfuncs()  # noqa: SLF001
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
        finally:
            os._exit(status)


def _in_words(err: BaseException) -> tuple[str, str, str]:
    """Return message, hint and traceback."""
    whole = "".join(traceback.format_exception(err)).encode(errors="replace")[-MAX_TEXT_BYTES:]
    if isinstance(err, QgexecError):
        return err.message[:2000], err.hint[:2000], whole.decode(errors="replace")
    name = type(err).__name__
    message = f"{name}: {err}"[:2000] if str(err) else name
    return message, "", whole.decode(errors="replace")


def _die_with(server: int) -> None:
    """Have the kernel kill this process when the server ends, however it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)
    offer_to_oom_killer()


def _adopt(order: StartOrder) -> None:
    """Take over the driver's surroundings as they are now: the server's are older."""
    mark = os.environ.get(MARK)
    os.environ.clear()
    os.environ.update(order.environment)
    if mark is not None:
        os.environ[MARK] = mark
    os.chdir(order.folder)
    sys.path[:] = order.sys_path
    if order.output:
        global _driver_stderr  # noqa: PLW0603 - a process has one
        _driver_stderr = os.dup(2)
        output = os.open(order.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable(2)  # a library that crashes while it is imported says where
    for module in order.preload:
        _import_preload(module)
    # A fork copies the state of numpy's global generator: without this all workers draw the same numbers.
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed()


def _import_preload(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as err:
        raise WorkerStartError(
            f"a worker cannot import {module}: {type(err).__name__}: {err}",
            hint="Check that it is installed in this Python environment and imports by itself.",
        ) from err


def preload_request(modules: Sequence[str]) -> bytes:
    """Return the request to import these modules, with this process's search path."""
    return json.dumps({"preload": list(modules), "sys_path": driver_search_path()}).encode()
