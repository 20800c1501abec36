"""`qgexec.processes.births`: which process is which, by what the kernel shows of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qgexec.events import Birth
from qgexec.processes.births import KERNEL, Kernel

_PID = 4711
_HERE = Birth("boot-1", "pid:[1] time:[2]", 500)
_STAT = "{pid} (a ) b) {state} 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 {ticks} 0 0\n"


class Machine:
    """What ``/proc`` shows, in a folder, and which numbers processes have."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.numbers = {_PID}
        self.refused: type[OSError] | None = None
        (proc / "sys/kernel/random").mkdir(parents=True)
        (proc / str(os.getpid()) / "ns").mkdir(parents=True)
        (proc / "self").symlink_to(str(os.getpid()))
        self.boot("boot-1")
        self.enter("pid:[1]")
        (proc / "self/ns/time").symlink_to("time:[2]")
        self.show(os.getpid(), ticks=400)
        self.show(_PID)

    def boot(self, boot_id: str) -> None:
        (self.proc / "sys/kernel/random/boot_id").write_text(f"{boot_id}\n")

    def enter(self, namespace: str) -> None:
        place = self.proc / "self/ns/pid"
        place.unlink(missing_ok=True)
        place.symlink_to(namespace)

    def show(self, pid: int, *, ticks: int = 500, state: str = "S", threads: int = 1) -> None:
        (self.proc / str(pid)).mkdir(exist_ok=True)
        text = _STAT.format(pid=pid, state=state, threads=threads, ticks=ticks)
        (self.proc / str(pid) / "stat").write_text(text)

    def hide(self) -> None:
        """As the mount option hidepid=2 does."""
        (self.proc / str(_PID) / "stat").unlink()

    def end(self) -> None:
        self.numbers.clear()
        self.hide()

    def signal(self, pid: int, number: int) -> None:
        assert number == 0
        if pid not in self.numbers:
            raise ProcessLookupError
        if self.refused is not None:
            raise self.refused


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "proc")


@pytest.fixture
def kernel(machine: Machine) -> Kernel:
    return Kernel(machine.proc, machine.signal)


def _renumbered(machine: Machine) -> None:
    (machine.proc / "self").unlink()
    (machine.proc / "self").symlink_to(str(_PID))
    machine.show(_PID)
    (machine.proc / str(os.getpid()) / "ns").rename(machine.proc / str(_PID) / "ns")


@pytest.mark.parametrize(
    ("happens", "lives"),
    [
        (lambda _: None, True),
        (lambda machine: machine.end(), False),
        (lambda machine: machine.show(_PID, ticks=501), False),
        (lambda machine: machine.show(_PID, ticks=499), False),
        (lambda machine: machine.show(_PID, state="Z"), False),
        (lambda machine: machine.show(_PID, state="Z", threads=2), True),
        (lambda machine: machine.show(_PID, state="T"), True),
        (lambda machine: setattr(machine, "refused", PermissionError), True),
        (lambda machine: machine.hide(), None),
        (lambda machine: machine.boot("boot-2"), None),
        (lambda machine: machine.enter("pid:[7]"), None),
        (lambda machine: (machine.enter("pid:[7]"), machine.end()), None),
        (lambda machine: (machine.boot("boot-2"), machine.end()), None),
        (lambda machine: (machine.proc / "sys/kernel/random/boot_id").unlink(), None),
        (_renumbered, None),
    ],
    ids=[
        "it is there",
        "gone",
        "its number was given again",
        "its number is an older one's",
        "dead, and nobody has waited for it",
        "its first thread has ended",
        "stopped",
        "another user's",
        "hidden",
        "another boot",
        "another namespace",
        "another namespace, and no such number here",
        "another boot, and no such number here",
        "no boot is known",
        "the namespace of /proc is another",
    ],
)
def test_what_can_be_known(
    machine: Machine, kernel: Kernel, happens: Callable[[Machine], object], lives: bool | None
) -> None:
    """Life and death are known of what is seen, and of nothing else."""
    assert kernel.birth(_PID) == _HERE
    happens(machine)
    assert kernel.lives(_PID, _HERE) is lives


def test_where_proc_is_of_another_namespace(machine: Machine, kernel: Kernel) -> None:
    """Its own entry is there by name; that no process has a number is proof there, too."""
    _renumbered(machine)
    assert kernel.birth(os.getpid()) == _HERE
    assert kernel.birth(_PID) is None
    machine.numbers.clear()
    assert kernel.lives(_PID, _HERE) is False


def test_numbers_that_none_can_have(kernel: Kernel) -> None:
    """A damaged number is nobody's."""
    assert Kernel().lives(2**40, KERNEL.birth(os.getpid()) or _HERE) is False


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-S", "-c", "import signal; print(flush=True); signal.pause()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_real_process(sleeper: subprocess.Popen[bytes]) -> None:
    """From its birth to its death, waited for or not."""
    birth = KERNEL.birth(sleeper.pid)
    assert birth is not None
    assert KERNEL.lives(sleeper.pid, birth) is True
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert KERNEL.lives(sleeper.pid, birth) is False
    sleeper.wait()
    assert KERNEL.lives(sleeper.pid, birth) is False
    assert KERNEL.birth(sleeper.pid) is None
