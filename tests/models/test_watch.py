"""`qgexec.models.watch`: rounds over workers that exist on paper only, by a clock that is told."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from qgexec.models.poolsettings import PoolSettings
from qgexec.models.watch import OomKills, Watch
from qgexec.models.workers import OverMemory, Sentence, Unresponsive, Worker
from qgexec.processes.forked import Message, Process
from qgexec.processes.machine import MemoryGroup
from qgexec.quantum import Attempt, Outcome, OutcomeStatus
from tests.kit.runs.benches import attempts

PAGE = 4096
MIB = 1 << 20
PID = 77


@dataclass
class PaperProcess:
    """A process that has a number, and perhaps not read its messages."""

    pid: int | None = PID
    unread: Message | None = None
    name: str = "worker-0001"

    def next_unread(self) -> Message | None:
        return self.unread


@dataclass
class Site:
    """A watch, its clock, one worker, and what `/proc` shows of it."""

    proc: Path
    now: float = 1000.0
    process: PaperProcess = field(default_factory=PaperProcess)
    ended: bool = False

    def __post_init__(self) -> None:
        settings: dict[str, Any] = {"memory_bytes": None, "growth_bytes": 0, "start_limit_s": 1.0}
        self.watch = Watch(
            PoolSettings(1, cores=1, grace_s=0, watch_period_s=0.5, silence_limit_s=3.0, **settings),
            self.proc,
        )
        self.watch.due_at = self.now
        self.worker = Worker(1, cast("Process", self.process), None, announced=True, ready=True)
        self.show("S", MIB)

    def show(self, state: str, used_bytes: int) -> None:
        """Let `/proc` show this."""
        folder = self.proc / str(PID)
        folder.mkdir(exist_ok=True)
        fields = [state, *["0"] * 20, str(used_bytes // PAGE)]
        (folder / "stat").write_text(f"{PID} (python) {' '.join(fields)}\n")

    def run(self, attempt: Attempt) -> None:
        """Let the worker run this."""
        self.worker.held = deque([attempt])

    def go_round(self, seconds: float = 0.5) -> list[Sentence]:
        """Let time pass, and go round."""
        self.now += seconds
        return [sentence for _, sentence in self.watch.go_round([self.worker], self.now, self._settle)]

    def _settle(self, worker: Worker) -> None:
        if self.ended:
            worker.held.popleft()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def limited(limit_bytes: int | None = 10 * MIB) -> Attempt:
    return attempts("isr", memory_limit_bytes=limit_bytes)[0]


def test_short_quanta_are_not_looked_at(site: Site) -> None:
    """An attempt that was not there at the last round is left alone, whatever it uses."""
    site.show("S", 100 * MIB)
    for _ in range(5):
        site.run(limited())
        assert site.go_round() == []
        assert site.worker.used_bytes is None


def test_short_quanta_that_start_processes_are_looked_at(site: Site) -> None:
    """What they use together is noted from the first look on, and the next comes soon; none is judged."""
    child = site.proc / "78"
    child.mkdir()
    site.show("S", 20 * MIB)
    (child / "stat").write_text((site.proc / str(PID) / "stat").read_text())
    threads = site.proc / str(PID) / "task" / str(PID)
    threads.mkdir(parents=True)
    (threads / "children").write_text("78")
    site.run(limited())
    before = site.now
    assert site.go_round() == []
    assert site.worker.peak_bytes == 40 * MIB
    assert site.watch.due_at < before + 1.0


def test_over_the_limit(site: Site) -> None:
    """An attempt that uses more than it may is named, with both figures; exactly its limit it may use."""
    attempt = limited()
    site.run(attempt)
    site.go_round()
    site.show("S", 10 * MIB)
    assert site.go_round() == []
    site.show("S", 11 * MIB)
    assert site.go_round() == [OverMemory(attempt, 11 * MIB, 10 * MIB)]


def test_what_ended_before_it_was_noticed(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A quantum that used too much and has succeeded is warned of, once for its task."""
    for peak_bytes in (None, 10 * MIB, 11 * MIB, 12 * MIB):
        outcome = Outcome(0, 1, OutcomeStatus.SUCCEEDED, 0.0, 0.1, peak_rss_bytes=peak_bytes)
        site.watch.heed_end(limited(), outcome)
        site.watch.heed_end(limited(None), outcome)
    assert [record.getMessage() for record in caplog.records] == [
        "A quantum of isr used 12 MB of the 10 MB that it may use, and had ended before that was noticed."
    ]


def test_without_a_limit(site: Site) -> None:
    """Without a limit the peak is noted, and what was used last."""
    site.run(limited(None))
    site.go_round()
    site.show("S", 50 * MIB)
    assert site.go_round() == []
    site.show("S", 20 * MIB)
    assert site.go_round() == []
    assert (site.worker.peak_bytes, site.worker.used_bytes) == (50 * MIB, 20 * MIB)


def test_an_attempt_that_has_just_ended_is_not_blamed(site: Site) -> None:
    """If its outcome was under way when its worker was looked at, nothing was seen of it."""
    site.run(limited())
    site.go_round()
    site.show("S", 100 * MIB)
    site.ended = True
    assert site.go_round() == []
    assert site.worker.peak_bytes == 0


def test_stopped(site: Site) -> None:
    """A worker that is stopped at every round for as long as the patience lasts is given up."""
    site.run(limited(None))
    site.go_round()
    site.show("T", MIB)
    assert [site.go_round() for _ in range(6)] == [[]] * 6
    assert site.go_round() == [Unresponsive("was stopped by a signal for 3 s")]


def test_goes_on_in_between(site: Site) -> None:
    """A worker that goes on has all the patience again when it is next stopped."""
    site.run(limited(None))
    site.go_round()
    for state in "TTTTTSTTTTTT":
        site.show(state, MIB)
        assert site.go_round() == []


@pytest.mark.parametrize("state", ["t", "D", "R", "S"])
def test_other_states(site: Site, state: str) -> None:
    """A worker that a debugger holds, or that waits for a disk, is not stopped."""
    site.run(limited(None))
    site.show(state, MIB)
    assert [site.go_round() for _ in range(20)] == [[]] * 20


def test_message_not_taken(site: Site) -> None:
    """A worker that does not take the attempt it was sent is given up."""
    attempt = limited(None)
    site.run(attempt)
    site.process.unread = (attempt.index, 1)
    assert [site.go_round() for _ in range(6)] == [[]] * 6
    assert site.go_round() == [Unresponsive("did not take what it was sent for 3 s")]


def test_next_message_not_taken(site: Site) -> None:
    """While it runs one attempt, the next one may wait for as long as it likes."""
    site.run(limited(None))
    site.process.unread = (5, 1)
    assert [site.go_round() for _ in range(20)] == [[]] * 20


def test_the_driver_itself_was_held_up(site: Site) -> None:
    """After a long sleep of the whole machine nobody is blamed for the time that has passed."""
    site.run(limited(None))
    site.show("T", MIB)
    for _ in range(4):
        assert site.go_round() == []
    assert site.go_round(3600.0) == []
    assert [site.go_round() for _ in range(6)] == [[]] * 6
    assert site.go_round() != []


def test_doomed_and_idle(site: Site) -> None:
    """Who is to end, has nothing to do, or is not forked yet, is not looked at."""
    site.show("T", 100 * MIB)
    assert [site.go_round() for _ in range(20)] == [[]] * 20
    site.run(limited())
    site.worker.doomed = True
    assert [site.go_round() for _ in range(20)] == [[]] * 20
    site.worker.doomed, site.process.pid = False, None
    assert [site.go_round() for _ in range(20)] == [[]] * 20


def test_rounds_have_a_period(site: Site) -> None:
    """The next round is due a period later."""
    site.go_round()
    assert site.watch.due_at == site.now + 0.5


class Kernel:
    """A control group's file that counts kills."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "memory.events"
        self.count(3)
        self.kills = OomKills(MemoryGroup(folder, folder, 2))

    def count(self, n_kills: int) -> None:
        self._file.write_text(f"oom 9\noom_kill {n_kills}\n")


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_old_kills_are_not_ours(kernel: Kernel) -> None:
    """What was counted before is no worker's."""
    assert not kernel.kills.claim(1.0)


def test_each_kill_is_of_one_worker(kernel: Kernel) -> None:
    """Two kills explain two deaths, and no third."""
    kernel.count(5)
    assert [kernel.kills.claim(1.0) for _ in range(3)] == [True, True, False]


def test_a_kill_that_nobody_died_of_lapses(kernel: Kernel) -> None:
    """A child of a quantum that the kernel killed does not explain a worker's death long after."""
    kernel.count(4)
    kernel.kills.note(1.0)
    kernel.kills.note(20.0)
    assert not kernel.kills.claim(20.5)


def test_a_death_soon_after_its_kill(kernel: Kernel) -> None:
    """A large process takes its time to die; its kill was noted before."""
    kernel.count(4)
    kernel.kills.note(1.0)
    kernel.kills.note(6.0)
    assert kernel.kills.claim(6.5)


def test_no_control_group() -> None:
    """Where nobody counts, nobody is known to have been killed."""
    kills = OomKills(None)
    kills.note(1.0)
    assert not kills.claim(2.0)
