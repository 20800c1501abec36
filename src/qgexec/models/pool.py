"""Runs quanta in warm worker processes on this host, event driven: a worker's death takes only its quantum.

When a worker is started, replaced or ended, and how long an attempt may run:
that is decided here; who runs what, in `qgexec.models.dispatch`.
`qgexec.processes` starts and ends processes, `qgexec.worker` is what they do.
"""

from __future__ import annotations

import heapq
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qgexec.errors import ModelError, UsageError, WorkerStartError
from qgexec.events import AttemptLost, AttemptReturned, AttemptTimedOut, Event, WorkerEnded, WorkerStarted
from qgexec.models.base import ModelFacts, Run
from qgexec.models.dispatch import Dispatch, Worker
from qgexec.processes import Message, describe_exit, start_process, warm_up
from qgexec.quantum import Attempt, Resources
from qgexec.worker import ENDED, RAISED, decode_event, work

__all__ = ["Pool", "PoolSettings"]

_GATHER_S = 0.1
"""Longest time that news waits for more news, seconds."""

_SHORTEST_PAUSE_S = 0.001
"""A pause that is not worth its system call is left out, seconds."""

_MAX_STARTING = 64
"""Most workers that start at the same time: the requests must fit into the server's socket."""

_MAX_FAILED_STARTS = 3
"""Workers in a row that die, without a word, before they began any quantum."""

_KILL_S = 10.0
"""Longest wait for processes that were sent SIGKILL."""

_FILES_PER_WORKER = 3
_OTHER_FILES = 256


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What can be set for a `Pool`."""

    processes: int
    """Most workers, and the cores that quanta may use; workers of serial tasks come on top."""

    grace_s: float
    """Time between SIGTERM and SIGKILL for a worker that is to end, seconds."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise UsageError(
                f"a pool of {self.processes} processes cannot run anything",
                hint="Give at least 1 (`-j 1`).",
            )
        if not self.grace_s >= 0:
            raise UsageError(f"grace_s is {self.grace_s}: it must be 0 or more seconds")


class Pool:
    """Execute quanta in warm worker processes on this host.

    Workers are started as there is work for them, the first ones (as many as there
    are cores) at once; a number far above what the host has costs nothing
    until that many quanta are ready at the same time.

    Parameters
    ----------
    processes
        Most workers; `None` for one a core of this host that we may use.
    grace_s
        Time between SIGTERM and SIGKILL for a worker that is to end, seconds.

    Raises
    ------
    qgexec.errors.UsageError
        Fewer than one process.
    """

    facts = ModelFacts(parallel=True, enforces_timeout=True)

    def __init__(self, processes: int | None = None, *, grace_s: float = 5.0) -> None:
        cores = len(os.sched_getaffinity(0))
        self.settings = PoolSettings(cores if processes is None else processes, grace_s)
        self._at_least = min(self.settings.processes, cores)
        self._run: Run | None = None
        self._closing = False
        self._woken = False
        self._error: ModelError | None = None
        self._events: list[Event] = []
        self._workers: dict[int, Worker] = {}
        self._by_fd: dict[int, Worker] = {}
        self._unannounced: list[Worker] = []
        self._last_number = 0
        self._failed_starts = 0
        self._alarms: list[tuple[float, int]] = []

    def open(self, run: Run) -> None:
        """Start the first workers.

        Raises
        ------
        qgexec.errors.WorkerStartError
            What they need cannot be pickled, or the system refuses.
        """
        self._run = run
        self._host = socket.gethostname()
        _allow_files(_FILES_PER_WORKER * (self.settings.processes + len(run.serial_labels)) + _OTHER_FILES)
        self._dispatch = Dispatch(self.settings.processes, run.serial_labels, self._set_alarm)
        self._epoll = select.epoll()
        self._wake_end, self._waker = socket.socketpair()
        for end in (self._wake_end, self._waker):
            end.setblocking(False)
        self._epoll.register(self._wake_end, select.EPOLLIN)
        warm_up(run.preload, implicit_threads=run.implicit_threads)
        self._fill()

    def capacity(self) -> Resources:
        """Free cores, and the attempts that fill busy workers up to `PREFETCH_S`."""
        return Resources(cores=self._dispatch.capacity())

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Send attempts to workers, or keep them until there is one.

        Raises
        ------
        qgexec.errors.WorkerStartError
            The system refuses another process.
        """
        for attempt in attempts:
            self._dispatch.add(attempt)
        self._dispatch.assign()
        if self._dispatch.anything_waits:
            self._fill()

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Return what happened; block until something has, or `wake` is called, or the time is up.

        Raises
        ------
        qgexec.errors.WorkerStartError
            Workers do not start; the message says why.
        qgexec.errors.ModelError
            The bench broke its contract.
        """
        deadline = time.monotonic() + timeout_s
        for worker in self._unannounced:
            worker.announced = True
            self._dispatch.file(worker)
        self._unannounced.clear()
        left = max(0.0, timeout_s)
        while True:
            self._dispatch.assign()
            self._dispatch.even_out()
            if self._events or self._woken or self._error is not None or left < 0:
                break
            self._poll(left)
            self._gather()
            left = deadline - time.monotonic()
        self._woken = False
        if self._error is not None and not self._events:
            raise self._error
        events, self._events = self._events, []
        return events

    def _gather(self) -> None:
        """Let more news come while all workers have enough to do: waking costs more than heeding it."""
        pause_s = min(self._dispatch.slack_s(), _GATHER_S) if self._events and not self._woken else 0.0
        if pause_s >= _SHORTEST_PAUSE_S:
            time.sleep(pause_s)
            self._poll(0.0)

    def wake(self) -> None:
        """Make `wait` return now; may be called from another thread or a signal handler."""
        if self._run is not None and not self._closing:
            with suppress(BlockingIOError):  # it is awake already
                self._waker.send(b"\0")

    def close(self, *, cancel: bool) -> Sequence[Event]:
        """End all workers, and give back the attempts that had not ended."""
        if self._run is None or self._closing:
            return ()
        self._closing = True
        for worker in self._workers.values():
            if worker.ready and not worker.held and not worker.doomed:
                worker.process.channel.finish()
            else:
                self._end(worker, signal.SIGTERM)
        self._poll_until_gone(self.settings.grace_s)
        for worker in self._workers.values():
            self._end(worker, signal.SIGKILL)
        self._poll_until_gone(_KILL_S)
        for worker in list(self._workers.values()):  # even SIGKILL waits for a file system that hangs
            self._bury(worker)
        self._epoll.close()
        self._wake_end.close()
        self._waker.close()
        for attempt in self._dispatch.take_all_waiting():
            self._events.append(AttemptReturned(time.time(), attempt.index, attempt.number))
        events, self._events = self._events, []
        return events

    def _opened(self) -> Run:
        if self._run is None:
            raise ModelError("the pool is not open")
        return self._run

    def _poll_until_gone(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._workers and (left := deadline - time.monotonic()) > 0:
            self._poll(left)

    def _poll(self, timeout_s: float) -> None:
        """Wait for news of workers, for the time limit of an attempt, or for `wake`; once."""
        if self._alarms:
            timeout_s = min(timeout_s, max(0.0, self._alarms[0][0] - time.monotonic()))
        for fd, _ in self._epoll.poll(timeout_s):
            if (worker := self._by_fd.get(fd)) is None:
                self._heed_wake(fd)
            elif fd == worker.process.fileno():
                self._heed_process(worker)
            else:
                self._heed_messages(worker)
        self._sound_alarms()

    def _heed_wake(self, fd: int) -> None:
        if fd == self._wake_end.fileno():
            self._woken = bool(self._wake_end.recv(4096))

    def _heed_messages(self, worker: Worker) -> None:
        while (message := worker.process.channel.try_receive()) is not None:
            self._heed(worker, message)
            if not worker.held:
                break  # it has nothing more to tell: spares a system call
        if worker.process.channel.at_end:
            # A copy of its end is open here, so it is no death: it shut down its side, for good.
            self._epoll.unregister(worker.process.channel)
            self._end(worker, signal.SIGKILL)

    def _heed(self, worker: Worker, message: Message) -> None:
        if message[0] == ENDED:
            event, took_s = decode_event(message)
            attempt = self._dispatch.withdraw(worker)
            self._dispatch.durations.add(attempt.task_label, took_s)
            worker.took_any = True
            self._failed_starts = 0
            self._events.append(event)
        elif message[0] == RAISED:
            worker.doomed = True
            self._fail(worker, *message[1:])
        else:
            worker.ready = True
            self._dispatch.file(worker)
            self._fill()

    def _fail(self, worker: Worker, what: str, hint: str, trace: str) -> None:
        """Keep the error that `wait` will raise: what a bench raises, the next one would raise again."""
        if self._error is not None or self._closing:
            return
        kind: type[ModelError] = ModelError
        doing = f"the bench of worker {worker.number} broke its contract"
        if not worker.ready:
            kind, doing = WorkerStartError, f"worker {worker.number} cannot start"
        self._error = kind(f"{doing}: {what}", hint=hint)
        self._error.add_note(trace)

    def _heed_process(self, worker: Worker) -> None:
        process, known = worker.process, worker.process.pid is not None
        process.refresh()
        if not known and process.pid is not None and process.started_at is not None:
            self._events.append(
                WorkerStarted(time.time(), worker.number, self._host, process.pid, process.started_at)
            )
            self._unannounced.append(worker)
        if process.ended:
            self._bury(worker)

    def _fill(self) -> None:
        """Start the workers that are missing; never fewer than there were."""
        if self._closing or self._error is not None:
            return
        common = [worker for worker in self._workers.values() if worker.label is None]
        wanted = self._dispatch.n_waiting + sum(1 for worker in common if worker.held)
        self._at_least = max(self._at_least, min(self.settings.processes, wanted))
        starting = sum(1 for worker in common if not worker.ready)
        for _ in range(min(self._at_least - len(common), _MAX_STARTING - starting)):
            self._start_worker(None)
        for label, waiting in self._dispatch.serial_backlog.items():
            if waiting and label not in self._dispatch.dedicated:
                self._dispatch.dedicated[label] = self._start_worker(label)

    def _start_worker(self, label: str | None) -> Worker:
        run = self._opened()
        number = self._last_number + 1
        name = f"worker-{number:04d}"
        process = start_process(
            work,
            (run.bench_opener, name),
            name=name,
            output=run.logs / f"{name}.out",
            preload=run.preload,
            implicit_threads=run.implicit_threads,
        )
        self._last_number = number
        worker = self._workers[number] = Worker(number, process, label)
        for end in (process, process.channel):
            self._epoll.register(end, select.EPOLLIN)
            self._by_fd[end.fileno()] = worker
        return worker

    def _end(self, worker: Worker, number: signal.Signals) -> None:
        worker.doomed = True
        self._dispatch.file(worker)
        worker.process.signal(number)

    def _set_alarm(self, worker: Worker) -> None:
        """Note until when the attempt that begins now may run."""
        if worker.overdue is None:
            limit_s = worker.held[0].timeout_s
            self._set_deadline(worker, float("inf") if limit_s is None else time.monotonic() + limit_s)

    def _set_deadline(self, worker: Worker, deadline: float) -> None:
        # A worker's alarm that comes too early is set again: each has one, not one for every attempt.
        worker.deadline = deadline
        if deadline < worker.alarm_at:
            worker.alarm_at = deadline
            heapq.heappush(self._alarms, (deadline, worker.number))

    def _sound_alarms(self) -> None:
        """End the workers whose attempt is over its time limit."""
        now = time.monotonic()
        while self._alarms and self._alarms[0][0] <= now:
            worker = self._workers.get(heapq.heappop(self._alarms)[1])
            if worker is None:
                continue
            worker.alarm_at = float("inf")
            if worker.deadline > now:
                self._set_deadline(worker, worker.deadline)
            elif worker.overdue is not None:
                self._end(worker, signal.SIGKILL)
            elif worker.held:
                worker.overdue = worker.held[0]
                self._set_deadline(worker, now + self.settings.grace_s)
                self._end(worker, signal.SIGTERM)

    def _bury(self, worker: Worker) -> None:
        """Say what became of all that a dead worker held, and replace it."""
        process = worker.process
        while (message := process.channel.try_receive()) is not None:
            self._heed(worker, message)
        behind = []
        while worker.held and (attempt := self._dispatch.take_back(worker)) is not None:
            behind.append(attempt)
        # One at most is left: a worker takes a message when it has sent the outcome of the one before.
        while worker.held:
            worker.took_any = True
            self._events.append(self._epitaph(worker, self._dispatch.withdraw(worker)))
        if process.pid is not None:
            self._events.append(WorkerEnded(time.time(), worker.number, process.exit_code))
        if not (worker.took_any or worker.doomed or self._closing):
            self._count_failed_start(worker)
        self._remove(worker)
        self._dispatch.requeue(behind)
        self._fill()

    def _remove(self, worker: Worker) -> None:
        worker.doomed = True
        self._dispatch.file(worker)
        del self._workers[worker.number]
        if worker in self._unannounced:
            self._unannounced.remove(worker)
        if worker.label is not None:
            del self._dispatch.dedicated[worker.label]
        for end in (worker.process, worker.process.channel):
            del self._by_fd[end.fileno()]
            with suppress(FileNotFoundError):  # the channel of a worker that had shut down its side
                self._epoll.unregister(end)
        worker.process.close()

    def _epitaph(self, worker: Worker, attempt: Attempt) -> Event:
        """Return the event that ends an attempt whose worker died."""
        now, index, number = time.time(), attempt.index, attempt.number
        if attempt is worker.overdue and attempt.timeout_s is not None:
            self._keep_log(worker, attempt)
            return AttemptTimedOut(now, index, number, attempt.timeout_s, worker.number)
        if worker.doomed:
            return AttemptReturned(now, index, number)
        self._keep_log(worker, attempt)
        reason = f"{_obituary(worker)} while it ran the quantum"
        return AttemptLost(now, index, number, reason, worker.process.exit_code, worker.number)

    def _keep_log(self, worker: Worker, attempt: Attempt) -> None:
        logs = self._opened().logs
        with suppress(OSError):  # none was written, or the disk is full: the attempt is lost all the same
            (logs / f"{worker.name}.log").rename(logs / f"{attempt.index}.{attempt.number}.log")

    def _count_failed_start(self, worker: Worker) -> None:
        self._failed_starts += 1
        if self._failed_starts < _MAX_FAILED_STARTS or self._error is not None:
            return
        output = self._opened().logs / f"{worker.name}.out"
        self._error = WorkerStartError(
            f"{_obituary(worker)} before it began any quantum, as {self._failed_starts - 1} others before it",
            hint=f"See {output}. {_tail(output)}".rstrip(),
        )


def _obituary(worker: Worker) -> str:
    process = worker.process
    pid = "" if process.pid is None else f" (pid {process.pid})"
    why = f": {process.failure}" if process.failure else ""
    return f"worker {worker.number}{pid} {describe_exit(process.exit_code)}{why}"


def _tail(path: Path) -> str:
    """Return the last line of what a process printed."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return f"Its last line: {lines[-1]}" if lines else ""


def _allow_files(needed: int) -> None:
    """Raise the limit on open files as far as is needed and allowed; beyond, starting a worker says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
