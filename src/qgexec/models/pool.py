"""Runs quanta in warm worker processes on this host, event driven: a worker's death takes only its quantum.

When a worker is started, replaced or ended is decided here; who runs what, in `qgexec.models.dispatch`; who
uses too much or is silent, in `qgexec.models.watch`; what is said of the dead, in `qgexec.models.endings`.
`qgexec.processes.forked` starts and ends processes, `qgexec.models.worker` is what they do.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from qgexec.errors import ModelError, WorkerStartError
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptReturned,
    Event,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.models.alarms import Alarms
from qgexec.models.base import ModelFacts, Run
from qgexec.models.dispatch import Dispatch
from qgexec.models.endings import Surroundings, epitaph, keep_papers, last_line, obituary, stack_file
from qgexec.models.poolsettings import PoolSettings
from qgexec.models.watch import OomKills, Watch
from qgexec.models.worker import (
    ENDED,
    ENDED_LAST,
    RAISED,
    STACKS_SIGNAL,
    Said,
    WorkRules,
    decode_event,
    with_peak,
    work,
)
from qgexec.models.workers import NEVER, OverTime, Unresponsive, Worker
from qgexec.processes.births import KERNEL
from qgexec.processes.forked import Message, start_process, warm_up
from qgexec.processes.machine import find_memory_group, machine_memory_bytes
from qgexec.processes.proctree import find_strays, kill
from qgexec.quantum import Attempt, Resources

__all__ = ["Pool", "PoolSettings"]

_logger = logging.getLogger(__name__)

_GATHER_S = 0.1
"""Longest time that news waits for more news, seconds."""

_SHORTEST_PAUSE_S = 0.001
"""A pause that is not worth its system call is left out, seconds."""

_MAX_STARTING = 64
"""Most workers that start at the same time: the requests must fit into the server's socket."""

_MAX_FAILED_STARTS = 3
"""Workers in a row that die, without a word, before they began any quantum."""

_LAST_WORDS_S = 0.5
"""Time for a worker that did not heed SIGTERM to write its stacks, seconds."""

_KILL_S = 10.0
"""Longest wait, at the end, for processes that were sent SIGKILL."""

_GONE_S = 60.0
"""The same while the run goes on: then the worker is given up, as if it were gone, seconds."""

_MOST_COSTS = 5
"""A task that has cost so many workers by what it leaves behind is isolated."""

_ENDED = (ENDED, ENDED_LAST)

_FILES_PER_WORKER = 3
_OTHER_FILES = 256


class Pool:
    """Execute quanta in warm worker processes on this host.

    Workers are started as there is work for them, the first ones (as many as there
    are cores) at once; a number far above what the host has costs nothing
    until that many quanta are ready at the same time.

    Parameters
    ----------
    processes
        Most workers; `None` for one a core of this host that we may use.
    cores
        Cores that quanta may use together; by default as many as there are processes.
    grace_s, memory_bytes, growth_bytes, watch_period_s, start_limit_s, silence_limit_s
        As in `PoolSettings`.

    Raises
    ------
    qgexec.errors.UsageError
        A setting that makes no sense, as fewer than one process.
    """

    facts = ModelFacts(parallel=True, sends_ahead=True, enforces_timeout=True, enforces_memory=True)

    def __init__(
        self,
        processes: int | None = None,
        *,
        cores: int | None = None,
        grace_s: float = 5.0,
        memory_bytes: int | None = None,
        growth_bytes: int = 1 << 30,
        watch_period_s: float = 0.5,
        start_limit_s: float = 300.0,
        silence_limit_s: float = 30.0,
    ) -> None:
        n_here = len(os.sched_getaffinity(0))
        processes = n_here if processes is None else processes
        self.settings = PoolSettings(
            processes=processes,
            cores=processes if cores is None else cores,
            grace_s=grace_s,
            memory_bytes=memory_bytes,
            growth_bytes=growth_bytes,
            watch_period_s=watch_period_s,
            start_limit_s=start_limit_s,
            silence_limit_s=silence_limit_s,
        )
        self.clock: Callable[[], float] = time.monotonic
        """Gives seconds: when limits of time have passed."""
        self._at_least = min(processes, n_here)
        self._run: Run | None = None
        self._closing = False
        self._woken = False
        self._error: ModelError | None = None
        self._events: list[Event] = []
        self._workers: dict[int, Worker] = {}
        self._by_fd: dict[int, Worker] = {}
        self._unannounced: list[Worker] = []
        self._last_number = 0
        self._costs: Counter[str] = Counter()
        self._failed_starts = 0
        self._alarms = Alarms(self._workers)
        self._watch = Watch(self.settings)

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
        self._machine_bytes = machine_memory_bytes()
        self._memory_bytes = self.settings.memory_bytes or self._machine_bytes
        self._oom_kills = OomKills(find_memory_group())
        self._dispatch = Dispatch(self.settings.cores, run.serial_labels, self._note_begin)
        self._epoll = select.epoll()
        self._wake_end, self._waker = socket.socketpair()
        for end in (self._wake_end, self._waker):
            end.setblocking(False)
        self._epoll.register(self._wake_end, select.EPOLLIN)
        warm_up(run.preload, implicit_threads=run.implicit_threads)
        self._fill()

    def capacity(self) -> Resources:
        """Free cores, and attempts that fill busy workers up to `PREFETCH_S`; memory not asked for."""
        total = self._memory_bytes
        free_bytes = None if total is None else max(0, total - self._dispatch.memory_bytes)
        return Resources(self._dispatch.capacity(), free_bytes)

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
        deadline = self.clock() + timeout_s
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
            left = deadline - self.clock()
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
        deadline = self.clock() + timeout_s
        while self._workers and (left := deadline - self.clock()) > 0:
            self._poll(left)

    def _poll(self, timeout_s: float) -> None:
        """Wait for news of workers, for a deadline, for the watch's next round, or for `wake`; once."""
        due_in_s = min(self._alarms.next_at(), self._watch.due_at) - self.clock()
        for fd, _ in self._epoll.poll(max(0.0, min(timeout_s, due_in_s))):
            if (worker := self._by_fd.get(fd)) is None:
                self._heed_wake(fd)
            elif fd == worker.process.fileno():
                self._heed_process(worker)
            else:
                self._heed_messages(worker)
        now = self.clock()
        for worker in self._alarms.due(now):
            self._heed_deadline(worker, now)
        if now >= self._watch.due_at:
            self._go_round(now)

    def _go_round(self, now: float) -> None:
        """End the workers that use too much, or have stopped answering."""
        self._oom_kills.note(now)
        workers = list(self._workers.values())
        for worker, sentence in self._watch.go_round(workers, now, self._heed_messages):
            worker.sentence = sentence
            self._kill(worker)
        self._events += self._watch.tell_begun(workers)

    def _heed_deadline(self, worker: Worker, now: float) -> None:
        """Do something about a worker whose time is up for what it is doing."""
        if worker.killed:
            self._bury(worker)
        elif isinstance(worker.sentence, OverTime) and not worker.asked:
            worker.asked = True
            worker.process.signal(STACKS_SIGNAL)
            self._alarms.set(worker, now + _LAST_WORDS_S)
        elif worker.doomed:
            self._kill(worker)
        elif not worker.ready:
            worker.sentence = Unresponsive(f"did not become ready within {self.settings.start_limit_s:g} s")
            self._kill(worker)
        elif worker.held and (limit_s := worker.held[0].timeout_s) is not None:
            worker.sentence = OverTime(worker.held[0], limit_s)
            self._end(worker, signal.SIGTERM)
            self._alarms.set(worker, now + self.settings.grace_s)

    def _heed_wake(self, fd: int) -> None:
        if fd == self._wake_end.fileno():
            self._woken = bool(self._wake_end.recv(4096))

    def _heed_messages(self, worker: Worker) -> None:
        while self._heed_next(worker):
            if not worker.held:
                break  # it has nothing more to tell: spares a system call
        if worker.process.channel.at_end:
            # A copy of its end is open here, so it is no death: it shut down its side, for good.
            self._epoll.unregister(worker.process.channel)
            self._end(worker, signal.SIGKILL)

    def _heed_next(self, worker: Worker) -> bool:
        """Take in the next message of a worker, if there is one; a worker that says nonsense is ended."""
        try:
            message = None if worker.talks_nonsense else worker.process.channel.try_receive()
            if message is None:
                return False
            self._heed(worker, message)
        except (ValueError, TypeError, LookupError, EOFError) as error:
            worker.talks_nonsense = True
            if worker.sentence is None:
                worker.sentence = Unresponsive(f"said what makes no sense ({type(error).__name__}: {error})")
            self._kill(worker)
        return True

    def _heed(self, worker: Worker, message: Message) -> None:
        if message[0] in _ENDED:
            self._heed_outcome(worker, decode_event(message), is_last=message[0] == ENDED_LAST)
        elif message[0] == RAISED:
            worker.doomed = True
            self._fail(worker, *message[1:])
        else:
            worker.ready = True
            self._alarms.set(worker, NEVER)
            self._dispatch.file(worker)
            self._fill()

    def _heed_outcome(self, worker: Worker, said: Said, *, is_last: bool) -> None:
        event, held = said.event, worker.held[0]
        if (said.event.index, said.event.attempt) != (held.index, held.number):
            raise ValueError(f"it has no attempt {said.event.attempt} at quantum {said.event.index}")
        attempt = self._dispatch.withdraw(worker)
        self._dispatch.durations.add(attempt.task_label, said.took_s)
        worker.took_any = True
        self._failed_starts = 0
        if worker.peak_bytes:
            event = with_peak(event, worker.peak_bytes)
            worker.peak_bytes = 0
        if not isinstance(event, AttemptLost):
            self._watch.heed_end(attempt, event.outcome)
        if worker.sentence is not None and isinstance(event, AttemptFailed):
            # SIGTERM had it raise, by a handler of its own or through its child: that is not the cause.
            self._events.append(epitaph(worker, attempt, Surroundings()))
            keep_papers(self._opened().logs, worker, attempt)
        else:
            self._events.append(event)
        if said.kept != worker.kept:
            worker.kept = said.kept
            worker.process.keep(said.kept)
        if is_last:
            worker.left = said.left
            worker.left_by = attempt.task_label if said.left else ""
            self._let_go(worker)

    def _let_go(self, worker: Worker) -> None:
        """Let a worker end that has said it will, for it was left unfit; others do what it was sent."""
        worker.doomed = True
        self._dispatch.file(worker)
        self._dispatch.requeue(self._take_all_back(worker))
        self._alarms.set(worker, self.clock() + self.settings.grace_s)

    def _take_all_back(self, worker: Worker) -> list[Attempt]:
        taken = []
        while worker.held and (attempt := self._dispatch.take_back(worker)) is not None:
            taken.append(attempt)
        return taken

    def _fail(self, worker: Worker, what: str, hint: str, trace: str) -> None:
        """Keep the error that `wait` will raise: what a bench raises, the next one would raise again."""
        if self._error is not None or self._closing:
            return
        kind: type[ModelError] = ModelError
        doing = f"worker {worker.number} cannot go on"
        if not worker.ready:
            kind, doing = WorkerStartError, f"worker {worker.number} cannot start"
        self._error = kind(f"{doing}: {what}", hint=hint)
        self._error.add_note(trace)

    def _heed_process(self, worker: Worker) -> None:
        process, known = worker.process, worker.process.pid is not None
        process.refresh()
        if not known and process.pid is not None and process.started_at is not None:
            pid, started_at = process.pid, process.started_at
            self._events.append(
                WorkerStarted(time.time(), worker.number, self._host, pid, started_at, KERNEL.birth(pid))
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
        name = f"{run.worker_prefix}worker-{number:04d}"
        rules = WorkRules(str(stack_file(run.logs, name)), self.settings.growth_bytes)
        process = start_process(
            work,
            (run.bench_opener, name, rules),
            name=name,
            output=run.output_of(name),
            preload=run.preload,
            implicit_threads=run.implicit_threads,
        )
        self._last_number = number
        worker = self._workers[number] = Worker(number, process, label)
        for end in (process, process.channel):
            self._epoll.register(end, select.EPOLLIN)
            self._by_fd[end.fileno()] = worker
        self._alarms.set(worker, self.clock() + self.settings.start_limit_s)
        return worker

    def _end(self, worker: Worker, number: signal.Signals) -> None:
        if worker.held and worker.process.pid is not None:
            worker.strays += find_strays(worker.process.pid)
        worker.doomed = True
        self._dispatch.file(worker)
        worker.process.signal(number)

    def _kill(self, worker: Worker) -> None:
        worker.killed = True
        self._end(worker, signal.SIGKILL)
        self._alarms.set(worker, self.clock() + _GONE_S)

    def _note_begin(self, worker: Worker) -> None:
        """Note since when an attempt runs, and until when it may."""
        worker.began_at = time.time()
        if worker.told is None:
            self._events.append(worker.tell_begin())
        if not worker.doomed:
            limit_s = worker.held[0].timeout_s
            self._alarms.set(worker, NEVER if limit_s is None else self.clock() + limit_s)

    def _bury(self, worker: Worker) -> None:
        """Say what became of all that a dead worker held, and replace it."""
        process = worker.process
        while self._heed_next(worker):
            pass
        # Not before: a quantum whose child is killed fails by that, and the cause would be hidden.
        kill(worker.strays)
        process.end_orphans()
        behind = self._take_all_back(worker)
        failed = None
        # One at most is left: a worker takes a message when it has sent the outcome of the one before.
        while worker.held:
            worker.took_any = True
            around = self._surroundings(worker)
            attempt = self._dispatch.withdraw(worker)
            event = epitaph(worker, attempt, around)
            self._events.append(event)
            if not isinstance(event, AttemptReturned):
                failed = attempt
        keep_papers(self._opened().logs, worker, failed)
        if process.pid is not None and process.ended:  # one that is only given up may still come back to life
            left, left_by = worker.left or None, worker.left_by or None
            self._events.append(WorkerEnded(time.time(), worker.number, process.exit_code, left_by, left))
            if worker.left:
                self._count_cost(worker)
        if not (worker.took_any or self._closing) and (worker.sentence is not None or not worker.doomed):
            self._count_failed_start(worker)
        self._remove(worker)
        self._dispatch.requeue(behind)
        self._fill()

    def _count_cost(self, worker: Worker) -> None:
        """Note that a quantum has cost a worker; a task that has cost many is isolated."""
        label = worker.left_by
        self._costs[label] += 1
        if self._costs[label] == 1:
            _logger.warning("%s leaves %s: a new worker takes the place of this one.", label, worker.left)
        if self._costs[label] == _MOST_COSTS:
            _logger.warning(
                "%s has cost %d workers: each of its quanta is executed in a process of its own from now on.",
                label,
                _MOST_COSTS,
            )
            self._dispatch.isolated.add(label)

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
        if worker.kept and self._closing:
            worker.process.end_kept(worker.kept)
        worker.process.close()

    def _surroundings(self, worker: Worker) -> Surroundings:
        """Return what is known of the machine just after a worker's death."""
        by_signal = worker.process.exit_code == -signal.SIGKILL and not worker.doomed
        return Surroundings(
            killed_by_kernel=by_signal and self._oom_kills.claim(self.clock()),
            memory_bytes=self._machine_bytes,
            all_used_bytes=sum(other.used_bytes or 0 for other in self._workers.values()),
        )

    def _count_failed_start(self, worker: Worker) -> None:
        self._failed_starts += 1
        if self._failed_starts < _MAX_FAILED_STARTS or self._error is not None:
            return
        output = self._opened().output_of(worker.name)
        self._error = WorkerStartError(
            f"{obituary(worker)} before it began any quantum, as {self._failed_starts - 1} others before it",
            hint="See what it printed." if output is None else f"See {output}. {last_line(output)}".rstrip(),
        )


def _allow_files(needed: int) -> None:
    """Raise the limit on open files as far as is needed and allowed; beyond, starting a worker says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
