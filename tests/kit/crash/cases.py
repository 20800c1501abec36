"""All that is killed in `test_crash`, and where: cases, each of which ends in a run that is done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lsst.resources.file import FileResourcePath
from lsst.utils.packages import Packages

import qgexec.resume
import qgexec.rubin.discard
import qgexec.rubin.ingest
import qgexec.rubin.settle
from benchmarks.endstate import read_work
from qgexec.books.journal import DamagedLine, Journal, SegmentWriter, read_events
from qgexec.books.rundir import RunDir
from qgexec.config.runconfig import RunConfig, TaskSettings
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    Event,
    OutputsIngested,
    RunEnded,
    RunStarted,
    StopRequested,
    WorkerEnded,
    WorkerStarted,
)
from qgexec.models.inprocess import InProcess
from qgexec.rubin.ingest import Ingester
from qgexec.rubin.recorder import Recorder
from tests.kit.butler.repos import OUTPUT_RUN
from tests.kit.crash.faults import (
    Fault,
    at_call,
    at_kind,
    at_record,
    die_once,
    in_quantum,
    in_task,
    is_first,
    killed,
    raising,
    stuck,
    together,
)
from tests.kit.crash.sites import (
    Case,
    Site,
    begin,
    resume,
)
from tests.kit.processes.forks import KILLED, replace
from tests.kit.processes.kills import die, die_in_put
from tests.kit.runs.damage import flip_digit

N_RECORDS = 16
"""Records in the journal of a troubled run in process."""

TORN = (1, 4, 7, 16)
"""Of these half is written: the first and the last, one after an ingest, one in the middle."""

CONFIG = RunConfig(TaskSettings(exceptions={"OSError": 1}))
"""Retries for the quantum that fails once."""


def trouble(site: Site) -> Fault:
    """One quantum fails once and is tried again; another fails for good, and blocks a third."""
    return in_task(
        pair=raising(OSError("the disk was slow"), site.mark("pair")), summary=raising(ValueError("no stars"))
    )


# --- the driver, at every record ------------------------------------------------------------------------


def at_records(number: int, moment: str) -> Case:
    """The driver of a troubled run in process is killed at a record."""

    def play(site: Site) -> None:
        fault = together(trouble(site), at_record(number, moment))
        assert begin(site, fault=fault, config=CONFIG) == KILLED
        assert resume(site) == 0

    return play


RECORDS = {
    f"{moment} record {n}": at_records(n, moment)
    for n in range(1, N_RECORDS + 1)
    for moment in ("before", "within", "after")
    if moment != "within" or n in TORN
}

# --- the driver of a pool, at every kind of record ------------------------------------------------------

POOL_CONFIG = RunConfig(
    TaskSettings(exceptions={"OSError": 1}),
    {
        "calibrate": TaskSettings(timeout_s=0.2, timed_out=1),
        "pair": TaskSettings(memory_bytes=1, enforce_memory=True, out_of_memory=1),
    },
)


def pool_trouble(site: Site) -> Fault:
    """Each task but the last meets another trouble once: its worker dies, time, memory, an exception."""
    return in_task(
        isr=killed(site.mark("isr")),
        calibrate=stuck(site.mark("calibrate")),
        pair=stuck(site.mark("pair")),
        summary=raising(OSError("the disk was slow"), site.mark("summary")),
    )


def pool_stops(site: Site) -> Fault:
    """A quantum fails while another one is in the air."""
    return in_task(
        calibrate=raising(ValueError("no stars"), site.mark("calibrate")), pair=stuck(site.mark("pair"))
    )


def at_kinds(kind: type[Event], moment: str, *, stops: bool = False) -> Case:
    """The driver of a pool is killed at its first record of a kind."""

    def play(site: Site) -> None:
        fault = pool_stops(site) if stops else pool_trouble(site)
        fault = together(fault, at_kind(kind, moment))
        config = RunConfig() if stops else POOL_CONFIG
        assert begin(site, "pool", fault, config=config, fail_fast=stops) == KILLED
        assert resume(site, "pool") == 0

    return play


KINDS = {
    f"{moment} {kind.__name__}": at_kinds(kind, moment, stops=kind in (StopRequested, AttemptReturned))
    for kind, moments in {
        RunStarted: ("after",),
        WorkerStarted: ("before", "after"),
        AttemptStarted: ("before", "after"),
        AttemptLost: ("before", "after"),
        WorkerEnded: ("after",),
        AttemptTimedOut: ("before", "after"),
        AttemptOutOfMemory: ("before", "after"),
        AttemptFailed: ("before", "after"),
        AttemptSucceeded: ("before", "after"),
        OutputsIngested: ("before", "after"),
        StopRequested: ("before", "after"),
        AttemptReturned: ("before", "after"),
        RunEnded: ("before", "after"),
    }.items()
    for moment in moments
}

# --- a quantum, at every stage --------------------------------------------------------------------------


def in_put(number: int, stage: str) -> Fault:
    """The process dies in its so many-th put from now; see `kills`."""
    return partial(die_in_put, number, stage)


STAGES = {
    "before it begins": die,
    "while the task runs": in_task(isr=die, calibrate=die, pair=die, summary=die, final=die),
    "as it writes its first output": in_put(1, "writing"),
    "after its first output": in_put(1, "renamed"),
    "after its second output": in_put(2, "renamed"),
    "as it has written its metadata": in_put(3, "written"),
    "after its metadata": in_put(3, "renamed"),
    "as it writes its log": in_put(4, "writing"),
    "as it has written its log": in_put(4, "written"),
    "after its log": in_put(4, "renamed"),
    "before its detail is written": at_call(SegmentWriter, "append", "before"),
    "after its detail is written": at_call(SegmentWriter, "append", "after"),
    "before its outcome is told": at_call(Recorder, "record", "after"),
}
"""Of a quantum of `pair`, which puts two outputs, metadata, and log."""


def driver_in_quantum(stage: Fault, **options: Any) -> Case:
    """The process that is driver and worker in one dies at a stage of a quantum."""

    def play(site: Site) -> None:
        fault = in_quantum("pair", stage, mark=site.mark("pair"))
        assert begin(site, fault=fault, **options) == KILLED
        assert resume(site) == 0

    return play


def worker_lost(stage: Fault) -> Case:
    """A worker dies at a stage of a quantum, and there is no retry: the quantum has failed."""

    def play(site: Site) -> None:
        fault = in_quantum("pair", stage, mark=site.mark("pair"))
        assert begin(site, "pool", fault, config=RunConfig(TaskSettings(lost=0))) == 1
        assert resume(site, "pool") == 0

    return play


def workers_die(site: Site) -> None:
    """Workers die at all stages, one after the other, and the run goes on to its end."""
    some = list(STAGES.values())
    shares = {
        "isr": some[:2],
        "calibrate": some[2:4],
        "pair": some[4:10],
        "summary": some[10:12],
        "final": some[12:],
    }
    faults = [in_quantum(label, *stages, mark=site.mark(label)) for label, stages in shares.items()]
    assert begin(site, "pool", together(*faults), config=RunConfig(TaskSettings(lost=6))) == 0
    attempts = sorted(read_work(site.run_dir).attempts.values())
    assert attempts == sorted(len(stages) + 1 for stages in shares.values())


def time_limit_ends_the_driver(site: Site) -> None:
    """A quantum that heeds nothing when its time is up: its process ends, and the run is gone on with."""

    def deaf() -> None:
        if is_first(site.mark("calibrate")):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            signal.pause()

    defaults = {**(InProcess.__init__.__kwdefaults__ or {}), "grace_s": 0.1}
    impatient = partial(replace, InProcess.__init__, "__kwdefaults__", defaults)
    config = RunConfig(TaskSettings(timeout_s=1.0))
    fault = together(impatient, in_task(calibrate=deaf))
    assert begin(site, fault=fault, config=config, fail_fast=True) == 1
    assert resume(site, config=config, fail_fast=True) == 0


QUANTUM = (
    {f"driver: {name}": driver_in_quantum(stage) for name, stage in STAGES.items()}
    | {f"worker, no retry: {name}": worker_lost(STAGES[name]) for name in list(STAGES)[1::3]}
    | {"workers, at all stages": workers_die, "driver: at a time limit": time_limit_ends_the_driver}
)

# --- the ingester ---------------------------------------------------------------------------------------

TRANSACTION: dict[str, tuple[Any, str, str]] = {
    "before its transaction": (Ingester, "ingest", "before"),
    "in its transaction": (qgexec.rubin.ingest, "import_datasets", "after"),
    "after its transaction": (Ingester, "ingest", "after"),
}

CLEANING: dict[str, tuple[Any, str, str]] = {
    "before it cleans up": (Ingester, "discard", "before"),
    "as it cleans up": (qgexec.rubin.discard, "remove_files", "before"),
    "after it cleaned up": (Ingester, "discard", "after"),
}


def ingester_dies_once(place: tuple[Any, str, str]) -> Case:
    """The ingester's process dies once: another one does it, and the run ends as if nothing had happened."""

    def play(site: Site) -> None:
        owner, name, moment = place
        assert (
            begin(site, "pool", at_call(owner, name, moment, act=partial(die_once, site.mark("ingester"))))
            == 0
        )

    return play


def ingester_always_dies(place: tuple[Any, str, str]) -> Case:
    """Each ingester's process dies: the quanta go on, the run ends with an error, and is gone on with."""

    def play(site: Site) -> None:
        assert begin(site, "pool", at_call(*place)) == 2
        assert resume(site, "pool") == 0

    return play


def driver_ingests(place: tuple[Any, str, str]) -> Case:
    """The process that is driver and ingester in one dies."""

    def play(site: Site) -> None:
        assert begin(site, fault=at_call(*place, number=2)) == KILLED
        assert resume(site) == 0

    return play


def cleaner_dies(place: tuple[Any, str, str]) -> Case:
    """The ingester's process dies once over what a lost attempt left."""

    def play(site: Site) -> None:
        owner, name, moment = place
        fault = together(
            in_quantum("pair", in_put(2, "written"), mark=site.mark("pair")),
            at_call(owner, name, moment, act=partial(die_once, site.mark("ingester"))),
        )
        assert begin(site, "pool", fault, config=RunConfig(TaskSettings(lost=0))) == 1
        _, problems = site.end()
        assert problems == []
        assert resume(site) == 0

    return play


INGESTER = (
    {f"once, {name}": ingester_dies_once(place) for name, place in TRANSACTION.items()}
    | {"always, in its transaction": ingester_always_dies(TRANSACTION["in its transaction"])}
    | {f"driver, {name}": driver_ingests(place) for name, place in TRANSACTION.items()}
    | {f"once, {name}": cleaner_dies(place) for name, place in CLEANING.items()}
)

# --- the driver that resumes ----------------------------------------------------------------------------


def two_in_the_air(site: Site) -> Fault:
    """The driver of a pool is killed while one quantum is complete, and another is in the middle of a put."""
    meeting = site.folder / "meeting"  # opening a pipe waits for the other side

    def prepare() -> None:
        driver = os.getpid()
        os.mkfifo(meeting)

        def complete() -> None:
            meeting.open("rb").close()
            meeting.unlink()
            os.kill(driver, signal.SIGKILL)
            signal.pause()

        def halfway() -> None:
            meeting.open("wb").close()
            signal.pause()

        together(
            in_quantum("calibrate", at_call(Recorder, "record", "after", act=complete), mark=site.mark("c")),
            in_quantum(
                "pair", at_call(FileResourcePath, "transfer_from", number=2, act=halfway), mark=site.mark("p")
            ),
        )()

    return prepare


RESUMING: dict[str, Fault] = {
    "before it looks at versions": at_call(qgexec.resume, "update_versions"),
    "after it looked at versions": at_call(qgexec.resume, "update_versions", "after"),
    "before its claim": at_call(Journal, "create"),
    "after its claim": at_call(Journal, "create", "after"),
    "after it wrote its options": at_call(RunDir, "rewrite_settings", "after"),
    "after it found what is complete": at_call(Ingester, "__init__"),
    "before it removes": at_call(qgexec.rubin.discard, "remove_files"),
    "as it removes": at_call(FileResourcePath, "remove", "after"),
    "after it removed": at_call(qgexec.rubin.discard, "remove_files", "after"),
    "before it writes details": at_call(SegmentWriter, "append"),
    "after it settled": at_call(qgexec.resume, "settle", "after"),
    "before record 1": at_record(1, "before"),
    # Between these the driver does nothing: after one is before the next.
    **{f"after record {n}": at_record(n, "after") for n in (1, 2, 3, 4)},
    "before record 5": at_record(5, "before"),
    "after record 5": at_record(5, "after"),
    "within record 3": at_record(3, "within"),
}


def resume_killed_twice(fault: Fault) -> Case:
    """The driver that resumes is killed, and so is the next one, at the same place."""

    def play(site: Site) -> None:
        site.bring_back(site.pristine.with_name("crashed"))
        assert [resume(site, fault=fault), resume(site, fault=fault)] == [KILLED, KILLED]
        assert resume(site) == 0

    return play


RESUMED = {f"resume: {name}": resume_killed_twice(fault) for name, fault in RESUMING.items()}

# --- versions, and what comes before the first record ---------------------------------------------------


def newer_software() -> None:
    """A package is imported that was not there when the run began."""
    from_system = Packages.fromSystem

    def with_another() -> Packages:
        packages = from_system()
        packages["another"] = "1.0"
        return packages

    replace(Packages, "fromSystem", with_another)


def before_the_first_record(site: Site) -> None:
    """The driver dies when all is prepared, and nothing is in the journal."""
    assert begin(site, fault=at_call(Journal, "create")) == KILLED
    assert resume(site) == 0


VERSIONS = {
    f"resume, versions: {stage}": resume_killed_twice(together(newer_software, in_put(1, stage)))
    for stage in ("writing", "written", "renamed")
}

# --- a power cut ----------------------------------------------------------------------------------------


def cut_off(path: Path, n_bytes: int) -> None:
    """Take so many bytes off a file's end."""
    os.truncate(path, path.stat().st_size - n_bytes)


def find(site: Site, name: str) -> Path:
    """Return the one file of a dataset type."""
    (path,) = (site.repository / OUTPUT_RUN / name).rglob("*.*")
    return path


def power_cut(harm: Callable[[Site], None]) -> Case:
    """The host goes down with a driver, and takes with it some of what was not yet on the disk."""

    def play(site: Site) -> None:
        assert begin(site, fault=at_record(12, "after")) == KILLED
        harm(site)
        came_back = partial(replace, qgexec.resume, "has_restarted_since", lambda _driver: True)
        assert resume(site, fault=came_back) == 0

    return play


POWER_CUTS = {
    f"power cut: {what}": power_cut(harm)
    for what, harm in {
        "an output is empty": lambda site: os.truncate(find(site, "post_isr"), 0),
        "an output is missing": lambda site: find(site, "calibrated").unlink(),
        "metadata are missing": lambda site: find(site, "isr_metadata").unlink(),
        "a log is cut off": lambda site: cut_off(find(site, "isr_log"), 10),
        "the journal is cut off": lambda site: cut_off(site.run_dir / "journal" / "0001.jsonl", 300),
        "details are cut off": lambda site: cut_off(site.run_dir / "segments" / "0001-driver.jsonl", 300),
        "details are missing": lambda site: (site.run_dir / "segments" / "0001-driver.jsonl").unlink(),
    }.items()
}

# --- a journal that is not what was written -------------------------------------------------------------


def damaged(harm: Callable[[Path], None]) -> Case:
    """A journal is changed after its driver was killed: the run goes on, and nothing is done twice."""

    def play(site: Site) -> None:
        assert begin(site, fault=at_record(12, "after")) == KILLED
        harm(site.run_dir / "journal" / "0001.jsonl")
        lines: list[DamagedLine] = []
        for _ in read_events(site.run_dir / "journal", damaged=lines):
            pass
        assert len(lines) == 1
        assert resume(site) == 0
        assert resume(site) == 0

    return play


def line_of(journal: Path, tag: str) -> int:
    """Return the number of the first line about a kind of event."""
    lines = journal.read_bytes().splitlines()
    return next(n for n, line in enumerate(lines, start=1) if line.startswith(b'{"e":"%b"' % tag.encode()))


def make_hole(journal: Path) -> None:
    """Put zeros over the end of a success, all of the next line, and the beginning of what follows."""
    whole = journal.read_bytes()
    begin = whole.index(b'{"e":"ok"') + 40
    end = whole.index(b"\n", whole.index(b"\n", begin) + 1) + 10
    journal.write_bytes(whole[:begin] + bytes(end - begin) + whole[end:])


def late_lines(site: Site) -> None:
    """A driver that was believed gone wakes up when another has taken over, and writes what it still has."""
    assert begin(site, fault=at_record(12, "after")) == KILLED
    first = site.run_dir / "journal" / "0001.jsonl"
    late = first.read_bytes().splitlines(keepends=True)[1:]
    assert resume(site) == 0
    with first.open("ab") as file:
        file.writelines(late)
    assert resume(site) == 0


DAMAGES: dict[str, Case] = {
    f"damage: {what}": damaged(harm)
    for what, harm in {
        "a success": lambda journal: flip_digit(journal, line_of(journal, "ok")),
        "the start of an attempt": lambda journal: flip_digit(journal, line_of(journal, "start")),
        "the driver": lambda journal: flip_digit(journal, line_of(journal, "run")),
        "the header": lambda journal: flip_digit(journal, 1),
        "a hole": make_hole,
    }.items()
} | {"late lines": late_lines}

CASES: dict[str, Case] = (
    RECORDS
    | KINDS
    | QUANTUM
    | INGESTER
    | RESUMED
    | VERSIONS
    | POWER_CUTS
    | DAMAGES
    | {"before the first record": before_the_first_record}
)

BEFORE: dict[str, tuple[Fault, dict[str, Any]]] = {
    "all done": (together(), {"clobber_outputs": True}),
    "one failed": (
        in_task(pair=raising(ValueError("no stars"))),
        {"clobber_outputs": True, "skip_existing": True},
    ),
}
"""What went wrong in an earlier run in the same RUN, and the options of the one that is killed."""

EXTENDED = {
    f"{kind}, {name}": driver_in_quantum(STAGES[name], **options)
    for kind, (_, options) in BEFORE.items()
    for name in list(STAGES)[::3]
}
