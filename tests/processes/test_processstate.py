"""`qgexec.processes.processstate` and its logging: what code changes in its process is put back."""

from __future__ import annotations

import gc
import locale
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qgexec.processes.processstate import ProcessState
from tests.kit.processes.forks import start_fork


def _gone_folder() -> None:
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    shutil.rmtree(folder)


def _folder() -> object:
    try:
        return Path.cwd()
    except FileNotFoundError:
        return "gone"


def _fill_environment() -> None:
    os.environ["LEFT"] = "1"
    os.environ.pop("HOME", None)
    os.environ["PATH"] = "/nowhere"


def _zone() -> None:
    os.environ["TZ"] = "Pacific/Auckland"
    time.tzset()


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.kill(os.getpid(), signal.SIGUSR1)  # it waits, and would end this process if it came in the end


def _close_standard_output() -> None:
    sys.stdout.close()


def _close_descriptor() -> None:
    os.close(1)


def _redirect() -> None:
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _new_logger() -> None:
    logger = logging.getLogger("left.behind")
    logger.setLevel(logging.ERROR)
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def _new_logger_state() -> object:
    logger = logging.getLogger("left.behind")
    return logger.level, list(logger.handlers), logger.propagate


def _root_handlers() -> None:
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("qgexec").disabled = True


def _logging_state() -> object:
    root, ours = logging.getLogger(), logging.getLogger("qgexec")
    return root.level, list(root.handlers), ours.level, ours.disabled, root.manager.disable


def _levels() -> None:
    logging.getLogger().setLevel(logging.CRITICAL)
    logging.getLogger("qgexec").setLevel(logging.DEBUG)
    logging.disable(logging.CRITICAL)


def _hook(*_: object) -> None:
    pass


def _hooks() -> None:
    sys.excepthook = sys.unraisablehook = threading.excepthook = _hook
    warnings.showwarning = _hook  # type: ignore[assignment]


def _hooks_there() -> object:
    return sys.excepthook, sys.unraisablehook, threading.excepthook, warnings.showwarning


KINDS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "working folder": (lambda: os.chdir("/"), _folder),
    "working folder that was removed": (_gone_folder, _folder),
    "environment": (_fill_environment, lambda: dict(os.environ)),
    "time zone": (_zone, lambda: (time.tzname, time.localtime(0).tm_hour, os.environ.get("TZ"))),
    "umask": (lambda: os.umask(0o777), lambda: os.umask(os.umask(0o022))),
    "signal handler": (
        lambda: [signal.signal(number, _hook) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)],
        lambda: [signal.getsignal(number) for number in range(1, 32)],
    ),
    "signal mask": (_block, lambda: (signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.sigpending())),
    "alarm": (lambda: signal.alarm(1000), lambda: signal.getitimer(signal.ITIMER_REAL)),
    "interval timer": (
        lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 1000.0, 10.0),
        lambda: signal.getitimer(signal.ITIMER_VIRTUAL),
    ),
    "resource limit": (
        lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])),
        lambda: resource.getrlimit(resource.RLIMIT_CORE),
    ),
    "warning filters": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "captured warnings": (lambda: logging.captureWarnings(True), lambda: warnings.showwarning),
    "hooks": (_hooks, _hooks_there),
    "numpy's errors": (lambda: np.seterr(all="raise"), np.geterr),
    "numpy's error call": (lambda: np.seterrcall(_hook), np.geterrcall),
    "levels of loggers": (_levels, _logging_state),
    "handlers of loggers": (_root_handlers, _logging_state),
    "a new logger": (_new_logger, _new_logger_state),
    "logging was shut down": (logging.shutdown, _logging_state),
    "search path": (lambda: sys.path.insert(0, "/nowhere"), lambda: list(sys.path)),
    "search path was replaced": (sys.path.clear, lambda: list(sys.path)),
    "standard output": (lambda: setattr(sys, "stdout", None), lambda: sys.stdout),
    "standard output was closed": (_close_standard_output, lambda: os.write(1, b"") == sys.stdout.write("")),
    "descriptor was closed": (_close_descriptor, lambda: os.fstat(1).st_ino),
    "descriptor was redirected": (_redirect, lambda: os.fstat(1).st_ino),
    "recursion limit": (lambda: sys.setrecursionlimit(500_000), sys.getrecursionlimit),
    "garbage collector": (gc.disable, gc.isenabled),
    "its thresholds": (lambda: gc.set_threshold(1, 1, 1), gc.get_threshold),
    "locale": (lambda: locale.setlocale(locale.LC_ALL, "C"), lambda: locale.setlocale(locale.LC_ALL)),
    "temporary folder": (lambda: setattr(tempfile, "tempdir", "/gone"), lambda: tempfile.tempdir),
}


@pytest.mark.parametrize("kind", KINDS)
def test_put_back(kind: str) -> None:
    """What has been changed is afterwards as it was before."""
    change, look = KINDS[kind]

    def act() -> int:
        file = os.open("/dev/zero", os.O_WRONLY)  # not what pytest has put there: that is a file of its own
        os.dup2(file, 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        if kind == "standard output was closed":
            sys.stdout = open(1, "w")  # noqa: SIM115
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        look()
        state = ProcessState()
        before = look()
        change()
        assert state.restore() == []
        assert look() == before
        return 0

    assert start_fork(act).finish() == 0


def test_an_alarm_of_the_callers_rings_when_it_would_have() -> None:
    """Time that passes meanwhile counts; an alarm that was there is there again."""

    def act() -> int:
        signal.setitimer(signal.ITIMER_REAL, 1000.0)
        state = ProcessState()
        signal.alarm(0)
        state.restore()
        left_s, _ = signal.getitimer(signal.ITIMER_REAL)
        return 0 if 900 < left_s <= 1000 else 1

    assert start_fork(act).finish() == 0


def test_a_limit_that_cannot_be_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said."""

    def act() -> int:
        state = ProcessState()
        os.setresuid(65534, 65534, 65534)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        assert state.restore() == ["a lowered resource limit"]
        return 0

    if os.getuid() or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("only root can give up being root")
    assert start_fork(act).finish() == 0


def test_what_a_module_sets_when_it_is_imported_stays(tmp_path: Path) -> None:
    """Its logger and its filter for some messages: it is not imported a second time."""
    (tmp_path / "lateguest.py").write_text(
        "import logging, warnings\n"
        "logging.getLogger('lateguest').setLevel(logging.ERROR)\n"
        "warnings.filterwarnings('ignore', message='of lateguest')\n"
    )

    def act() -> int:
        sys.path.insert(0, str(tmp_path))
        state = ProcessState()
        __import__("lateguest")
        warnings.simplefilter("error")
        state.restore()
        assert logging.getLogger("lateguest").level == logging.ERROR
        assert [each for each in warnings.filters if each[1] and each[1].pattern == "of lateguest"]
        assert not [each for each in warnings.filters if (each[0], each[2]) == ("error", Warning)]
        return 0

    assert start_fork(act).finish() == 0


def test_a_closed_log_file_is_written_again(tmp_path: Path) -> None:
    """`logging.shutdown` closes files for good; the next record is in the file all the same."""

    def act() -> int:
        logging.getLogger().addHandler(logging.FileHandler(tmp_path / "log"))
        state = ProcessState()
        logging.shutdown()
        state.restore()
        logging.getLogger().error("after all")
        return 0

    assert start_fork(act).finish() == 0
    assert "after all" in (tmp_path / "log").read_text()
