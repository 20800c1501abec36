"""Runs one command and says what it cost: wall, CPU of every process it left behind it, memory of its driver.

Measuring is a process of its own (``python -m benchmarks.measure``): it makes
itself the reaper of orphans (``PR_SET_CHILD_SUBREAPER``), so that the CPU time of
workers whose parent ended before them is counted too, and ends what is left.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["BenchmarkError", "Measurement", "ProcessUse", "run_measured"]

_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_S = 0.1
_GRACE_S = 10.0
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ROOT = Path(__file__).resolve().parent.parent


class BenchmarkError(Exception):
    """A run that was to be measured failed, so there is no figure."""


@dataclass(slots=True)
class ProcessUse:
    """What one process below the driver used, as seen every tenth of a second."""

    pid: int
    first_s: float
    """When it was first seen, seconds after the start."""
    last_s: float
    """When it was last seen."""
    cpu_s: float
    """User and system time until then."""
    peak_rss_bytes: int
    """Largest resident set seen."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one command cost."""

    wall_s: float
    """From the start of the process to its end."""
    cpu_s: float
    """User and system time of the command and all processes it started, also orphans."""
    driver_cpu_s: float
    """User and system time of the command's own process."""
    driver_peak_rss_bytes: int
    """High-water mark of the command's own process."""
    exit_code: int
    """Exit status; minus the signal's number where a signal ended it."""
    timed_out: bool
    """It was ended because it took too long."""
    left_over: int
    """Processes that were still there ten seconds after the command's end, and were ended."""
    children: tuple[ProcessUse, ...]
    """The processes below it, in order of appearance."""


def run_measured(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Measurement:
    """Run a command to its end and return what it cost.

    Parameters
    ----------
    command
        Program and arguments.
    timeout_s
        Wall time after which it is ended.
    log
        Where its output goes.
    environment
        Variables added to this process's own.

    Raises
    ------
    BenchmarkError
        It failed, or took too long: the message ends with the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        result = Path(folder) / "result.json"
        measuring = [sys.executable, "-m", "benchmarks.measure", "--result", result, "--log", log]
        measuring += ["--timeout", str(timeout_s), "--", *command]
        python_path = os.pathsep.join(p for p in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if p)
        # The time limit is the measuring process's to keep; this one is for the case that it fails itself.
        subprocess.run(
            [str(part) for part in measuring],
            check=True,
            timeout=timeout_s + 10 * _GRACE_S,
            env={**os.environ, "PYTHONPATH": python_path, **(environment or {})},
        )
        found: dict[str, Any] = json.loads(result.read_text())
    children = tuple(ProcessUse(**child) for child in found.pop("children"))
    measurement = Measurement(children=children, **found)
    if measurement.exit_code or measurement.timed_out:
        why = f"took over {timeout_s:g} s" if measurement.timed_out else f"exit {measurement.exit_code}"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise BenchmarkError(f"{' '.join(str(c) for c in command)}: {why}\n{tail}")
    return measurement


def _measure(command: Sequence[str], timeout_s: float, log: Path) -> Measurement:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    with log.open("wb") as output:
        started = time.perf_counter()
        # Popen's own wait would reap the process before its last figures are read.
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    watch = _Watch(process.pid, started)
    try:
        timed_out = watch.until_exit(started + timeout_s)
        wall_s = time.perf_counter() - started
        if timed_out:
            os.killpg(process.pid, signal.SIGKILL)
        driver_cpu_s = _cpu_s(process.pid)
        exit_code = process.wait(_GRACE_S)
    finally:
        left_over = _end_descendants()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Measurement(
        wall_s=wall_s,
        cpu_s=used.ru_utime + used.ru_stime,
        driver_cpu_s=driver_cpu_s,
        driver_peak_rss_bytes=watch.driver_peak_rss_bytes,
        exit_code=exit_code,
        timed_out=timed_out,
        left_over=left_over,
        children=tuple(watch.children.values()),
    )


class _Watch:
    """Samples a process and all below it until it ends."""

    def __init__(self, pid: int, started: float) -> None:
        self._pid = pid
        self._started = started
        self.driver_peak_rss_bytes = 0
        self.children: dict[int, ProcessUse] = {}

    def until_exit(self, deadline: float) -> bool:
        """Return whether the deadline came first; the process is not reaped."""
        descriptor = os.pidfd_open(self._pid)
        try:
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            while not ended.poll(1000 * _SAMPLE_S):
                self._sample()
                if time.perf_counter() > deadline:
                    return True
            return False
        finally:
            os.close(descriptor)

    def _sample(self) -> None:
        now = time.perf_counter() - self._started
        self.driver_peak_rss_bytes = max(self.driver_peak_rss_bytes, _high_water_bytes(self._pid))
        # Orphans hang below this process itself.
        for pid in _descendants(os.getpid()):
            if pid == self._pid:
                continue
            try:
                cpu_s, rss_bytes = _cpu_s(pid), _rss_bytes(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            seen = self.children.setdefault(pid, ProcessUse(pid, now, now, 0.0, 0))
            seen.last_s, seen.cpu_s = now, cpu_s
            seen.peak_rss_bytes = max(seen.peak_rss_bytes, rss_bytes)


def _descendants(pid: int) -> Iterator[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return
    for task in tasks:
        try:
            children = (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            yield int(child)
            yield from _descendants(int(child))


def _cpu_s(pid: int) -> float:
    # The name, second field, may hold blanks and parentheses; user and system time are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def _high_water_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def _end_descendants() -> int:
    """Reap everything that was started below this process, kill what stays, return how many."""
    deadline = time.monotonic() + _GRACE_S
    killed: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return len(killed)
        if pid:
            continue
        if time.monotonic() > deadline:
            for left in list(_descendants(os.getpid())):
                killed.add(left)
                os.kill(left, signal.SIGKILL)
        time.sleep(0.02)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one command and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure", description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--timeout", type=float, required=True, metavar="S")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    measurement = _measure(options.command, options.timeout, options.log)
    options.result.write_text(json.dumps(asdict(measurement)))


if __name__ == "__main__":
    main()
