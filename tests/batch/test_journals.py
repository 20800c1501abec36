"""The journals of jobs as news: each event once, none before what it follows from, however files turn up."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgexec.batch.journals import JobJournals
from qgexec.batch.planning import make_jobs
from qgexec.batch.producers import job_successes
from qgexec.batch.rounds import Round
from qgexec.clustering.clusters import Clusters
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import JournalError
from qgexec.events import AttemptEvent, AttemptSucceeded, Event
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State
from qgexec.testing import plan_of
from tests.kit.batch.roundwork import (
    BEGAN,
    ENDED,
    PLAN,
    attempt,
    failed,
    jobs_of,
    lost,
    returned,
    round_of,
    started,
    succeeded,
    write,
)
from tests.kit.runs.damage import flip_digit

# Jobs: 0 has isr 1 and 2, 1 has isr 3, 2 has coadd (index 3), 3 has stack (index 4).


class Desk:
    """A round's journals, and a scheduler that is told what they say: it raises at what is illegal."""

    def __init__(self, batch_round: Round, plan: Plan) -> None:
        self.round, self.plan = batch_round, plan
        self.scheduler = Scheduler(plan, policy=Policy())
        self.heard: list[Event] = []
        self.begin()

    def begin(self) -> None:
        """Begin to read, as a driver does that takes the run in hand now."""
        self.journals = JobJournals(self.round, self.plan, self.scheduler.state, self.scheduler.attempts)

    def read(self) -> list[Event]:
        """Apply what is new, and return it."""
        news = self.journals.read()
        for event in news:
            self.scheduler.apply(event)
        self.heard += news
        return news


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(round_of(tmp_path / "run", jobs_of(PLAN)), PLAN)


def test_nothing_has_begun(desk: Desk) -> None:
    """No journal is no news."""
    assert desk.read() == []
    assert (desk.journals.are_over, desk.journals.has_moved, len(desk.journals.running)) == (False, False, 0)


def test_each_event_once(desk: Desk) -> None:
    """What was read is not read again; only what is about attempts is news."""
    write(desk.round, 0, [BEGAN, started(0), succeeded(0), started(1), succeeded(1), ENDED])
    assert desk.read() == [started(0), succeeded(0), started(1), succeeded(1)]
    assert desk.read() == []


def test_what_waits_in_a_job(desk: Desk) -> None:
    """A job has one worker: the oldest of what it was sent runs, the others wait."""
    write(desk.round, 0, [BEGAN, started(1), started(0)])
    write(desk.round, 1, [BEGAN, started(2)])
    desk.read()
    assert (desk.journals.running, desk.journals.waiting()) == ((1, 0, 2), {0})


def test_a_child_seen_before_its_parents(desk: Desk) -> None:
    """Its events wait until those of all its parents have been seen."""
    write(desk.round, 2, [BEGAN, started(3), succeeded(3), ENDED])
    write(desk.round, 0, [BEGAN, started(0), succeeded(0), started(1), succeeded(1), ENDED])
    assert desk.read() == [started(0), succeeded(0), started(1), succeeded(1)]
    write(desk.round, 1, [BEGAN, started(2), succeeded(2), ENDED])
    assert desk.read() == [started(2), succeeded(2), started(3), succeeded(3)]


def test_a_line_that_is_being_written(desk: Desk) -> None:
    """A torn last line is none yet; it is read when it is whole."""
    path = write(desk.round, 1, [BEGAN, started(2), succeeded(2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert desk.read() == [started(2)]
    assert desk.journals.running == (2,)
    path.write_bytes(whole)
    assert desk.read() == [succeeded(2)]
    assert len(desk.journals.running) == 0


def test_a_job_that_has_only_just_begun(desk: Desk) -> None:
    """An empty folder, an empty file, half a header: no news, no error."""
    folder = desk.round.journal(1)
    folder.mkdir(parents=True)
    assert desk.read() == []
    (folder / "0001.jsonl").touch()
    assert desk.read() == []
    (folder / "0001.jsonl").write_bytes(b'{"format":"qge')
    assert desk.read() == []


def test_several_tries(desk: Desk) -> None:
    """A next try goes on where the one before was killed."""
    write(desk.round, 0, [BEGAN, started(0), succeeded(0), started(1)])
    assert desk.read() == [started(0), succeeded(0), started(1)]
    write(desk.round, 0, [lost(1), BEGAN, started(1, 2), failed(1, 2, retried=True), started(1, 3)], after=1)
    assert desk.read() == [lost(1), started(1, 2), failed(1, 2, retried=True), started(1, 3)]
    write(desk.round, 0, [lost(1, 3), BEGAN, started(1, 4), succeeded(1, 4), ENDED], after=2)
    assert desk.read() == [lost(1, 3), started(1, 4), succeeded(1, 4)]
    assert desk.journals.attempts(1) == 4


def test_the_end_of_a_try_seen_after_the_next(desk: Desk) -> None:
    """What the next try says waits for it, or follows without it; nothing is lost, nothing comes twice."""
    first = write(desk.round, 0, [BEGAN, started(0), succeeded(0), started(1)])
    second = write(desk.round, 0, [lost(1), BEGAN, started(1, 2), succeeded(1, 2), ENDED], after=1)
    whole = first.read_bytes()
    lines = whole.splitlines(keepends=True)
    first.write_bytes(b"".join(lines[:3]))
    assert desk.read() == [started(0)]
    first.write_bytes(whole)
    assert second.stat().st_size
    assert desk.read() == [succeeded(0), started(1), lost(1), started(1, 2), succeeded(1, 2)]
    assert desk.read() == []


def test_done_again_by_a_try_that_did_not_see_it(desk: Desk) -> None:
    """The first success counts."""
    write(desk.round, 1, [BEGAN, started(2), succeeded(2)])
    assert desk.read() == [started(2), succeeded(2)]
    write(desk.round, 1, [lost(2), BEGAN, started(2, 2), succeeded(2, 2), ENDED], after=1)
    assert desk.read() == []
    assert desk.journals.are_over is False


def test_what_is_known_already_is_no_news(desk: Desk) -> None:
    """A driver that begins to read hears what no earlier one has recorded."""
    path = write(desk.round, 0, [BEGAN, started(0), succeeded(0), started(1)])
    desk.read()
    desk.begin()
    assert (desk.read(), sorted(desk.journals.running), desk.journals.attempts(1)) == ([], [1], 1)
    with path.open("ab") as file:
        file.write(write(desk.round, 3, [succeeded(1)]).read_bytes().splitlines(keepends=True)[1])
    assert desk.read() == [succeeded(1)]


def test_failed_prerequisites_have_no_children(desk: Desk) -> None:
    """What follows from a quantum that failed never comes."""
    write(desk.round, 0, [BEGAN, started(0), failed(0), started(1), succeeded(1), ENDED])
    write(desk.round, 2, [BEGAN, started(3), succeeded(3), ENDED])
    assert desk.read() == [started(0), failed(0), started(1), succeeded(1)]
    assert desk.read() == []


def test_a_loss_that_somebody_else_has_told(desk: Desk) -> None:
    """What the driver said of a job that went without a word is not contradicted later."""
    path = write(desk.round, 1, [BEGAN, started(2), succeeded(2)])
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    desk.read()
    desk.scheduler.apply(lost(2))
    desk.journals.forget(2)
    path.write_bytes(whole)
    assert desk.read() == []


def test_last_words(desk: Desk) -> None:
    """All have said their last word when each job's last try has closed its books."""
    for job, own in enumerate([(0, 1), (2,), (3,), (4,)]):
        assert not desk.journals.are_over
        events = [event for index in own for event in (started(index), succeeded(index))]
        write(desk.round, job, [BEGAN, *events, ENDED])
        desk.read()
    assert bool(desk.journals.are_over)
    write(desk.round, 3, [BEGAN], after=1)
    desk.read()
    assert not desk.journals.are_over


def test_whether_anything_has_moved(desk: Desk) -> None:
    """Beginning and giving back is no progress; a failure is."""
    write(desk.round, 1, [BEGAN, started(2), returned(2)])
    desk.read()
    assert not desk.journals.has_moved
    write(desk.round, 1, [BEGAN, started(2, 2), failed(2, 2)], after=1)
    desk.read()
    assert bool(desk.journals.has_moved)
    desk.begin()
    desk.read()
    assert bool(desk.journals.has_moved), "also where all of it is known"


def test_damage_is_named(desk: Desk) -> None:
    """What is no line of a journal: file and line; all is there once the file is whole again."""
    path = write(desk.round, 1, [BEGAN, started(2), succeeded(2)])
    whole = path.read_bytes()
    path.write_bytes(whole + b"rubbish\n")
    with pytest.raises(JournalError, match=r"0001\.jsonl:5: damaged line"):
        desk.read()
    path.write_bytes(whole)
    assert desk.read() == [started(2), succeeded(2)]


OWN = [
    BEGAN,
    started(0),
    failed(0, retried=True),
    started(0, 2),
    succeeded(0, 2),
    started(1),
    succeeded(1),
    ENDED,
]
"""What the first job says of its two quanta."""


@pytest.mark.parametrize("number", range(1, len(OWN) + 2))
def test_a_damaged_line_is_named_and_passed_over(
    desk: Desk, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Whichever it is, what else the job says is passed on, and is legal; no success is made up."""
    path = write(desk.round, 0, OWN)
    flip_digit(path, number)
    news = desk.read()
    assert f"{path}:{number}: damaged line" in caplog.text
    assert {repr(event) for event in news if isinstance(event, AttemptSucceeded)} <= set(map(repr, OWN))
    assert desk.scheduler.state(0) is (State.RUNNING if number == 6 else State.SUCCEEDED)
    assert desk.scheduler.state(1) is (State.RUNNING if number == 8 else State.SUCCEEDED)
    assert desk.scheduler.attempts(0) == 2
    assert desk.journals.are_over is False
    assert desk.read() == []


def test_what_follows_from_a_damaged_line(tmp_path: Path) -> None:
    """In one job it is dropped; what the next try says of the quantum that the line was about is not."""
    plan = plan_of(["a:1", "b:1"], [(0, 1)])
    clusters = Clusters.of(plan, np.arange(2), np.zeros(2, dtype=int), ["a"], np.zeros(1, dtype=int))
    jobs = make_jobs(clusters, [attempt(plan, index) for index in range(2)], BatchSettings())
    desk = Desk(round_of(tmp_path / "run", jobs), plan)
    flip_digit(write(desk.round, 0, [BEGAN, started(0), succeeded(0), started(1), succeeded(1)]), 4)
    write(desk.round, 0, [lost(0), BEGAN, started(0, 2), succeeded(0, 2), ENDED], after=1)
    assert desk.read() == [started(0), lost(0), started(0, 2), succeeded(0, 2)]
    assert desk.scheduler.state(1) is State.READY


def test_what_has_only_seemed_to_be_damaged(desk: Desk) -> None:
    """Network file systems show holes where lines are that another machine has just written."""
    path = write(desk.round, 1, [BEGAN, started(2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-30] + b"\0" * 5 + whole[-25:])
    assert desk.read() == []
    later = write(desk.round, 3, [succeeded(2)]).read_bytes().splitlines(keepends=True)[1]
    path.write_bytes(whole + later)
    assert desk.read() == [started(2), succeeded(2)]


def test_late_lines_of_an_earlier_try(desk: Desk) -> None:
    """What it wrote after the next one had read its journal is no part of the run, and ruins nothing."""
    first = write(desk.round, 1, [BEGAN, started(2)])
    write(desk.round, 1, [lost(2), BEGAN, started(2, 2), failed(2, 2), ENDED], after=1)
    late = write(desk.round, 3, [succeeded(2), ENDED]).read_bytes().splitlines(keepends=True)[1:]
    with first.open("ab") as file:
        file.writelines(late)
    assert desk.read() == [started(2), lost(2), started(2, 2), failed(2, 2)]
    assert job_successes(desk.round, 1) == {}


def test_strange_folders_are_no_jobs(desk: Desk) -> None:
    """Whatever else lies there, or a number that no job has."""
    for name in ("000/notes", "000/000099", "lost+found"):
        (desk.round.folder / "journals" / name).mkdir(parents=True)
    assert desk.read() == []


def test_files_that_are_as_they_were_are_not_opened(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred thousand jobs only those are read that have said something."""
    write(desk.round, 0, [BEGAN, started(0)])
    write(desk.round, 1, [BEGAN, started(2)])
    desk.read()
    monkeypatch.delattr("qgexec.batch.journals.read_events")
    assert desk.read() == []


# --- anything that can happen ---------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[Plan, list[int], dict[tuple[int, int], list[Event]]]:
    """A plan, where it is cut into jobs, and what the tries of the jobs say, by job and try."""
    n = draw(st.integers(1, 9))
    pairs = [(a, b) for b in range(n) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=2 * n)) if pairs else []
    plan = plan_of([f"q:{index}" for index in range(n)], edges)
    job_of, jobs = [], 0
    for _ in range(n):
        job_of.append(jobs)
        jobs += draw(st.booleans())
    files: dict[tuple[int, int], list[Event]] = {}
    done: set[int] = set()
    for job in range(job_of[-1] + 1):
        number = 1
        files[job, number] = [BEGAN]
        for index in (index for index in range(n) if job_of[index] == job):
            attempts = 0
            while done.issuperset(plan.prerequisites(index)) and index not in done:
                attempts += 1
                files[job, number].append(started(index, attempts))
                what = draw(st.sampled_from(["succeed"] * 4 + ["fail", "retry", "return", "killed"]))
                if what == "killed":
                    number += 1
                    files[job, number] = [lost(index, attempts), BEGAN]
                    continue
                made = {"succeed": succeeded, "fail": failed, "return": returned}.get(what)
                files[job, number].append(
                    made(index, attempts) if made is not None else failed(index, attempts, retried=True)
                )
                if what == "succeed":
                    done.add(index)
                if what == "fail":
                    break
        files[job, number].append(ENDED)
    return plan, job_of, files


@settings(max_examples=150)
@given(histories(), st.data())
def test_whatever_is_seen_when(
    tmp_path_factory: pytest.TempPathFactory,
    history: tuple[Plan, list[int], dict[tuple[int, int], list[Event]]],
    data: st.DataObject,
) -> None:
    """In whatever order parts of files turn up: all news is legal, complete in the end, and comes once."""
    plan, job_of, files = history
    everything = np.arange(len(plan))
    clusters = Clusters.of(plan, everything, np.asarray(job_of), ["q"], np.zeros(job_of[-1] + 1, dtype=int))
    jobs = make_jobs(clusters, [attempt(plan, index) for index in range(len(plan))], BatchSettings())
    desk = Desk(round_of(tmp_path_factory.mktemp("any") / "run", jobs), plan)
    texts: dict[Path, bytes] = {}
    for (job, number), events in files.items():
        path = write(desk.round, job, events, after=number - 1)
        texts[path] = path.read_bytes()
    for path in texts:
        path.unlink()
    for _ in range(data.draw(st.integers(0, 12), label="looks")):
        path = data.draw(st.sampled_from(sorted(texts)), label="file")
        earlier = path.with_name(f"{int(path.stem) - 1:04d}.jsonl")
        if path.stem != "0001" and not earlier.exists():
            continue  # a folder shows names in the order in which they were made
        seen = path.stat().st_size if path.exists() else 0
        path.write_bytes(texts[path][: data.draw(st.integers(seen, len(texts[path])), label="bytes")])
        desk.read()
        if data.draw(st.booleans(), label="another driver"):
            desk.begin()
    for path, text in texts.items():
        path.write_bytes(text)
    while desk.read():
        pass
    said = [event for events in files.values() for event in events if isinstance(event, AttemptEvent)]
    assert Counter(map(repr, desk.heard)) == Counter(map(repr, said))
    assert desk.journals.are_over
