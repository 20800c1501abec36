"""Programs of this interpreter as forks of the test's own process: there at once, without imports.

A new interpreter that imports the stack takes two seconds of a core, and a run starts two: itself and
the server of its workers. `Popen` and `run` take what those of `subprocess` take, and give what those
give: a real process with arguments, environment, folder, streams and signals of its own. Only what it has
imported is there already. What a test wants to know of a new interpreter itself (which modules a
command imports, how fast ``--help`` answers) is nothing for this module.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import gc
import importlib
import io
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from qgexec.processes import forked
from qgexec.rubin import JOB_PRELOAD, PRELOAD

_STACK = (
    "lsst.pipe.base.tests.mocks",
    "qgexec.api",
    "qgexec.batchjob",
    "qgexec.cli.build",
    "qgexec.cli.inspect",
    "qgexec.cli.main",
    "qgexec.cli.report",
    "qgexec.cli.resume",
    "qgexec.cli.run",
    "tests.kit.tasks.moodytask",
    *PRELOAD,
    *JOB_PRELOAD,
)
"""What programs import, the stack above all."""

_lifelines: set[int] = set()
"""Those of this process."""


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` of a command line ``[python, ["-P",] "-m" | "-c" | FILE, ...]``.

    Parameters
    ----------
    args
        The command line; a script that is not Python's, such as ``.venv/bin/pipetask``, counts as a file.
    lifeline
        A descriptor that it keeps, and all that it starts: when the last one is gone, its other end tells.
    closed
        Those of the descriptors 0 to 2 that it is started without, as cron may do.
    env, pass_fds, **options
        As there.
    """

    def __init__(
        self,
        args: Sequence[Any],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        lifeline: int | None = None,
        closed: Sequence[int] = (),
        **options: Any,
    ) -> None:
        _import_stack()
        words = [os.fspath(word) for word in args]
        program = words[1:] if _is_python(words[0]) else words
        lifelines = _lifelines if lifeline is None else {*_lifelines, lifeline}
        become = functools.partial(_become, program, env, lifelines, {*pass_fds}, {0, 1, 2} - {*closed})
        # Called in the child where another program would be executed: streams, folder and session are made.
        super().__init__(words, env=env, pass_fds=pass_fds, preexec_fn=become, **options)


def run(
    args: Sequence[Any],
    *,
    capture_output: bool = False,
    check: bool = False,
    input: str | bytes | None = None,  # noqa: A002 - its name there
    timeout: float | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Do as `subprocess.run` does."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(args, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def hold_on(lifeline: int) -> None:
    """Have all that this process starts keep a descriptor: when the last one is gone, its other end tells."""
    _lifelines.add(lifeline)


def start_servers_warm() -> None:
    """Have the server of the workers that this process starts be a fork of it, too."""
    forked.start_interpreter = Popen


@functools.cache
def _import_stack() -> None:
    """Import once what each program would import."""
    for module in _STACK:
        importlib.import_module(module)


def _is_python(word: str) -> bool:
    return Path(word).name.startswith("python")


def _become(
    words: Sequence[str],
    env: Mapping[str, str] | None,
    lifelines: set[int],
    given: set[int],
    standard: set[int],
) -> NoReturn:
    """Be a program: from a fork of the test's process, with its folder and these of descriptors 0 to 2."""
    status = 1
    try:
        gc.freeze()  # a collection would copy all pages of the test's process
        gc.enable()
        _leave_the_test(standard | lifelines | given)
        _lifelines.update(lifelines)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        start_servers_warm()
        status = _interpret(words)
    except BaseException:  # noqa: BLE001 - it must not come out in the copy of the test
        traceback.print_exc()
    finally:
        os._exit(status)


def _leave_the_test(keep: set[int]) -> None:
    """Let go of what is the test's: files, streams, handlers of signals and logs, exit handlers."""
    faulthandler.disable()
    for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    for descriptor in keep - {0, 1, 2}:
        os.set_inheritable(descriptor, False)
    sys.stdin, sys.stdout, sys.stderr = (_stream(descriptor) for descriptor in range(3))
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)  # as the interpreter does; `subprocess` restores them
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.set_wakeup_fd(-1)
    atexit._clear()
    atexit.register(forked.shut_down)
    logging.disable(logging.NOTSET)
    logging.captureWarnings(capture=False)
    known = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    for logger in (logging.root, *known):
        logger.handlers.clear()
        logger.setLevel(logging.WARNING if logger is logging.root else logging.NOTSET)
        logger.propagate = True
        logger.filters.clear()
    logging.lastResort = logging._StderrHandler(logging.WARNING)  # type: ignore[attr-defined]


def _stream(descriptor: int) -> io.TextIOWrapper | None:
    """Return a standard stream as the interpreter makes it; `None` where it was closed."""
    try:
        raw = open(descriptor, "rb" if descriptor == 0 else "wb", buffering=-1, closefd=False)  # noqa: SIM115
    except OSError:
        return None
    errors = "backslashreplace" if descriptor == 2 else "surrogateescape"
    lines = descriptor == 2 or raw.isatty()
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=lines)


def _interpret(words: Sequence[str]) -> int:
    """Do what the interpreter does with a command line; return its exit status."""
    status = 0
    try:
        _execute(words)
    except SystemExit as end:
        status = _status_of(end.code)
    except KeyboardInterrupt:
        traceback.print_exc()
        status = -signal.SIGINT
    except BaseException:  # noqa: BLE001 - printed as the interpreter does
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        status = 120
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status


def _execute(words: Sequence[str]) -> None:
    is_safe = words[0] == "-P"
    first, *arguments = words[is_safe:]
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    start = str(Path.cwd()) if first in {"-m", "-c"} else str(Path(first).resolve().parent)
    others = [path for path in sys.path if path not in {start, *added}]
    sys.path[:] = [*added, *others] if is_safe else [start, *added, *others]
    if first == "-m":
        name, *sys.argv[1:] = arguments
        sys.argv[0] = name
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *rest = arguments
        sys.argv[:] = ["-c", *rest]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(code, vars(main))
    else:
        sys.argv[:] = [first, *arguments]
        runpy.run_path(first, run_name="__main__")


def _status_of(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)  # noqa: T201 - as the interpreter does
    return 1
