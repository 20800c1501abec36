"""What `qgexec.models.base.ExecutionModel` asks of models that order the work themselves.

Their jobs are journals that this test writes as a job would: what a label says happens, without a process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from benches import PATIENCE_S, Ended, endings, make_run
from handsystem import Hand, HandSystem
from hypothesis import HealthCheck, given
from hypothesis import settings as tuned
from hypothesis import strategies as st
from roundwork import BEGAN, ENDED, failed, returned, started, succeeded, write

from qgexec.batch.rounds import Round, last_round
from qgexec.batch.system import JobEnd, JobState, JobStatus
from qgexec.books.journal import last_epoch
from qgexec.books.rundir import RunDir
from qgexec.clustering.rules import ClusterRules
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import ModelError
from qgexec.events import (
    AttemptFailed,
    AttemptLost,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    Event,
)
from qgexec.models.base import ExecutionModel
from qgexec.models.batch import BatchModel
from qgexec.quantum import Outcome, OutcomeStatus
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler
from qgexec.testing import plan_of

Maker = Callable[[], ExecutionModel]


@pytest.fixture(params=[Hand], ids=["hand"])
def model(request: pytest.FixtureRequest, hand: HandSystem) -> type[BatchModel]:
    made: type[BatchModel] = request.param
    return made


@pytest.fixture
def maker(model: type[BatchModel]) -> Maker:
    """Makes a model that puts two quanta of a task into a job."""
    return lambda: model(settings=BatchSettings(clustering=ClusterRules(chunk_size=2)))  # type: ignore[call-arg]


@pytest.fixture
def single(model: type[BatchModel]) -> Maker:
    """Makes one that makes each quantum a job: chunks of a random graph may wait for each other."""
    return lambda: model(settings=BatchSettings())  # type: ignore[call-arg]


class Desk:
    """A model, and a scheduler that is told what it says: it raises at what is illegal."""

    def __init__(self, maker: Maker, hand: HandSystem, folder: Path, plan: Plan) -> None:
        self.plan, self.folder, self.maker = plan, folder, maker
        self.scheduler = Scheduler(plan, policy=Policy())
        self.events: list[Event] = []
        self.done: dict[tuple[int, int], set[int]] = {}
        """What had succeeded when a job ended, by round and job."""
        RunDir.create(folder)
        hand.runs = self.run_job
        self.begin()

    def begin(self) -> None:
        """Open a model, as a driver that comes now."""
        self.model = self.maker()
        self.model.open(replace(make_run(self.folder), ledger=self.scheduler))

    def take(self, events: list[Event]) -> None:
        """Apply what a model said."""
        for event in events:
            self.scheduler.apply(event)
        self.events += events

    def work_off(self) -> None:
        """Hand over what is left, again and again, until nothing is."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.scheduler.finished:
            assert time.monotonic() < deadline, self.events
            if self.model.capacity().cores:
                self.model.start(self.scheduler.left())
            self.take(list(self.model.wait(1.0)))

    def run_job(self, batch_round: Round, job: int) -> JobStatus:
        """Do what the labels of a job's quanta say, as far as their prerequisites have succeeded."""
        done = {event.index for event in self.events if isinstance(event, AttemptSucceeded | AttemptSkipped)}
        for earlier in range(job):
            done |= set(self.done.get((batch_round.number, earlier), ()))
        said: list[Event] = [BEGAN]
        for index in batch_round.jobs.quanta(job):
            if not done.issuperset(self.plan.prerequisites(index)):
                continue
            label, number = self.plan.label(index), self.scheduler.attempts(index) + 1
            said.append(started(index, number))
            if label == "die":
                break
            said.append(_ending(label, index, number))
            if isinstance(said[-1], AttemptSucceeded | AttemptSkipped):
                done.add(index)
        else:
            said.append(ENDED)
        self.done[batch_round.number, job] = done
        folder = batch_round.journal(job)
        folder.mkdir(parents=True)
        write(batch_round, job, said, after=last_epoch(folder))
        return JobStatus(JobState.ENDED, "", JobEnd.EXITED, 0)


def _ending(label: str, index: int, number: int) -> Event:
    match label:
        case "fail":
            return failed(index, number)
        case "flaky" if number == 1:
            return failed(index, number, retried=True)
        case "back" if number == 1:
            return returned(index, number)
        case "skip":
            return AttemptSkipped(2.0, Outcome(index, number, OutcomeStatus.SKIPPED, 1.0, 2.0))
        case _:
            return succeeded(index, number)


def ends(events: list[Event]) -> list[Ended]:
    return endings(events)


def test_it_is_an_execution_model(maker: Maker) -> None:
    """It has all that the seam asks for, and says that it orders the work."""
    model = maker()
    assert isinstance(model, ExecutionModel)
    assert (model.facts.orders_itself, model.facts.survives_driver) == (True, True)


def test_each_attempt_that_is_started_ends_once(maker: Maker, hand: HandSystem, tmp_path: Path) -> None:
    """Failures are values; what may be tried again is, and the rest goes on."""
    labels = ["isr", "fail", "skip", "flaky", "back", "isr"]
    plan = plan_of([f"{label}:{n}" for n, label in enumerate(labels)])
    desk = Desk(maker, hand, tmp_path / "run", plan)
    desk.work_off()
    begun = Counter((e.index, e.attempt) for e in desk.events if isinstance(e, AttemptStarted))
    over = Counter((e.index, e.attempt) for e in ends(desk.events))
    assert begun == over
    assert set(begun.values()) == {1}
    last = {event.index: type(event) for event in ends(desk.events)}
    kinds = [AttemptSucceeded, AttemptFailed, AttemptSkipped, *[AttemptSucceeded] * 3]
    assert [last[plan_index] for plan_index in range(6)] == kinds


def test_it_has_room_only_while_nothing_is_in_its_hands(
    maker: Maker, hand: HandSystem, tmp_path: Path
) -> None:
    """From the hand-over to the end of its last job there is no capacity."""
    desk = Desk(maker, hand, tmp_path / "run", plan_of(["isr:1", "isr:2", "isr:3"]))
    assert desk.model.capacity().cores == 1
    desk.model.start(desk.scheduler.left())
    assert desk.model.capacity().cores == 0
    desk.work_off()
    while not desk.model.capacity().cores:
        desk.take(list(desk.model.wait(1.0)))
    assert len(hand.submitted) == 1


def test_wait_with_nothing_to_do(maker: Maker, hand: HandSystem, tmp_path: Path) -> None:
    """Waiting for nothing ends, and nothing has happened."""
    desk = Desk(maker, hand, tmp_path / "run", plan_of(["isr"]))
    assert list(desk.model.wait(0.0)) == []
    assert list(desk.model.close(cancel=True)) == []


def test_cancel_gives_back(maker: Maker, hand: HandSystem, tmp_path: Path) -> None:
    """What had begun and not ended is returned by closing, once; its jobs are gone."""
    desk = Desk(maker, hand, tmp_path / "run", plan_of(["die", "isr"], [(0, 1)]))
    desk.model.start(desk.scheduler.left())
    hand.pause = True
    pending = last_round(RunDir(tmp_path / "run"))
    assert pending is not None
    desk.run_job(pending, 0)
    desk.take(list(desk.model.close(cancel=True)))
    assert [(type(e), e.index) for e in ends(desk.events)] == [(AttemptReturned, 0)]
    assert list(desk.model.close(cancel=True)) == []
    assert set(hand.cancelled) == set(hand.submitted)


def test_closing_without_cancel_leaves_it_to_the_next(maker: Maker, hand: HandSystem, tmp_path: Path) -> None:
    """The next that opens it is told what became of all."""
    desk = Desk(maker, hand, tmp_path / "run", plan_of(["isr:1", "isr:2", "isr:3"]))
    desk.model.start(desk.scheduler.left())
    desk.take(list(desk.model.close(cancel=False)))
    assert list(desk.model.close(cancel=False)) == []
    desk.begin()
    assert desk.model.capacity().cores == 0
    desk.work_off()
    assert (len(hand.submitted), hand.cancelled) == (1, [])
    assert len(ends(desk.events)) == 3


def test_a_job_that_dies_is_an_event(maker: Maker, hand: HandSystem, tmp_path: Path) -> None:
    """The attempt is lost, as often as the policy has it, and has failed then; the others go on."""
    desk = Desk(maker, hand, tmp_path / "run", plan_of(["isr", "die"]))
    desk.work_off()
    losses = [event for event in desk.events if isinstance(event, AttemptLost)]
    assert [event.retried for event in losses] == [True, True, True, False]
    assert len(hand.submitted) == 4


def test_close_before_open(maker: Maker) -> None:
    """A model that was never opened can be closed."""
    assert list(maker().close(cancel=True)) == []


def test_start_before_open(maker: Maker) -> None:
    """It is an error with a sentence."""
    with pytest.raises(ModelError, match="is not open"):
        maker().start([])


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, int]]]:
    """Random graphs of up to 12 quanta, with random failures."""
    n = draw(st.integers(1, 12))
    kinds = ["isr", "isr", "fail", "skip", "flaky", "back", "die"]
    labels = draw(st.lists(st.sampled_from(kinds), min_size=n, max_size=n))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] < pair[1])
    edges = draw(st.lists(pairs, max_size=2 * n, unique=True)) if n > 1 else []
    return [f"{label}:{i}" for i, label in enumerate(labels)], edges


def test_random_graphs(single: Maker, hand: HandSystem, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the graph, the scheduler accepts every event of the model, and the run comes to its end."""

    @tuned(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(graphs())
    def check(graph: tuple[list[str], list[tuple[int, int]]]) -> None:
        desk = Desk(single, hand, tmp_path_factory.mktemp("any") / "run", plan_of(*graph))
        desk.work_off()
        assert endings(desk.model.close(cancel=True)) == []
        begun = Counter((e.index, e.attempt) for e in desk.events if isinstance(e, AttemptStarted))
        assert begun == Counter((e.index, e.attempt) for e in ends(desk.events))

    check()
