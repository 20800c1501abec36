"""`qgexec.models.pool`: real processes that really die."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from qgexec.errors import UsageError, WorkerStartError
from qgexec.events import (
    AttemptBegan,
    AttemptLost,
    AttemptReturned,
    AttemptSucceeded,
    AttemptTimedOut,
    Event,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.models.base import Run
from qgexec.models.pool import Pool
from qgexec.processes import forked
from qgexec.quantum import RunContext
from tests.kit.runs.benches import (
    Bench,
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


def lost(events: list[Event]) -> list[AttemptLost]:
    return [event for event in events if isinstance(event, AttemptLost)]


@pytest.mark.parametrize("processes_", [0, -1])
def test_no_processes(processes_: int) -> None:
    """A pool of no processes is refused when it is made."""
    with pytest.raises(UsageError, match="cannot run anything"):
        Pool(processes_)


def test_no_grace() -> None:
    """A negative grace period is refused."""
    with pytest.raises(UsageError, match="grace_s"):
        Pool(1, grace_s=-1)


def test_a_thousand_processes(tmp_path: Path) -> None:
    """A pool far larger than the work starts as many workers as there are quanta, or cores."""
    pool = Pool(1000)
    pool.open(make_run(tmp_path))
    assert pool.capacity().cores == 1000
    events = work_off(pool, attempts(*["isr"] * 5))
    pool.close(cancel=True)
    assert len(endings(events)) == 5
    n_cores = len(os.sched_getaffinity(0))
    assert sum(isinstance(event, WorkerStarted) for event in events) <= max(5, n_cores)


def test_it_tells_when_quanta_begin(ears: Ears, tmp_path: Path) -> None:
    """Of the first of each worker, and of what goes on for a while; not of what is short."""
    pool = Pool(1, watch_period_s=0.01)
    pool.open(make_run(tmp_path))
    first = work_off(pool, attempts("isr"))
    assert [event.index for event in first if isinstance(event, AttemptBegan)] == [0]
    *_, slow = attempts("isr", "isr", "hang")
    pool.start([slow])
    began = wait_for(pool, AttemptBegan)[-1]
    assert isinstance(began, AttemptBegan)
    assert (began.index, began.attempt, began.worker) == (slow.index, 1, 1)
    pool.close(cancel=True)


def test_parallel(ears: Ears, tmp_path: Path) -> None:
    """As many quanta run at once as there are processes, more than there are cores."""
    pool = Pool(4)
    pool.open(make_run(tmp_path))
    pool.start(attempts(*["hang"] * 4))
    wait_for(pool, WorkerStarted, 4)
    running = hear_while_waiting(pool, ears, 4)
    assert len({pid for _, pid in running}) == 4
    pool.close(cancel=True)
    for _, pid in running:
        wait_gone(pid)


@pytest.mark.parametrize(
    ("label", "words", "code"),
    [
        ("kill", "was killed by signal 9 (SIGKILL) while it ran the quantum", -9),
        ("exit", "exited with status 3 while it ran the quantum", 3),
        ("exit_zero", "exited with status 0 while it ran the quantum", 0),
        ("deaf", "exited with status 1 while it ran the quantum", 1),
    ],
)
def test_death_takes_one_quantum(label: str, words: str, code: int, tmp_path: Path) -> None:
    """A quantum that ends its process is lost, in plain words; all others succeed."""
    pool = Pool(2)
    pool.open(make_run(tmp_path))
    labels = ["isr"] * 40
    labels[20] = label
    events = work_off(pool, attempts(*labels))
    pool.close(cancel=True)
    ended = {event.index: event for event in endings(events)}
    assert len(ended) == 40
    (loss,) = lost(events)
    started = [event for event in events if isinstance(event, WorkerStarted) and event.worker == loss.worker]
    assert loss.index == 20
    assert loss.reason == f"worker {loss.worker} (pid {started[0].pid}) {words}"
    assert loss.exit_code == code
    assert all(isinstance(ended[i], AttemptSucceeded) for i in range(40) if i != 20)


def test_killed_while_running(ears: Ears, tmp_path: Path) -> None:
    """A worker that is killed from outside loses its quantum, keeps its log, and is replaced by another."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    pool.start(attempts("logging_hang", "isr"))
    ((_, pid),) = hear_while_waiting(pool, ears, 1)
    os.kill(pid, signal.SIGKILL)
    events = wait_for(pool, AttemptSucceeded)
    pool.close(cancel=True)
    assert [event.index for event in lost(events)] == [0]
    assert (tmp_path / "0.1.log").read_text() == "log of 0\n"
    assert not (tmp_path / "worker-0001.log").exists()
    ends = [event for event in events if isinstance(event, WorkerEnded)]
    starts = [event for event in events if isinstance(event, WorkerStarted)]
    assert [(event.worker, event.exit_code) for event in ends] == [(1, -9)]
    assert [event.worker for event in starts] == [2]


def test_killed_while_idle(tmp_path: Path) -> None:
    """An idle worker that is killed takes nothing with it."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    (event,) = endings(work_off(pool, attempts("isr")))
    assert isinstance(event, AttemptSucceeded)
    os.kill(event.outcome.pid, signal.SIGKILL)
    assert endings(wait_for(pool, WorkerEnded)) == []
    assert {type(event) for event in endings(work_off(pool, attempts("isr", "isr")))} == {AttemptSucceeded}
    pool.close(cancel=True)


def test_attempt_that_was_not_begun_is_not_lost(ears: Ears, tmp_path: Path) -> None:
    """What a dead worker had been sent and not begun runs elsewhere."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    work_off(pool, attempts(*["mostly_quick"] * 20))
    (tmp_path / "block").touch()
    pool.start(attempts(*["mostly_quick"] * 3))
    _, pid = ears.hear()
    os.kill(pid, signal.SIGKILL)
    events = wait_for(pool, AttemptSucceeded, 2)
    pool.close(cancel=True)
    assert [event.index for event in lost(events)] == [0]
    assert sorted(event.index for event in endings(events)) == [0, 1, 2]


def test_idle_worker_takes_over(ears: Ears, tmp_path: Path) -> None:
    """What was sent to a worker whose quantum takes longer than expected is run by one that is idle."""
    pool = Pool(2)
    pool.open(make_run(tmp_path))
    work_off(pool, attempts(*["mostly_quick"] * 50))
    (tmp_path / "block").touch()
    pool.start(attempts(*["mostly_quick"] * 8))
    index, _ = ears.hear()
    ended = endings(wait_for(pool, AttemptSucceeded, 7))
    assert sorted([index, *(event.index for event in ended)]) == list(range(8))
    assert [event.index for event in endings(pool.close(cancel=True))] == [index]


def test_long_quanta_do_not_queue(ears: Ears, tmp_path: Path) -> None:
    """No attempt is sent to a worker that runs a quantum of unknown or long duration."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    pool.start(attempts("hang"))
    hear_while_waiting(pool, ears, 1)
    assert pool.capacity().cores == 0
    pool.close(cancel=True)


def test_short_quanta_are_prefetched(tmp_path: Path) -> None:
    """While a worker runs a quantum that is known to be short it may be sent another."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    work_off(pool, attempts(*["isr"] * 20))
    pool.start(attempts("isr"))
    assert pool.capacity().cores >= 1
    pool.close(cancel=True)


def test_time_limit(ears: Ears, tmp_path: Path) -> None:
    """An attempt over its time limit is ended with all that it started; the others go on."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    pool.start([*attempts("breed", timeout_s=0.2), *attempts("isr", "isr")[1:]])
    ((_, pid, child),) = hear_while_waiting_for_any(pool, ears)
    events = wait_for(pool, AttemptSucceeded)
    wait_gone(pid)
    wait_gone(child)
    pool.close(cancel=True)
    assert not lost(events)


def hear_while_waiting_for_any(pool: Pool, ears: Ears) -> list[list[int]]:
    """Hear one line; what ends meanwhile is forgotten."""
    heard: list[list[int]] = []
    thread = threading.Thread(target=lambda: heard.append(ears.hear()))
    thread.start()
    wait_for(pool, AttemptTimedOut)
    thread.join()
    return heard


def test_time_limit_of_the_stubborn(ears: Ears, tmp_path: Path) -> None:
    """A quantum that ignores SIGTERM is killed after the grace period, and says so with its limit."""
    pool = Pool(1, grace_s=0.1)
    pool.open(make_run(tmp_path))
    pool.start(attempts("stubborn", timeout_s=0.1))
    events = wait_for(pool, WorkerEnded)
    pool.close(cancel=True)
    (event,) = endings(events)
    assert isinstance(event, AttemptTimedOut)
    assert (event.index, event.attempt, event.timeout_s) == (0, 1, 0.1)
    (end,) = [event for event in events if isinstance(event, WorkerEnded)]
    assert end.exit_code in (-signal.SIGKILL, -signal.SIGTERM)


def test_time_limit_counts_from_the_beginning(ears: Ears, tmp_path: Path) -> None:
    """Time spent waiting for a worker does not count."""
    pool = Pool(1)
    pool.clock = clock = SkippingClock()
    pool.open(make_run(tmp_path))
    first, second = attempts("gate", "isr")
    limited = attempts("isr", "isr", timeout_s=30.0)[1]
    pool.start([first, limited])
    hear_while_waiting(pool, ears, 1)
    clock.skip(1000.0)
    assert not endings(pool.wait(0.0))
    ears.open_gate()
    events = wait_for(pool, AttemptSucceeded, 2)
    assert sorted(event.index for event in endings(events)) == [0, second.index]
    pool.close(cancel=True)


def test_serial_label(ears: Ears, tmp_path: Path) -> None:
    """Quanta of a serial task run one after another, in one worker, beside the others."""
    pool = Pool(1)
    pool.open(make_run(tmp_path, serial_labels=frozenset({"pid"})))
    blocker = attempts("hang")
    pool.start(blocker)
    (_, busy) = hear_while_waiting(pool, ears, 1)[0]
    pool.start(attempts("isr", "pid", "pid", "pid")[1:])
    assert pool.capacity().cores == 0
    events = wait_for(pool, AttemptSucceeded, 3)
    pids = {ears.hear()[1] for _ in range(3)}
    assert len(pids) == 1
    assert busy not in pids
    assert [event.index for event in endings(events)] == [1, 2, 3]
    assert [type(event) for event in endings(pool.close(cancel=True))] == [AttemptReturned]


def test_wake(tmp_path: Path) -> None:
    """Another thread can end a wait; waking a pool that is not open does nothing."""
    pool = Pool(1)
    pool.wake()
    pool.open(make_run(tmp_path))
    wait_for(pool, WorkerStarted)
    threading.Thread(target=pool.wake).start()
    assert list(pool.wait(60.0)) == []
    pool.close(cancel=True)
    pool.wake()


def test_flood_of_output(tmp_path: Path) -> None:
    """100 MB on standard error block nothing, and are in the worker's file."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    (event,) = endings(work_off(pool, attempts("noise")))
    pool.close(cancel=True)
    assert isinstance(event, AttemptSucceeded)
    assert (tmp_path / "worker-0001.out").stat().st_size == 100 << 20


def test_workers_that_die_at_once(tmp_path: Path) -> None:
    """Workers that die before they begin anything are not started for ever."""
    pool = Pool(1)
    pool.open(make_run(tmp_path, "dies"))
    pool.start(attempts("isr"))
    with pytest.raises(WorkerStartError, match="exited with status 7 before it began any quantum") as caught:
        wait_for(pool, AttemptSucceeded)
    assert "last words" in caught.value.hint
    assert [type(event) for event in endings(pool.close(cancel=True))] == [AttemptReturned]
    assert not (tmp_path / "worker-0004.out").exists()


def test_preload_that_fails(tmp_path: Path) -> None:
    """A module that workers need and that does not import is named."""
    pool = Pool(1)
    pool.open(make_run(tmp_path, preload=("no_such_module_anywhere",)))
    with pytest.raises(WorkerStartError, match="cannot import no_such_module_anywhere"):
        wait_for(pool, AttemptSucceeded)
    pool.close(cancel=True)


def test_opener_that_cannot_be_pickled(tmp_path: Path) -> None:
    """An opener that cannot reach a worker is an error when the pool opens."""
    pool = Pool(1)
    run = Run(RunContext(str(tmp_path), "", "", ""), lambda name: Bench(tmp_path, name), tmp_path)
    with pytest.raises(WorkerStartError, match="cannot be pickled"):
        pool.open(run)
    assert list(pool.close(cancel=True)) == []


def test_server_killed(ears: Ears, tmp_path: Path) -> None:
    """When the server that forks workers is killed its workers go with it, and others come from a new one."""
    pool = Pool(1)
    pool.open(make_run(tmp_path))
    pool.start(attempts("hang", "isr"))
    ((_, pid),) = hear_while_waiting(pool, ears, 1)
    os.kill(forked.warm_up(), signal.SIGKILL)
    events = wait_for(pool, AttemptSucceeded)
    wait_gone(pid)
    pool.close(cancel=True)
    (loss,) = lost(events)
    assert loss.index == 0
    assert "the server that had forked it" in loss.reason
