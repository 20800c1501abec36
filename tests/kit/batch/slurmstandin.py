"""A Slurm that is this process: programs on the path hand their words to it, and print what it answers.

It takes arrays with their dependencies, starts a task when its dependency allows, and does with a task
what ``job.sh`` does; it runs one task each time that squeue asks. All of it is as with Slurm, but nothing
takes time.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qgexec.batch.slurm import SlurmSystem
from qgexec.batch.slurmstates import SQUEUE_FORMAT, expand
from qgexec.batch.system import JobEnd, JobState, JobStatus
from tests.kit.batch.standins import AGAIN, QUICK, StandIn, open_round

__all__ = ["SlurmStandIn", "slurm_standin"]

_PROGRAM = """#!/bin/sh
# Says how it was called, then what it is answered: an exit status, and what is to be printed.
here=${0%/bin/*}
printf '%s\\0' "${0##*/}" "$@" > "$here/said"
{ read -r code; [ "$code" = 0 ] || exec >&2; cat; } < "$here/answer"
exit "$code"
"""

_CONFIG = """Configuration data as of 2026-01-01T00:00:00
AccountingStorageType   = accounting_storage/none
MaxArraySize            = 1001
MaxJobCount             = 10000
"""

_TRIES = 6
_RUNS = 3
"""As in ``job.sh``."""

_UNREACHABLE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
_NEVER = "DependencyNeverSatisfied"
_ENDED = frozenset({"COMPLETED", "FAILED", "NODE_FAIL", "CANCELLED"})


@dataclass(slots=True)
class _Task:
    """A task of an array, or a job that is none."""

    job_id: int
    state: str = "PENDING"
    wait_status: int = 0
    host: str = ""
    reason: str = "None"
    n_restarts: int = 0

    @property
    def is_over(self) -> bool:
        return self.state in _ENDED


@dataclass(slots=True)
class _Array:
    """What one call of sbatch has brought in."""

    number: int
    options: dict[str, str]
    script: Path
    arguments: Sequence[str]
    tasks: dict[int | None, _Task]

    @property
    def name(self) -> str:
        return self.options["job-name"]

    @property
    def awaited(self) -> tuple[str, list[int]]:
        kind, *numbers = self.options.get("dependency", "").split(":")
        return kind, [int(number) for number in numbers]

    def jobs(self) -> dict[int, int]:
        """Return the job of each index, as ``job.sh`` finds it; of the closing job none."""
        if not self.arguments:
            return {}
        lines = (self.script.parent / "arrays" / f"{self.arguments[0]}.txt").read_text().splitlines()
        return {int(index): int(job) for index, job in (line.split() for line in lines)}


class _RefusedError(Exception):
    """A program ends badly, with these words."""


@dataclass
class SlurmStandIn(StandIn):
    """What slurmctld knows."""

    n_runs: int = _RUNS
    _arrays: dict[int, _Array] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(101))

    def left(self, name: str) -> set[int]:
        return {
            job
            for array in self._named(name)
            for index, job in array.jobs().items()
            if index in array.tasks and not array.tasks[index].is_over
        }

    def answer(self, program: str, words: Sequence[str]) -> str:
        """Return what a program prints."""
        if self.silent:
            raise _RefusedError(_UNREACHABLE)
        match program:
            case "sbatch":
                return self._submit(words)
            case "squeue":
                return self._cut(self._queue(words))
            case "scancel":
                return self._cancel(words)
            case "scontrol":
                assert words == ["show", "config"]
                return _CONFIG
            case "sinfo":
                return "4|8000\n"
        raise AssertionError(f"nobody knows {program}")

    def _cut(self, text: str) -> str:
        """Leave out the end of the last line, as a pipe does that breaks."""
        return text[: -len(text.splitlines()[-1]) // 2] if self.garbled and text else text

    def _submit(self, words: Sequence[str]) -> str:
        options, rest = _options(words)
        if self.refuses and "dependency" in options:
            raise _RefusedError(f"sbatch: error: Batch job submission failed: {self.refuses}\n")
        number = next(self._numbers)
        indices: Sequence[int | None] = expand(options.get("array", "")) or (None,)
        tasks = {index: _Task(number if i == 0 else next(self._numbers)) for i, index in enumerate(indices)}
        array = _Array(number, options, Path(rest[0]), rest[1:], tasks)
        self._arrays[number] = array
        for index, job in array.jobs().items():
            if job in self.loses:
                array.tasks.pop(index, None)
        if options["comment"] == "closing":
            self.submitted.append(array.name)
        return f"{number}\n"

    def _cancel(self, words: Sequence[str]) -> str:
        numbers = [int(word) for word in words if not word.startswith("-")]
        arrays = [self._arrays[number] for number in numbers if number in self._arrays]
        for task in (task for array in arrays for task in array.tasks.values() if not task.is_over):
            task.state, task.reason = "CANCELLED", "None"
        self.cancelled += sorted({array.name for array in arrays})
        return ""

    def _queue(self, words: Sequence[str]) -> str:
        options, _ = _options(words)
        assert (options["states"], options["Format"]) == ("all", SQUEUE_FORMAT)
        arrays = self._named(options["name"])
        self._cancel_what_never_begins()
        if not (self.pause or self.garbled):
            self._run_one(arrays)
        return "".join(line for array in arrays for line in self._lines(array))

    def _lines(self, array: _Array) -> Iterator[str]:
        """Yield one line for each task, and one for all that wait for the same."""
        waiting: dict[str, list[int | None]] = {}
        for index, task in array.tasks.items():
            if task.state == "PENDING":
                ready = self._readiness(array, index) is True
                reason = "BeginTime" if task.n_restarts else "Priority" if ready else "Dependency"
                waiting.setdefault(reason, []).append(index)
            elif not (self.forgets and task.is_over):
                yield self._line(array, "N/A" if index is None else str(index), task, task.reason)
        for reason, indices in waiting.items():
            shown = "N/A" if None in indices else ",".join(map(str, indices))
            yield self._line(array, shown, array.tasks[indices[0]], reason)

    def _line(self, array: _Array, indices: str, task: _Task, reason: str) -> str:
        fields = (array.number, indices, task.job_id, task.state, task.wait_status, task.host)
        return "".join(f"{each}|" for each in (*fields, array.options["comment"], reason)) + "\n"

    def _named(self, name: str) -> list[_Array]:
        return [array for array in self._arrays.values() if array.name == name]

    def _readiness(self, array: _Array, index: int | None) -> bool | None:
        """Return whether a task may begin; `None` where it never may."""
        kind, numbers = array.awaited
        if kind == "aftercorr":
            # A task that is not there any more holds nobody up.
            found = [self._arrays[number].tasks.get(index) for number in numbers]
        else:
            found = [task for number in numbers for task in self._arrays[number].tasks.values()]
        tasks = [task for task in found if task is not None]
        if any(not task.is_over for task in tasks):
            return False
        return True if kind in ("", "afterany") or all(t.state == "COMPLETED" for t in tasks) else None

    def _cancel_what_never_begins(self) -> None:
        for array in self._arrays.values():
            assert not array.awaited[1] or array.options["kill-on-invalid-dep"] == "yes"
            for index, task in array.tasks.items():
                if task.state == "PENDING" and self._readiness(array, index) is None:
                    task.state, task.reason = "CANCELLED", _NEVER

    def _run_one(self, arrays: Sequence[_Array]) -> None:
        """Run the last task that may begin: any order is Slurm's right."""
        for array in reversed(arrays):
            for index, task in reversed(array.tasks.items()):
                if task.state == "PENDING" and self._readiness(array, index):
                    self._run(array, index, task)
                    return

    def _run(self, array: _Array, index: int | None, task: _Task) -> None:
        if index is None:  # a driver has the run in hand: there is nothing to do for the closing job
            task.state = "COMPLETED"
            return
        task.host = "node1"
        if (array.script.parent / "closed").exists():
            task.state = "COMPLETED"
            return
        status = self._tries(array, array.jobs()[index])
        is_again = status.exit_code == AGAIN and task.n_restarts + 1 < _TRIES
        if is_again or (status.end is JobEnd.LOST and "requeue" in array.options):
            task.state, task.host, task.n_restarts = "PENDING", "", task.n_restarts + 1
        elif status.state is JobState.RUNNING:
            task.state = "RUNNING"
        elif status.end is JobEnd.LOST:
            task.state, task.reason = "NODE_FAIL", "NodeDown"
        elif status.end is JobEnd.CANCELLED:
            task.state, task.wait_status, task.reason = "FAILED", 9, "JobLaunchFailure"
        else:  # whatever became of its quanta
            task.state = "COMPLETED"

    def _tries(self, array: _Array, job: int) -> JobStatus:
        """Run a job as ``job.sh`` does: again at once where its process was killed."""
        for _ in range(_RUNS):
            status = self.runs(open_round(array.script.parent), job)
            if status.end is not JobEnd.SIGNALLED:
                break
        return status


def _options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options of a command without their dashes, and what follows them."""
    n_options = next((i for i, word in enumerate(words) if not word.startswith("--")), len(words))
    pairs = (word[2:].partition("=") for word in words[:n_options])
    return {name: value for name, _, value in pairs}, list(words[n_options:])


@contextmanager
def slurm_standin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmStandIn]:
    """Put the programs on the path, and answer them until the end."""
    (folder / "bin").mkdir(parents=True)
    for name in ("sbatch", "scancel", "scontrol", "sinfo", "squeue"):
        path = folder / "bin" / name
        path.write_text(_PROGRAM)
        path.chmod(0o755)
    for name in ("said", "answer"):
        os.mkfifo(folder / name)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(SlurmSystem, "pace", QUICK)
    standin = SlurmStandIn()
    broken: list[BaseException] = []
    thread = threading.Thread(target=_serve, args=(standin, folder, broken), daemon=True)
    thread.start()
    yield standin
    (folder / "said").write_bytes(b"")  # nothing was said: the end
    thread.join()
    if broken:
        raise broken[0]


def _serve(standin: SlurmStandIn, folder: Path, broken: list[BaseException]) -> None:
    while words := (folder / "said").read_bytes().decode().split("\0")[:-1]:
        code = 0
        try:
            text = standin.answer(words[0], words[1:])
        except _RefusedError as error:
            code, text = 1, str(error)
        except BaseException as error:  # noqa: BLE001 -- the test's own thread must hear of it
            broken.append(error)
            code, text = 1, f"the stand-in is broken: {error!r}\n"
        (folder / "answer").write_bytes(f"{code}\n{text}".encode())
