"""Benches that do what a label says, and what tests of models need around them; no test sleeps or polls."""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import mmap
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptSkipped,
    AttemptSucceeded,
    AttemptTimedOut,
    Event,
)
from qgexec.models.base import ExecutionModel, Run
from qgexec.models.pool import Pool
from qgexec.quantum import (
    Attempt,
    ExceptionSummary,
    Outcome,
    OutcomeStatus,
    Resources,
    RunContext,
    SegmentRef,
)

PATIENCE_S = 60.0
"""After this a test has failed: no wait is without an end."""

Ended = (
    AttemptSucceeded
    | AttemptSkipped
    | AttemptFailed
    | AttemptLost
    | AttemptTimedOut
    | AttemptOutOfMemory
    | AttemptReturned
)

HOG_BYTES = 200 << 20
"""What a quantum takes whose label says that it takes much."""

_HOG = """
import mmap, sys
block = mmap.mmap(-1, int(sys.argv[1]))
for place in range(0, len(block), 4096):
    block[place] = 1
print(flush=True)
sys.stdin.read()
"""

_leaked: list[mmap.mmap] = []


def take(n_bytes: int) -> mmap.mmap:
    """Take memory, and touch each page of it; it is given back with the object."""
    block = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for place in range(0, n_bytes, mmap.PAGESIZE):
        block[place] = 1
    return block


@dataclass
class Bench:
    """Does what the label of an attempt says; everything else succeeds at once."""

    folder: Path
    name: str

    def execute(self, attempt: Attempt) -> Event:
        """Do it."""
        act = getattr(self, f"_{attempt.task_label}", None)
        if act is not None:
            act(attempt)
        status = OutcomeStatus.SUCCEEDED
        exception = None
        kind: type[AttemptSucceeded | AttemptFailed | AttemptSkipped] = AttemptSucceeded
        if attempt.task_label.startswith("fail"):
            kind, status = AttemptFailed, OutcomeStatus.FAILED
            exception = ExceptionSummary("builtins.ValueError", "as told", "benches.py:1 execute", 20)
        elif attempt.task_label == "skip":
            kind, status = AttemptSkipped, OutcomeStatus.SKIPPED
        now = time.time()
        outcome = Outcome(
            attempt.index,
            attempt.number,
            status,
            now - 1,
            now,
            cpu_s=0.25,
            peak_rss_bytes=1_000_000,
            host="here",
            pid=os.getpid(),
            caveats=3,
            exception=exception,
            detail=SegmentRef(f"{self.name}.jsonl", 12, 34),
        )
        return kind(now, outcome)

    def close(self) -> None:
        """Leave a trace."""
        (self.folder / f"{self.name}.closed").touch()

    def say(self, what: str) -> None:
        """Tell the test, which waits in `Ears.hear`."""
        with (self.folder / "ears").open("w") as ears:
            ears.write(f"{what}\n")

    def _hang(self, attempt: Attempt) -> None:
        self.say(f"{attempt.index} {os.getpid()}")
        time.sleep(1000)

    def _spin(self, attempt: Attempt) -> None:
        # One call into C that takes minutes; it lets other threads run, and no Python signal handler.
        block = bytes(1 << 20)
        self.say(f"{attempt.index} {os.getpid()}")
        hashlib.pbkdf2_hmac("sha256", block, block, 1 << 30)

    def _breed(self, attempt: Attempt) -> None:
        child = subprocess.Popen(["sleep", "1000"])
        self.say(f"{attempt.index} {os.getpid()} {child.pid}")
        child.wait()

    def _breed_and_hog(self, attempt: Attempt) -> None:
        child = subprocess.Popen(["sleep", "1000"])
        self.say(f"{attempt.index} {os.getpid()} {child.pid}")
        block = take(HOG_BYTES)
        child.wait()
        block.close()

    def _breed_away(self, attempt: Attempt) -> None:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        self.say(f"{attempt.index} {os.getpid()} {child.pid}")
        child.wait()

    def _stubborn(self, attempt: Attempt) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.say(f"{attempt.index} {os.getpid()}")
        time.sleep(1000)

    def _fail_on_term(self, attempt: Attempt) -> None:
        def interrupt(*_: object) -> None:
            raise InterruptedError

        signal.signal(signal.SIGTERM, interrupt)
        with contextlib.suppress(InterruptedError):
            self._hang(attempt)

    def _gate(self, attempt: Attempt) -> None:
        self.say(f"{attempt.index} {os.getpid()}")
        self._wait_at_gate()

    def _wait_at_gate(self) -> None:
        with (self.folder / "gate").open() as gate:
            gate.read(1)

    def _logging_hang(self, attempt: Attempt) -> None:
        (self.folder / f"{self.name}.log").write_text(f"log of {attempt.index}\n")
        self._hang(attempt)

    def _mostly_quick(self, attempt: Attempt) -> None:
        # The file is there for one attempt.
        try:
            (self.folder / "block").unlink()
        except FileNotFoundError:
            return
        self._hang(attempt)

    def _kill(self, attempt: Attempt) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _exit(self, attempt: Attempt) -> None:
        os._exit(3)

    def _exit_zero(self, attempt: Attempt) -> None:
        os._exit(0)

    def _raise(self, attempt: Attempt) -> None:
        raise RuntimeError("out of the bench")

    def _noise(self, attempt: Attempt) -> None:
        for _ in range(100):
            os.write(2, bytes(1 << 20))

    def _deaf(self, attempt: Attempt) -> None:
        os.closerange(3, 1000)

    def _hog(self, attempt: Attempt) -> None:
        block = take(HOG_BYTES)
        self._hang(attempt)
        block.close()

    def _hog_child(self, attempt: Attempt) -> None:
        command = [sys.executable, "-S", "-c", _HOG, str(HOG_BYTES)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            self.say(f"{attempt.index} {os.getpid()} {child.pid}")
            self._wait_at_gate()
            child.kill()

    def _eat_all(self, attempt: Attempt) -> None:
        self._blocks = [take(16 << 20) for _ in range(128)]

    def _leak(self, attempt: Attempt) -> None:
        _leaked.append(take(HOG_BYTES))

    def _two_threads(self, attempt: Attempt) -> None:
        def wait_beside() -> None:
            time.sleep(1000)

        threading.Thread(target=wait_beside, daemon=True).start()
        self._breed(attempt)

    def _catch_all(self, attempt: Attempt) -> None:
        self.say(f"{attempt.index} {os.getpid()}")
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(1000)

    def _segfault(self, attempt: Attempt) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def _poll(self, attempt: Attempt) -> None:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True, name="poller").start()

    def _daemon(self, attempt: Attempt) -> None:
        # As daemons do: a session of its own, and a parent that has gone.
        read_end, write_end = os.pipe()
        if not (pid := os.fork()):
            os.setsid()
            if not (daemon := os.fork()):
                os.close(write_end)
                os.execvp("sleep", ["sleep", "1000"])
            os.write(write_end, str(daemon).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        self.say(f"{attempt.index} {os.getpid()} {int(os.read(read_end, 20))}")
        os.close(read_end)
        os.close(write_end)

    def _come_back(self, attempt: Attempt) -> None:
        if pid := os.fork():
            os.waitpid(pid, 0)

    def _sys_exit(self, attempt: Attempt) -> None:
        if pid := os.fork():
            os.waitpid(pid, 0)
        else:
            sys.exit(0)

    def _pid(self, attempt: Attempt) -> None:
        self.say(f"{attempt.index} {os.getpid()}")


class Babbler(Bench):
    """Puts what is no message, or none of its own, into its channel to the driver."""

    def execute(self, attempt: Attempt) -> Event:
        """Do so, where the label says it."""
        if attempt.task_label.startswith("babble"):
            sockets = [
                number
                for number in map(int, os.listdir("/proc/self/fd"))  # noqa: PTH208
                if number > 2
                and os.path.exists(f"/proc/self/fd/{number}")  # noqa: PTH110
                and stat.S_ISSOCK(os.fstat(number).st_mode)
            ]
            messages = {
                "babble": b"\x00garbage",
                "babble_number": marshal.dumps(7),
                "babble_end": marshal.dumps(("ended", 1.0)),
            }
            for number in sockets:
                os.write(number, messages[attempt.task_label])
        return super().execute(attempt)


class Liar(Bench):
    """Says nothing of an attempt."""

    def execute(self, attempt: Attempt) -> Event:
        """Return what is no event."""
        return None  # type: ignore[return-value]


@dataclass(frozen=True)
class Opener:
    """Opens a `Bench`."""

    folder: Path
    problem: str = ""

    def __call__(self, name: str) -> Bench:
        """Open it, or have the problem."""
        match self.problem:
            case "raises":
                raise RuntimeError("no such repository")
            case "dies":
                os.write(2, b"last words\n")
                os._exit(7)
            case "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "babbles":
                return Babbler(self.folder, name)
            case "lies":
                return Liar(self.folder, name)
        return Bench(self.folder, name)


@dataclass
class Ears:
    """Hears what benches say, in whatever process."""

    folder: Path
    _heard: bytes = b""
    _fd: int = field(init=False)

    def __post_init__(self) -> None:
        os.mkfifo(self.folder / "ears")
        os.mkfifo(self.folder / "gate")
        self._fd = os.open(self.folder / "ears", os.O_RDWR)

    def hear(self) -> list[int]:
        """Return the numbers of the next line; wait for it."""
        while b"\n" not in self._heard:
            assert select.select([self._fd], [], [], PATIENCE_S)[0], "nothing was said"
            self._heard += os.read(self._fd, 4096)
        line, _, self._heard = self._heard.partition(b"\n")
        return [int(word) for word in line.split()]

    def open_gate(self) -> None:
        """Let one quantum through the gate."""
        with (self.folder / "gate").open("w") as gate:
            gate.write("x")

    def close(self) -> None:
        """Stop listening."""
        os.close(self._fd)


@dataclass
class SkippingClock:
    """The monotonic clock, and what a test has skipped."""

    skipped_s: float = 0.0

    def __call__(self) -> float:
        """Return what it shows, seconds."""
        return time.monotonic() + self.skipped_s

    def skip(self, seconds: float) -> None:
        """Have time passed."""
        self.skipped_s += seconds


def make_run(folder: Path, problem: str = "", **options: object) -> Run:
    """Return a run whose benches are those here."""
    context = RunContext(run_dir=str(folder), repository="", graph_file="", output_run="")
    return Run(context=context, bench_opener=Opener(folder, problem), logs=folder, **options)  # type: ignore[arg-type]


def attempts(
    *labels: str,
    timeout_s: float | None = None,
    cores: int = 1,
    memory_bytes: int | None = None,
    memory_limit_bytes: int | None = None,
) -> list[Attempt]:
    """Return one attempt for each label; indices count from 0."""
    request = Resources(cores, memory_bytes)
    return [
        Attempt(i, 1, uuid.UUID(int=i), label, request, timeout_s, memory_limit_bytes)
        for i, label in enumerate(labels)
    ]


def wait_for(model: ExecutionModel, kind: type[Event], n: int = 1) -> list[Event]:
    """Wait until so many events of a kind have come; return all events."""
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE_S
    while sum(isinstance(event, kind) for event in events) < n:
        assert time.monotonic() < deadline, events
        events.extend(model.wait(1.0))
    return events


def work_off(model: ExecutionModel, todo: Sequence[Attempt]) -> list[Event]:
    """Start attempts as there is capacity for them, until all have ended; return all events."""
    events: list[Event] = []
    left, n_running = list(todo), 0
    deadline = time.monotonic() + PATIENCE_S
    while left or n_running:
        assert time.monotonic() < deadline, events
        room = model.capacity().cores
        batch, left = left[:room], left[room:]
        if batch:
            model.start(batch)
        news = model.wait(1.0)
        n_running += len(batch) - sum(isinstance(event, Ended) for event in news)
        events.extend(news)
    return events


def endings(events: Sequence[Event]) -> list[Ended]:
    """Return the events that end attempts."""
    return [event for event in events if isinstance(event, Ended)]


def wait_gone(pid: int) -> None:
    """Wait until a process is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], PATIENCE_S)[0], f"process {pid} lives on"
    finally:
        os.close(fd)


def hear_while_waiting(model: Pool, ears: Ears, n: int = 1) -> list[list[int]]:
    """Hear ``n`` lines while a pool does its work."""
    heard: list[list[int]] = []

    def listen() -> None:
        for _ in range(n):
            heard.append(ears.hear())  # noqa: PERF401 - what was heard before a failure tells why
        model.wake()

    thread = threading.Thread(target=listen)
    thread.start()
    while len(heard) < n:
        assert not endings(list(model.wait(PATIENCE_S)))
    thread.join()
    return heard
