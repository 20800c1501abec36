"""Slurm as a batch system: a round is a few job arrays and a closing job; asks it in few calls.

All jobs of a round bear its name, so that one call of squeue finds them all, whoever submitted them.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qgexec.batch.jobs import JobRequest
from qgexec.batch.rounds import Round, Ticket
from qgexec.batch.slurmarrays import Array, least_s, make_arrays
from qgexec.batch.slurmscripts import (
    CLOSING,
    array_options,
    closing_options,
    dependency,
    read_arrays,
    write_files,
)
from qgexec.batch.slurmstates import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    Line,
    parse_config,
    parse_sacct,
    parse_squeue,
)
from qgexec.batch.system import JobEnd, JobState, JobStatus, Pace, PlannedCall, RoundStatus
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import ModelError
from qgexec.plaintext import printable
from qgexec.regularfile import open_regular, read_regular

__all__ = ["SlurmSystem"]

_logger = logging.getLogger(__name__)

_SUBMIT_S = 300.0
"""Longest time that one submission may take, seconds: sbatch waits by itself where Slurm is busy."""

_SHARE = 2
"""A round has at most one part in so many of the jobs that Slurm can hold: others want some too."""

_LAST_BYTES = 1 << 20
"""What is read of the end of what a job printed."""

_MAX_TASKS = 1000
"""The most jobs in an array, where Slurm would take more: smaller ones wait for less."""

_BATCH = 500
"""Numbers of jobs in one command line."""

_MIB = 1 << 20

_NO_LIMIT_MIB = 1 << 30
"""Stands for the largest machine where Slurm names none."""

_PROGRAMS = "sbatch, squeue, scancel, scontrol and sinfo"

_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
"""Variables of a job that do not speak of that job."""

_HINTS = {
    "submit limit": "Submit fewer jobs at a time (maxJobs), or join more quanta in each (clustering).",
    "qos": "See which limits hold for you: sacctmgr show qos. Fewer jobs at a time: maxJobs.",
    "temporarily unavailable": "Slurm holds as many jobs as it can: try later, or with fewer (maxJobs).",
    "account": "Name an account that you may use in this partition: the key accountingGroup.",
    "partition": "Name one that sinfo shows: the key queue in the configuration.",
    "time limit": "Ask for less time (requestWalltime), or name another partition: queue.",
    "memory": "Ask for less memory (requestMemory), or name another partition: queue.",
    "node configuration": "Ask for fewer cores and less memory, or name another partition: queue.",
    "contact slurm": "Try again when it answers: scontrol ping.",
    "timed out": "Try again when it answers: scontrol ping.",
}
"""What to do, by words that Slurm says; the first that fits."""

_ORDINARY = frozenset(
    {"", "BeginTime", "Cleaning", "Dependency", "JobArrayTaskLimit", "None", "Priority", "Resources"}
)
"""Reasons for which every job waits now and then."""


class SlurmSystem:
    """The Slurm that the commands on this machine speak to."""

    name = "slurm"
    pace = Pace()

    def __init__(self) -> None:
        self._config: Mapping[str, str] | None = None
        self._members: dict[str, list[dict[int, int]]] = {}

    def check(self) -> None:
        """Check that jobs can be submitted from here.

        Raises
        ------
        qgexec.errors.ModelError
            Slurm's programs are missing, or it does not answer.
        """
        self._limits()

    def most_jobs(self, settings: BatchSettings) -> int | None:
        """Return how many jobs a round may have, besides the closing one; what is left is for the next round.

        Raises
        ------
        qgexec.errors.ModelError
            Slurm does not say.
        """
        most = _number(self._limits().get("MaxJobCount", "10000"), "scontrol") // _SHARE
        return max(1, min(most, settings.max_jobs or most) - 1)

    def _limits(self) -> Mapping[str, str]:
        if self._config is None:
            self._config = parse_config(self._ask("scontrol", "show", "config"))
        return self._config

    def _ask(self, *command: str) -> str:
        return _call(command, timeout_s=self.pace.answer_s)

    def _arrays(self, batch_round: Round) -> list[Array]:
        most = max(1, _number(self._limits().get("MaxArraySize", "1001"), "scontrol") - 1)
        return make_arrays(batch_round.jobs, min(most, _MAX_TASKS))

    def write(self, batch_round: Round) -> Sequence[PlannedCall]:
        """Write scripts and lists of jobs; returns the calls of sbatch, in which positions stand for numbers.

        Raises
        ------
        qgexec.errors.UsageError
            Among the site's own options is one that qgexec sets, or none.
        qgexec.errors.RunDirError
            A file cannot be written.
        qgexec.errors.ModelError
            Slurm does not say how large an array may be.
        """
        settings = batch_round.settings
        if settings.max_idle is not None:
            _logger.warning("Slurm has no limit on jobs that wait: maxIdle is ignored (maxJobs is not).")
        if settings.accounting_user is not None:
            _logger.warning("Slurm charges accounts (accountingGroup): accountingUser is ignored.")
        arrays = self._arrays(batch_round)
        largest_mib = _largest_mib(self._machines(batch_round.settings.queue))
        calls = [
            PlannedCall(
                array_options(batch_round, number, array, dependency(array, range(len(arrays))), largest_mib),
                len(array.jobs),
                _in_words(array),
            )
            for number, array in enumerate(arrays)
        ]
        write_files(batch_round, arrays, largest_mib)
        closing = closing_options(batch_round, _closing_dependency(range(len(arrays))), largest_mib)
        return [*calls, PlannedCall(closing, 1, "the end of all of them")]

    def least_s(self, batch_round: Round, seconds: npt.NDArray[np.float64]) -> float:
        """Return the time that a round takes at the least, however many jobs run at once.

        What jobs wait for besides their parents is in it: see `qgexec.batch.forecast.critical_path_s`.
        """
        return least_s(batch_round.jobs, self._arrays(batch_round), seconds)

    def submit(self, batch_round: Round) -> Ticket:
        """Hand over the arrays, then the closing job; a few calls a second.

        Raises
        ------
        qgexec.errors.ModelError
            Slurm refuses; its own words, and what to do. What it had taken is removed again.
        """
        arrays = self._arrays(batch_round)
        machines = self._machines(batch_round.settings.queue)
        _check_sizes(batch_round, arrays, machines)
        largest_mib = _largest_mib(machines)
        ids: list[int] = []
        try:
            for number, array in enumerate(arrays):
                _note(batch_round, ids)
                waits = dependency(array, ids)
                began_at = time.monotonic()
                ids.append(_submit(array_options(batch_round, number, array, waits, largest_mib)))
                time.sleep(max(0.0, began_at + self.pace.submit_s - time.monotonic()))
            _note(batch_round, ids)
            closing = _submit(closing_options(batch_round, _closing_dependency(ids), largest_mib))
        except BaseException as error:
            self._take_back(batch_round, ids, error)
            raise
        return {"arrays": [*ids], "closing": closing}

    def _take_back(self, batch_round: Round, ids: Sequence[int], error: BaseException) -> None:
        try:
            self.cancel(batch_round, {"arrays": [*ids], "closing": None})
        except ModelError as other:
            words = printable(other.message)
            _logger.warning("Jobs named %s may be left in Slurm: %s", batch_round.name, words)
            if isinstance(error, ModelError):
                left = f"Remove what may have been taken: scancel --name={batch_round.name}"
                error.hint = f"{error.hint}\n{left}".lstrip()

    def find(self, batch_round: Round) -> Ticket | None:
        """Look for a round: what was noted of it while it was submitted, and jobs that bear its name."""
        ids = _noted(batch_round)
        closing = None
        for line in self._lines(batch_round):
            if line.comment == CLOSING:
                closing = line.array
            elif (number := line.comment.partition(":")[0]).isdecimal():
                ids[int(number)] = line.array
        # Slurm forgets jobs minutes after they have ended.
        has_begun = any((batch_round.folder / "journals").iterdir())
        if not ids and closing is None and not has_begun:
            return None
        return {"arrays": [ids.get(i) for i in range(max(ids, default=-1) + 1)], "closing": closing}

    def look(self, batch_round: Round, ticket: Ticket) -> RoundStatus:
        """Ask squeue for all jobs of a round, and the books, if there are any, for those it has forgotten.

        Raises
        ------
        qgexec.errors.ModelError
            Slurm does not answer at the moment.
        """
        numbers = _numbers(ticket)
        closing: JobStatus | None = None
        jobs: dict[int, JobStatus] = {}
        for line in self._lines(batch_round):
            if line.comment == CLOSING or line.array == ticket["closing"]:
                closing = line.status
            else:
                jobs.update(self._job_lines(batch_round, numbers, line))
        is_over = all(status.state is JobState.ENDED for status in jobs.values())
        if is_over and len(jobs) < len(batch_round.jobs) and self._keeps_books():
            jobs = self._remembered(batch_round, numbers) | jobs
        states = Counter(status.state for status in jobs.values())
        states[JobState.ENDED] += len(batch_round.jobs) - states.total()
        return RoundStatus(is_over, jobs, states, closing, _why(jobs.values()))

    def _job_lines(
        self, batch_round: Round, numbers: Mapping[int, int], line: Line
    ) -> Iterable[tuple[int, JobStatus]]:
        """Return job numbers, each with what a line says of it."""
        if batch_round.name not in self._members:
            self._members[batch_round.name] = read_arrays(batch_round)
        known = self._members[batch_round.name]
        number = numbers.get(line.array)
        if number is None:  # it was submitted, and whoever did it died before noting so
            comment = line.comment.partition(":")[0]
            number = int(comment) if comment.isdecimal() else -1
        if not 0 <= number < len(known):
            return ()
        status = _with_words(line, batch_round.logs / f"slurm-{number:03d}.txt")
        return ((known[number][i], status) for i in line.indices if i in known[number])

    def _keeps_books(self) -> bool:
        kind = self._limits().get("AccountingStorageType", "(null)")
        return kind not in ("(null)", "", "accounting_storage/none")

    def _remembered(self, batch_round: Round, numbers: Mapping[int, int]) -> dict[int, JobStatus]:
        found: dict[int, JobStatus] = {}
        ids = [str(array) for array in numbers]
        for at in range(0, len(ids), _BATCH):
            command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--format={SACCT_FORMAT}"]
            text = self._ask(*command, f"--jobs={','.join(ids[at : at + _BATCH])}")
            for line in _parsed(parse_sacct, text, "sacct"):
                found.update(self._job_lines(batch_round, numbers, line))
        # The books may be late: squeue has said that nothing is left.
        return {job: status for job, status in found.items() if status.state is JobState.ENDED}

    def cancel(self, batch_round: Round, ticket: Ticket) -> None:
        """Have all arrays and the closing job removed, those that nobody has noted too.

        Raises
        ------
        qgexec.errors.ModelError
            Slurm does not answer, or refuses.
        """
        ids = {*_numbers(ticket), *(line.array for line in self._lines(batch_round) if _is_left(line))}
        if (closing := ticket.get("closing")) is not None:
            ids.add(int(str(closing)))
        words = [str(number) for number in sorted(ids)]
        for at in range(0, len(words), _BATCH):
            self._ask("scancel", "--quiet", *words[at : at + _BATCH])

    def _machines(self, queue: str | None) -> list[tuple[int, int]]:
        """Return cores and memory, MiB, of the kinds of machines that jobs can run on."""
        partition = [] if queue is None else [f"--partition={queue}"]
        text = self._ask("sinfo", "--noheader", "--Node", "--format=%c|%m", *partition)
        sizes = {tuple(_number(word, "sinfo") for word in line.partition("|")[::2]) for line in text.split()}
        return sorted((cores, memory_mib) for cores, memory_mib in sizes)

    def _lines(self, batch_round: Round) -> list[Line]:
        """Return what Slurm says of all that bears a round's name."""
        command = ["squeue", "--states=all", "--noheader", f"--name={batch_round.name}"]
        return _parsed(parse_squeue, self._ask(*command, f"--Format={SQUEUE_FORMAT}"), "squeue")


def _largest_mib(machines: Sequence[tuple[int, int]]) -> int:
    return max((memory_mib for _, memory_mib in machines), default=_NO_LIMIT_MIB)


def _check_sizes(batch_round: Round, arrays: Sequence[Array], machines: Sequence[tuple[int, int]]) -> None:
    """Raise where a job asks for more than any machine has: Slurm may let it wait for ever."""
    queue = batch_round.settings.queue
    for array in arrays:
        cores, memory_mib = array.request.cores, -(-(array.request.memory_bytes or 0) // _MIB)
        if machines and not any(cores <= has and memory_mib <= mib for has, mib in machines):
            largest = max(machines, key=lambda machine: (machine[1], machine[0]))
            where = "of Slurm" if queue is None else f"of the partition {queue}"
            raise ModelError(
                f"no machine {where} can take {batch_round.jobs.name(array.jobs[0])}: it asks for "
                f"{array.request}, and the largest has {JobRequest(largest[0], largest[1] * _MIB)}",
                hint="Ask for less (requestMemory, requestCpus, memoryLimit), or name another queue.",
            )


def _with_words(line: Line, log: Path) -> JobStatus:
    """Return how a job ended, also where Slurm has said why it killed it only to whoever reads its log."""
    if line.status.end is not JobEnd.SIGNALLED or line.job_id is None:
        return line.status
    if f"StepId={line.job_id}.batch exceeded memory limit".encode() not in _end_of(log):
        return line.status
    return replace(line.status, end=JobEnd.OUT_OF_MEMORY, reason="exceeded memory limit")


def _end_of(log: Path) -> bytes:
    """Return the last of what a job printed; nothing where there is none."""
    try:
        with open_regular(log) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            return file.read()
    except OSError:
        return b""


def _is_left(line: Line) -> bool:
    return line.status.state is not JobState.ENDED or line.status.end is JobEnd.NOT_STARTED


def _numbers(ticket: Ticket) -> dict[int, int]:
    """Return the position of each array by the number that Slurm gave it."""
    ids = ticket["arrays"]
    assert isinstance(ids, list)
    return {int(str(array)): number for number, array in enumerate(ids) if array is not None}


def _note(batch_round: Round, ids: Sequence[int]) -> None:
    """Note what has been submitted: Slurm forgets jobs that have ended, and this process may die now."""
    (batch_round.folder / "submitted.txt").write_text("".join(f"{number}\n" for number in ids))


def _noted(batch_round: Round) -> dict[int, int]:
    path = batch_round.folder / "submitted.txt"
    lines = read_regular(path).decode().split() if path.exists() else []
    return {number: int(array) for number, array in enumerate(lines) if array.isdecimal()}


def _parsed(parse: Callable[[str], Iterable[Line]], text: str, program: str) -> list[Line]:
    try:
        return list(parse(text))
    except ValueError as error:
        raise ModelError(f"{program} says what cannot be read: {error}") from error


def _number(text: str, program: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ModelError(
            f"{program} says what cannot be read: {text.strip()!r} is no number",
            hint="Try it in a shell: a site's own script in its place may print more than Slurm does.",
        ) from error


def _submit(command: Sequence[str]) -> int:
    text = _call(command, timeout_s=_SUBMIT_S, what="Slurm refuses the jobs")
    return _number(text.partition(";")[0], "sbatch")  # with several clusters the name of one follows


def _closing_dependency(ids: Sequence[int]) -> str:
    return ":".join(["afterany", *map(str, ids)])


def _call(command: Sequence[str], *, timeout_s: float, what: str = "") -> str:
    """Return what a command of Slurm's prints.

    Raises
    ------
    qgexec.errors.ModelError
        It is missing, fails, or takes too long.
    """
    program = command[0]
    try:
        done = subprocess.run(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no Slurm here: {program} is not among the programs of this machine",
            hint=f"Submit from a machine where {_PROGRAMS} work; perhaps a module has to be loaded first.",
        ) from error
    except OSError as error:
        raise ModelError(f"{program} cannot be started: {error}", hint="Try it in a shell.") from error
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"Slurm does not answer: {program} took more than {timeout_s:.0f} s",
            hint="Try again when it does: scontrol ping.",
        ) from error
    if done.returncode != 0:
        words = _words(done.stderr or done.stdout)
        said = f"{program}: {words or f'exit status {done.returncode}'}"
        raise ModelError(f"{what or 'Slurm does not answer'}: {said}", hint=_hint(command, words))
    return done.stdout


def _words(text: str) -> str:
    """Return what a command complains of, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(line.partition("error: ")[2] or line for line in lines))


def _hint(command: Sequence[str], words: str) -> str:
    found = next((hint for said, hint in _HINTS.items() if said in words.lower()), "")
    return f"{found}\nThe command was: {shlex.join(command)}".lstrip() if command[0] == "sbatch" else found


def _environment() -> dict[str, str]:
    """Return the environment of this process without what speaks of the job that it may be of.

    The jobs get it too; and squeue is to give lists of indices that are not cut.
    """
    kept = {name: v for name, v in os.environ.items() if not name.startswith("SLURM_") or name in _KEPT}
    return {**kept, "SLURM_BITSTR_LEN": "0", "LC_ALL": os.environ.get("LC_ALL", "C.UTF-8")}


def _in_words(array: Array) -> str:
    if array.lane_of is not None:
        return f"each for the end of its own parent in {array.lane_of}"
    if not array.waits_for:
        return ""
    return f"the end of all of {', '.join(map(str, array.waits_for))}"


def _jobs_wait(n: int) -> str:
    return "1 job waits" if n == 1 else f"{n} jobs wait"


def _why(statuses: Iterable[JobStatus]) -> str:
    """Return the most frequent reason for which jobs wait that is no ordinary one."""
    waiting = (JobState.QUEUED, JobState.HELD)
    reasons = Counter(s.reason for s in statuses if s.state in waiting and s.reason not in _ORDINARY)
    return "; ".join(f"{_jobs_wait(n)}: {reason}" for reason, n in reasons.most_common(2))
