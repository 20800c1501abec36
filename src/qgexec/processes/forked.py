"""Processes forked from a warm server: starts them, tells of their death, ends them with all they started.

Knows nothing of quanta. A *server* (`qgexec.processes.forkserver`) is one
single-threaded process that has imported what its children need; a child
costs a fork (milliseconds), not an interpreter and the stack (seconds). It is
not `multiprocessing`'s server, because that one

- imports the user's ``__main__`` in every child, so that a script without an
  ``if __name__ == "__main__"`` guard starts itself again; here it is imported
  only when what a child is given was defined there;
- cannot end what a child has started, nor signal it without the risk that
  its number belongs to another process by then;
- starts a further interpreter (the resource tracker) that nothing here needs.

Who ends whom: every child leads a session of its own. The server kills a
child's whole process group when the child ends, when its `Process` is
closed, and for all children when the driver's end of its control socket
closes, which the kernel does also for a driver that was killed. The kernel
kills the children (``PR_SET_PDEATHSIG``) of a server that was killed.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qgexec.errors import WorkerStartError
from qgexec.processes.births import KERNEL
from qgexec.processes.channel import Channel, Message
from qgexec.processes.forkserver import (
    BORN,
    FORK,
    GONE,
    UNBORN,
    MainModule,
    StartOrder,
    importing_main,
    preload_request,
    process_started_at,
)
from qgexec.processes.interpreter import driver_search_path, python_command
from qgexec.processes.orphans import MARK, end_orphans, server_mark

__all__ = [
    "Channel",
    "Message",
    "Process",
    "describe_exit",
    "process_started_at",
    "shut_down",
    "start_process",
    "warm_up",
]

_BOOT = """\
import sys
sys.path[:] = sys.argv[2:]
from qgexec.processes.forkserver import serve
serve(int(sys.argv[1]))
"""
"""Nothing but `sys` may be imported before the search path is that of the driver."""

_THREAD_VARIABLES = (
    "BLIS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Read by numerical libraries when they are loaded, which the server does: each server has them for good."""

start_interpreter: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen
"""Starts a server's interpreter, which takes seconds to import what its children need."""

_END_S = 10.0
"""Longest wait for a server that has nothing left to do but exit."""


def describe_exit(exit_code: int | None) -> str:
    """Say how a process ended: ``was killed by signal 9 (SIGKILL)``, ``exited with status 3``."""
    if exit_code is None:
        return "is gone"
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        return f"was killed by signal {-exit_code}"
    return f"was killed by signal {-exit_code} ({name})"


def _environment(*, implicit_threads: bool) -> dict[str, str]:
    environment = dict(os.environ)
    if not implicit_threads:
        environment.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    return environment


class Process:
    """A process that was asked for: forked, or about to be.

    Made by `start_process`; for one thread.
    """

    __slots__ = (
        "_server",
        "_status",
        "_unread",
        "channel",
        "ended",
        "exit_code",
        "failure",
        "name",
        "pid",
        "started_at",
    )

    def __init__(
        self,
        name: str,
        status: socket.socket,
        channel: Channel,
        unread: Channel,
        server: _Server,
    ) -> None:
        self.name = name
        """What it was started as."""
        self.channel = channel
        """Messages to and from it."""
        self.pid: int | None = None
        """Process ID; `None` until it is forked."""
        self.started_at: float | None = None
        """When it started, UNIX seconds: with the process ID it names one process for good."""
        self.ended = False
        """It is gone, and so is its process group."""
        self.exit_code: int | None = None
        """Exit status; minus the signal's number where a signal ended it; `None` until then or if unknown."""
        self.failure = ""
        """Why there is no exit status, where it ended without one."""
        self._status = status
        self._unread = unread
        self._server = server

    def fileno(self) -> int:
        """Return a file descriptor that is readable when `refresh` has news: it was forked, or has ended."""
        return self._status.fileno()

    def refresh(self) -> None:
        """Take in what is known by now; never blocks."""
        while not self.ended:
            try:
                news = self._status.recv(512, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                news = b""
            self._learn(news)

    def _learn(self, news: bytes) -> None:
        match news[:1]:
            case b"B":
                _, self.pid, self.started_at = BORN.unpack(news)
            case b"G":
                _, self.exit_code = GONE.unpack(news)
                self.ended = True
            case kind:
                self.failure = news[1:].decode() if kind == UNBORN else self._server.describe()
                self.ended = True

    def signal(self, number: int) -> None:
        """Send a signal to it and its process group; to nobody else even where it has ended meanwhile."""
        with suppress(OSError):
            self._status.send(bytes([number]), socket.MSG_DONTWAIT)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end, at most so long; say whether it has ended."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        self.refresh()
        while not self.ended and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self.refresh()
        return self.ended

    def take_back(self) -> Message | None:
        """Return the oldest message that was sent and not received yet; `None` if there is none.

        The driver keeps a copy of the process's end of the channel. A
        message goes to exactly one of those who ask, so this cannot race with the
        process, and works after its death too.
        """
        return self._unread.try_receive()

    def next_unread(self) -> Message | None:
        """Return what `take_back` would, and leave it to the process."""
        return self._unread.peek()

    def keep(self, pids: Collection[int]) -> None:
        """Let processes that it has started go on when it has ended, until `end_kept`."""
        self._server.keep(pids)

    def end_kept(self, pids: Collection[int]) -> None:
        """End processes that were kept when it ended."""
        self._server.end_kept(pids)

    def end_orphans(self) -> None:
        """Where its server was killed, and so could not do so: end what it has started."""
        if self.pid is not None and self.ended and self.exit_code is None:
            self._server.end_orphans(self.pid)

    def close(self) -> None:
        """Let go: the process is killed if it still lives. May be called twice."""
        self.channel.close()
        self._unread.close()
        self._status.close()


class _Server:
    """The driver's side of one server process."""

    _n_made = 0

    def __init__(self, *, implicit_threads: bool) -> None:
        _Server._n_made += 1
        birth = KERNEL.birth(os.getpid())
        self._since_ticks = 0 if birth is None else birth.start_ticks
        self._mark = f"{server_mark(os.getpid(), self._since_ticks)}{_Server._n_made}"
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = start_interpreter(
                python_command("-c", _BOOT, str(theirs.fileno()), *driver_search_path()),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=_environment(implicit_threads=implicit_threads) | {MARK: self._mark},
            )
        self._preloaded: set[str] = set()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def alive(self) -> bool:
        return self._popen.poll() is None

    def preload(self, modules: Sequence[str]) -> None:
        """Have modules imported that are not yet; returns at once."""
        if missing := [module for module in modules if module not in self._preloaded]:
            self._control.send(preload_request(missing))
            self._preloaded.update(missing)

    def keep(self, pids: Collection[int]) -> None:
        with suppress(OSError):
            self._control.send(json.dumps({"keep": [*pids]}).encode())

    def end_kept(self, pids: Collection[int]) -> None:
        with suppress(OSError):
            self._control.send(json.dumps({"end": [*pids]}).encode())

    def fork(self, descriptors: Sequence[int]) -> None:
        socket.send_fds(self._control, [FORK], descriptors)

    def end_orphans(self, pid: int) -> None:
        """End what a worker has started, where this server was killed and the worker with it."""
        end_orphans({pid}, self._mark, self._since_ticks)

    def describe(self) -> str:
        """Say why nothing is known of a child."""
        with suppress(subprocess.TimeoutExpired):
            # Its sockets close a moment before its exit status is there.
            self._popen.wait(1.0)
        return (
            f"the server that had forked it (pid {self._popen.pid}) {describe_exit(self._popen.returncode)}"
        )

    def abandon(self) -> None:
        """In a process forked from the driver: let go of what is the driver's."""
        self._control.close()
        self._popen.returncode = 0

    def end(self) -> None:
        """End it and all its children."""
        self._control.close()
        try:
            self._popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


_servers: dict[bool, _Server] = {}
_lock = threading.Lock()


def warm_up(preload: Sequence[str] = (), *, implicit_threads: bool = False) -> int:
    """Start the server, if there is none, and have it import modules; returns at once.

    Parameters
    ----------
    preload
        Modules that the processes to come will need.
    implicit_threads
        Leave numerical libraries their own threads. There is a server for
        each answer, as the libraries ask only once.

    Returns
    -------
    pid
        The server's process ID.

    Raises
    ------
    qgexec.errors.WorkerStartError
        The server cannot be started.
    """
    with _lock:
        return _warm_server(preload, implicit_threads=implicit_threads).pid


def _warm_server(preload: Sequence[str], *, implicit_threads: bool) -> _Server:
    if importing_main():
        raise WorkerStartError(
            "the script starts a run while a worker of that run imports it",
            hint="A worker needs something that the script defines: put what the script does under "
            '`if __name__ == "__main__":`.',
        )
    server = _servers.get(implicit_threads)
    if server is not None and not server.alive():
        server.end()
        server = None
    if server is None:
        try:
            server = _servers[implicit_threads] = _Server(implicit_threads=implicit_threads)
        except OSError as err:
            raise WorkerStartError(f"cannot start {python_command()[0]}: {err}") from err
    with suppress(ConnectionError):  # it has just died: whoever is started next is told so
        server.preload(preload)
    return server


def start_process(
    target: Callable[..., None],
    args: tuple[Any, ...],
    *,
    name: str,
    output: Path | None,
    preload: Sequence[str] = (),
    implicit_threads: bool = False,
) -> Process:
    """Ask the server for a process; returns before it exists.

    The process runs ``target(channel, *args)`` with this process's present
    environment, working folder and search path, then exits with status 0.
    What it raises is sent as ``("raised", message, hint, traceback)``, status 1.

    Parameters
    ----------
    target
        A module-level function.
    args
        What it gets besides its `Channel`, by pickle.
    name
        Name for messages.
    output
        File to which its standard output and error are appended; `None` for this process's standard error,
        as it was when the server was started.
    preload
        Modules that are imported before anything else.
    implicit_threads
        As for `warm_up`.

    Raises
    ------
    qgexec.errors.WorkerStartError
        The arguments cannot be pickled, or the system has no room for more
        processes or files.
    """
    payload = _pickle_payload(target, args, output, preload, implicit_threads=implicit_threads)
    try:
        return _request(payload, name, preload, implicit_threads=implicit_threads)
    except OSError as err:
        raise WorkerStartError(
            f"cannot start {name}: {err}",
            hint="Start fewer, or raise the limits on processes and open files (`ulimit -u`, `ulimit -n`).",
        ) from err


def _pickle_payload(
    target: Callable[..., None],
    args: tuple[Any, ...],
    output: Path | None,
    preload: Sequence[str],
    *,
    implicit_threads: bool,
) -> bytes:
    order = StartOrder(
        environment=_environment(implicit_threads=implicit_threads),
        folder=str(Path.cwd()),
        sys_path=tuple(driver_search_path()),
        main=MainModule.here(),
        preload=tuple(preload),
        output="" if output is None else str(output),
    )
    try:
        return pickle.dumps(order) + pickle.dumps((target, args))
    except Exception as err:
        raise WorkerStartError(
            f"what the workers are to be given cannot be pickled: {type(err).__name__}: {err}",
            hint="Use instances of module-level classes without open files, locks or lambdas, "
            "or the model `inprocess`.",
        ) from err


def _request(payload: bytes, name: str, preload: Sequence[str], *, implicit_threads: bool) -> Process:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    status, their_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.memfd_create("qgexec-start")
    with their_status, os.fdopen(memory, "r+b") as file:
        file.write(payload)
        file.seek(0)
        descriptors = (their_status.fileno(), theirs.fileno(), memory)
        with _lock:
            server = _warm_server(preload, implicit_threads=implicit_threads)
            with suppress(ConnectionError):  # then the process's status is at its end, which says it better
                server.fork(descriptors)
    return Process(name, status, Channel(ours), Channel(theirs), server)


def shut_down() -> None:
    """End the servers and all processes that they forked; a later `start_process` begins anew."""
    with _lock:
        for server in _servers.values():
            server.end()
        _servers.clear()


def _abandon() -> None:
    for server in _servers.values():
        server.abandon()
    _servers.clear()


atexit.register(shut_down)
# A process that the user forks from the driver must not keep the control socket open when the driver is dead.
os.register_at_fork(after_in_child=_abandon)
