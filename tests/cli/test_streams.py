"""What the command prints to: somebody who has seen enough, a disk without room, nothing at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.processes import warm

BUILD = ("build", "-t", "qgexec.demo.tasks.isr.IsrTask:isr", "--show", "config")


def _run(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return warm.run(
        [sys.executable, "-m", "qgexec", *arguments], check=False, text=True, stderr=subprocess.PIPE, **how
    )


@pytest.mark.parametrize("arguments", [BUILD, ("--help",), ("report", "--json-schema")])
def test_no_room(arguments: tuple[str, ...]) -> None:
    """It is said in one message that what was asked for was not printed."""
    with Path("/dev/full").open("w") as full:
        done = _run(*arguments, stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: What was asked for cannot be printed: No space left on device.")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("arguments", [BUILD, ("--help",), ("report", "--json-schema")])
def test_reader_has_seen_enough(arguments: tuple[str, ...]) -> None:
    """There is no complaint, and the exit code is not that of failed quanta."""
    command = warm.Popen(
        [sys.executable, "-m", "qgexec", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    command.stdout.close()
    command.stdout = None
    _, said = command.communicate()
    assert (command.returncode, said) == (0, "")


def test_stdout_is_closed() -> None:
    """What was asked for is done all the same."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m qgexec "$@" >&-', sys.executable, *BUILD],
        check=False,
        text=True,
        stderr=subprocess.PIPE,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_folder_is_gone(tmp_path: Path) -> None:
    """A current folder that was removed is named as what is wrong."""
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$0" -m qgexec report "$@"', sys.executable, "run"],
        check=False,
        text=True,
        cwd=gone,
        stderr=subprocess.PIPE,
    )
    assert done.returncode == 2
    assert done.stderr == "Error: The current folder does not exist any more.\nChange to another (cd).\n"


def test_terminal_obeys_no_argument() -> None:
    """Arguments are shown without what a terminal would obey."""
    done = _run("models", "\x1b]0;a\x07")
    assert done.returncode == 2
    assert "(?]0;a?)" in done.stderr


def test_signal_handlers_write_while_something_is_written() -> None:
    """What a Ctrl-C has to say comes in the middle of anything; nothing of either is lost."""
    program = (
        "import signal, sys\n"
        "from qgexec.cli.streams import be_patient\n"
        "be_patient()\n"
        "def handle(*_):\n"
        "    sys.stderr.write('handled\\n')\n"
        "signal.signal(signal.SIGPROF, handle)\n"
        "signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)\n"
        "for _ in range(100_000):\n"
        "    sys.stderr.write('written\\n')\n"
        "signal.setitimer(signal.ITIMER_PROF, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stderr.count("written\n") == 100_000
    assert done.stderr.count("handled\n") > 0
