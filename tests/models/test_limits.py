"""`qgexec.models.pool`: real workers that use too much, run too long, stop, or grow."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from qgexec.errors import UsageError, WorkerStartError
from qgexec.events import (
    AttemptLost,
    AttemptOutOfMemory,
    AttemptSucceeded,
    AttemptTimedOut,
    Event,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.models.pool import Pool
from qgexec.processes.forked import Process
from qgexec.processes.machine import MemoryGroup, find_memory_group, machine_memory_bytes
from tests.kit.checkout import PYTHONPATH
from tests.kit.runs.benches import (
    HOG_BYTES,
    PATIENCE_S,
    Ears,
    SkippingClock,
    attempts,
    endings,
    hear_while_waiting,
    make_run,
    wait_for,
    wait_gone,
    work_off,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

LIMIT = HOG_BYTES // 2
OFTEN_S = 0.02
TIME_LIMIT_S = 1000.0


@pytest.mark.parametrize(
    "settings",
    [{"memory_bytes": 0}, {"growth_bytes": -1}, {"watch_period_s": 0.0}, {"start_limit_s": -1.0}],
)
def test_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    """An amount or a time that cannot be is refused by its name when the pool is made."""
    with pytest.raises(UsageError, match=next(iter(settings))):
        Pool(1, **settings)  # type: ignore[arg-type]


def test_capacity_in_memory(ears: Ears, tmp_path: Path) -> None:
    """What attempts asked for is not free until they end: also that of serial ones and of those that wait."""
    pool = Pool(1, memory_bytes=1000)
    pool.open(make_run(tmp_path, serial_labels=frozenset({"pid"})))
    assert pool.capacity().memory_bytes == 1000
    gate, isr, serial = attempts("gate", "isr", "pid", memory_bytes=300)
    pool.start([gate])
    assert pool.capacity().memory_bytes == 700
    hear_while_waiting(pool, ears)
    pool.start([isr, serial])
    assert pool.capacity().memory_bytes == 100
    wait_for(pool, AttemptSucceeded)  # the serial one
    ears.open_gate()
    wait_for(pool, AttemptSucceeded, 2)
    assert pool.capacity().memory_bytes == 1000
    pool.close(cancel=True)


def test_capacity_is_the_machines(tmp_path: Path) -> None:
    """Unless told otherwise a pool has the memory of the machine, or of its control group."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    assert pool.capacity().memory_bytes == machine_memory_bytes()
    pool.close(cancel=True)


@pytest.mark.parametrize("label", ["hog", "hog_child"])
def test_over_the_memory_limit(label: str, ears: Ears, tmp_path: Path) -> None:
    """A quantum over its limit, by itself or by its child, is ended and says what it used; others go on."""
    pool = Pool(1, watch_period_s=OFTEN_S)
    pool.open(make_run(tmp_path))
    todo = [*attempts(label, memory_limit_bytes=LIMIT), *attempts("isr", "isr")[1:]]
    events = work_off(pool, todo)
    pool.close(cancel=True)
    out, done = endings(events)
    assert isinstance(out, AttemptOutOfMemory)
    assert (out.index, out.attempt, out.limit_bytes, out.by_kernel) == (0, 1, LIMIT, False)
    assert out.used_bytes is not None
    assert out.used_bytes > LIMIT
    assert isinstance(done, AttemptSucceeded)
    ends = [event for event in events if isinstance(event, WorkerEnded)]
    assert [(event.worker, event.exit_code) for event in ends] == [(out.worker, -signal.SIGKILL)]


def test_children_of_what_is_ended(ears: Ears, tmp_path: Path) -> None:
    """What a quantum over its limit had started is ended with it."""
    pool = Pool(1, watch_period_s=OFTEN_S)
    pool.open(make_run(tmp_path))
    pool.start(attempts("breed_and_hog", memory_limit_bytes=LIMIT))
    wait_for(pool, AttemptOutOfMemory)
    _, pid, child = ears.hear()
    wait_gone(pid)
    wait_gone(child)
    pool.close(cancel=True)


def test_peak_of_the_whole_tree(ears: Ears, tmp_path: Path) -> None:
    """The peak of a long quantum is that of it and its children; a short one after it has its own."""
    pool = Pool(1, watch_period_s=OFTEN_S)
    pool.clock = clock = SkippingClock()
    pool.open(make_run(tmp_path))
    pool.start(attempts("hog_child"))
    hear_while_waiting(pool, ears)
    for _ in range(20):  # the pool looks several times, also where a look takes long
        clock.skip(4.0)
        assert not endings(pool.wait(0.0))
    ears.open_gate()
    (big,) = endings(wait_for(pool, AttemptSucceeded))
    (small,) = endings(work_off(pool, attempts("isr")))
    pool.close(cancel=True)
    assert isinstance(big, AttemptSucceeded)
    assert isinstance(small, AttemptSucceeded)
    assert HOG_BYTES < (big.outcome.peak_rss_bytes or 0) < 3 * HOG_BYTES
    assert small.outcome.peak_rss_bytes == 1_000_000  # as its bench says


def test_time_limit_keeps_the_stacks(ears: Ears, tmp_path: Path) -> None:
    """A quantum over its time limit is ended with its child, and the stacks of all its threads are kept."""
    pool = Pool(1)
    pool.clock = clock = SkippingClock()
    pool.open(make_run(tmp_path))
    pool.start(attempts("two_threads", timeout_s=TIME_LIMIT_S))
    ((_, pid, child),) = hear_while_waiting(pool, ears)
    clock.skip(TIME_LIMIT_S)
    (event,) = endings(wait_for(pool, AttemptTimedOut))
    assert isinstance(event, AttemptTimedOut)
    wait_gone(pid)
    wait_gone(child)
    pool.close(cancel=True)
    text = (tmp_path / "0.1.stack").read_text()
    assert text.count("most recent call first") == 2
    assert "in _breed" in text
    assert "in wait_beside" in text
    assert list(tmp_path.glob("worker-*.stack")) == []


@pytest.mark.parametrize("by", ["time", "close"])
def test_child_in_a_session_of_its_own(by: str, ears: Ears, tmp_path: Path) -> None:
    """What a quantum has started is ended with it even where it has left its process group."""
    pool = Pool(1)
    pool.clock = clock = SkippingClock()
    pool.open(make_run(tmp_path))
    pool.start(attempts("breed_away", timeout_s=TIME_LIMIT_S))
    ((_, _, child),) = hear_while_waiting(pool, ears)
    if by == "time":
        clock.skip(TIME_LIMIT_S)
        wait_for(pool, AttemptTimedOut)
    pool.close(cancel=True)
    wait_gone(child)


def test_failing_for_the_signal_is_timing_out(ears: Ears, tmp_path: Path) -> None:
    """A quantum that fails because it is told to end has run over its time, whatever it says itself."""
    pool = Pool(1, grace_s=0.5)
    pool.clock = clock = SkippingClock()
    pool.open(make_run(tmp_path))
    pool.start([*attempts("fail_on_term", timeout_s=TIME_LIMIT_S), *attempts("isr", "isr")[1:]])
    hear_while_waiting(pool, ears)
    clock.skip(TIME_LIMIT_S)
    events = wait_for(pool, AttemptSucceeded)
    pool.close(cancel=True)
    assert [type(event) for event in endings(events)] == [AttemptTimedOut, AttemptSucceeded]


def test_stacks_of_the_stubborn(ears: Ears, tmp_path: Path) -> None:
    """A quantum that ignores SIGTERM leaves its stack, too, before it is killed."""
    pool = Pool(1, grace_s=0.0)
    pool.clock = clock = SkippingClock()
    pool.open(make_run(tmp_path))
    pool.start(attempts("stubborn", timeout_s=TIME_LIMIT_S))
    hear_while_waiting(pool, ears)
    clock.skip(TIME_LIMIT_S)
    events = wait_for(pool, WorkerEnded)
    pool.close(cancel=True)
    assert [event.exit_code for event in events if isinstance(event, WorkerEnded)] == [-signal.SIGKILL]
    assert [type(event) for event in endings(events)] == [AttemptTimedOut]
    assert "in _stubborn" in (tmp_path / "0.1.stack").read_text()


def test_crash_keeps_the_stack(tmp_path: Path) -> None:
    """A quantum that crashes its process leaves the stack of that moment; nothing is left of the others."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    (_, event) = endings(work_off(pool, attempts("isr", "segfault")))
    pool.close(cancel=True)
    assert isinstance(event, AttemptLost)
    assert event.exit_code == -signal.SIGSEGV
    text = (tmp_path / "1.1.stack").read_text()
    assert "Segmentation fault" in text
    assert "in _segfault" in text
    assert [path.name for path in tmp_path.glob("*.stack")] == ["1.1.stack"]


def test_cancelled_quanta_leave_no_stacks(ears: Ears, tmp_path: Path) -> None:
    """What is ended with the run was no quantum's fault."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    pool.start(attempts("hang"))
    hear_while_waiting(pool, ears)
    pool.close(cancel=True)
    assert list(tmp_path.glob("*.stack")) == []


def test_stopped_worker(ears: Ears, tmp_path: Path) -> None:
    """A worker that a signal has stopped in the middle of a quantum is ended, and the quantum is lost."""
    pool = Pool(1, watch_period_s=OFTEN_S, silence_limit_s=1.0)
    pool.open(make_run(tmp_path))
    pool.start(attempts("hang"))
    ((_, pid),) = hear_while_waiting(pool, ears)
    os.kill(pid, signal.SIGSTOP)
    (event,) = endings(wait_for(pool, AttemptLost))
    wait_gone(pid)
    pool.close(cancel=True)
    assert isinstance(event, AttemptLost)
    assert f"worker 1 (pid {pid}) was stopped by a signal for 1 s while it ran the quantum" in event.reason


def _stop(pid: int) -> None:
    """Stop a process; until it has stopped it might still take a message."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline


def test_stopped_while_idle(tmp_path: Path) -> None:
    """What a stopped worker was sent and never began is done by another; nothing is lost."""
    pool = Pool(1, watch_period_s=OFTEN_S, silence_limit_s=1.0)
    pool.open(make_run(tmp_path))
    (event,) = endings(work_off(pool, attempts("isr")))
    assert isinstance(event, AttemptSucceeded)
    _stop(event.outcome.pid)
    events = work_off(pool, attempts("isr", "isr", "isr"))
    pool.close(cancel=True)
    assert {type(event) for event in endings(events)} == {AttemptSucceeded}
    wait_gone(event.outcome.pid)
    ends = [event for event in events if isinstance(event, WorkerEnded)]
    assert [(event.worker, event.exit_code) for event in ends] == [(1, -signal.SIGKILL)]


def test_workers_that_never_become_ready(tmp_path: Path) -> None:
    """Workers that stop while they start are given up, and not started for ever."""
    pool = Pool(1, start_limit_s=0.2)
    pool.open(make_run(tmp_path, "stops"))
    pool.start(attempts("isr"))
    with pytest.raises(WorkerStartError, match=r"did not become ready within 0\.2 s"):
        wait_for(pool, AttemptSucceeded)
    pool.close(cancel=True)


def test_worker_that_cannot_be_killed(ears: Ears, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that outlives SIGKILL for long, as on a disk that hangs, is given up, not called ended."""
    pool = Pool(1)
    pool.clock = clock = SkippingClock()
    pool.open(make_run(tmp_path))
    pool.start([*attempts("hang", timeout_s=TIME_LIMIT_S), *attempts("isr", "isr")[1:]])
    ((_, pid),) = hear_while_waiting(pool, ears)
    clock.skip(TIME_LIMIT_S)
    events: list[Event] = []
    with monkeypatch.context() as patch:
        patch.setattr(Process, "signal", lambda process, number: None)
        while not endings(events):
            events.extend(pool.wait(0.0))
            clock.skip(100.0)
    events += wait_for(pool, AttemptSucceeded)
    pool.close(cancel=True)
    wait_gone(pid)
    assert [type(event) for event in endings(events)] == [AttemptTimedOut, AttemptSucceeded]
    assert not [event for event in events if isinstance(event, WorkerEnded) and event.worker == 1]


def test_leaking_worker_is_replaced(tmp_path: Path) -> None:
    """A worker that has grown too much ends between two quanta; another does what it had been sent."""
    pool = Pool(1, growth_bytes=HOG_BYTES // 2)
    pool.open(make_run(tmp_path))
    events = work_off(pool, attempts(*["isr"] * 20, "leak", *["isr"] * 20))
    pool.close(cancel=True)
    assert [type(event) for event in endings(events)] == [AttemptSucceeded] * 41
    ends = [event for event in events if isinstance(event, WorkerEnded)]
    assert [(event.worker, event.exit_code) for event in ends] == [(1, 0)]
    assert (tmp_path / "worker-0001.closed").exists()


def test_worker_that_does_not_grow_is_kept(tmp_path: Path) -> None:
    """What a quantum gives back is no growth."""
    pool = Pool(1, growth_bytes=2 * HOG_BYTES)
    pool.open(make_run(tmp_path))
    events = work_off(pool, attempts("leak", "isr", "isr"))
    pool.close(cancel=True)
    assert sum(isinstance(event, WorkerStarted) for event in events) == 1


CROWDED = """
import os, sys
from pathlib import Path
group, folder = Path(sys.argv[1]), Path(sys.argv[2])
(group / "cgroup.procs").write_text(str(os.getpid()))
from tests.kit.runs.benches import attempts, endings, make_run, work_off
from qgexec.models.pool import Pool
pool = Pool(1)
pool.open(make_run(folder))
print(pool.capacity().memory_bytes)
for event in endings(work_off(pool, attempts("isr", "eat_all", "isr"))):
    by_kernel, limit_bytes = (getattr(event, name, None) for name in ("by_kernel", "limit_bytes"))
    print(type(event).__name__, event.index, by_kernel, limit_bytes)
pool.close(cancel=True)
"""


@contextlib.contextmanager
def control_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """Make a control group within ours, and take it away; skip where this machine does not let us."""
    ours = find_memory_group()
    if ours is None:
        pytest.skip("this process is in no control group that counts memory")
    group = MemoryGroup(ours.folder / f"qgexec-test-{uuid.uuid4().hex}", ours.top, ours.version)
    name = "memory.max" if group.version == 2 else "memory.limit_in_bytes"
    try:
        group.folder.mkdir()
    except OSError as err:
        pytest.skip(f"no control group can be made here: {err}")
    try:
        try:
            (group.folder / name).write_text(str(limit_bytes))
        except OSError as err:
            pytest.skip(f"a control group that was made here cannot be given a limit: {err}")
        yield group
    finally:
        group.folder.rmdir()


def test_killed_by_the_kernel(tmp_path: Path) -> None:
    """A worker that the kernel kills for memory is known by the group's count; the driver lives on."""
    limit_bytes = 400 << 20
    with control_group(limit_bytes) as group:
        done = subprocess.run(
            [sys.executable, "-c", CROWDED, str(group.folder), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(limit_bytes),
        "AttemptSucceeded 0 None None",
        f"AttemptOutOfMemory 1 True {limit_bytes}",
        "AttemptSucceeded 2 None None",
    ]
