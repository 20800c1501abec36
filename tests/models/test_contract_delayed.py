"""What `qgexec.models.base.ExecutionModel` asks of models that order the work themselves.

Each test runs over all of them: one over a batch system that does as it is told, and the real ones over
stand-ins of what they call. Jobs are journals that this test writes as a job would: what a label
says happens, without a process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tuned
from hypothesis import strategies as st

from qgexec.batch.rounds import Round, last_round
from qgexec.batch.system import JobStatus
from qgexec.books.journal import last_epoch, read_events
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
from qgexec.models.htcondor import HTCondor
from qgexec.models.slurm import Slurm
from qgexec.quantum import Outcome, OutcomeStatus
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State
from qgexec.testing import plan_of
from tests.kit.batch.condorstandin import CondorStandIn, condor_standin
from tests.kit.batch.handsystem import Hand, be_quick, hand_system
from tests.kit.batch.roundwork import BEGAN, ENDED, failed, lost, returned, started, succeeded, write
from tests.kit.batch.slurmstandin import slurm_standin
from tests.kit.batch.standins import AGAIN, Entrusted, StandIn, done, killed, machine_lost, removed, runs_on
from tests.kit.runs.benches import PATIENCE_S, Ended, endings, make_run

Maker = Callable[[], BatchModel]

N_LOSSES = 3
"""How often a quantum is tried again after its job was lost, if nothing else is said."""


@pytest.fixture(params=["hand", "htcondor", "slurm"])
def entrusted(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Entrusted]:
    """A model, and the batch system that it leaves its quanta to."""
    be_quick(monkeypatch)
    match request.param:
        case "hand":
            with hand_system(monkeypatch) as hand:
                hand.tries_each = 6
                yield Entrusted(hand, Hand)
        case "htcondor":
            with condor_standin(monkeypatch) as condor:
                yield Entrusted(condor, HTCondor)
        case _:
            with slurm_standin(tmp_path / "slurm", monkeypatch) as slurm:
                yield Entrusted(slurm, Slurm)


@pytest.fixture
def system(entrusted: Entrusted) -> StandIn:
    return entrusted.system


@pytest.fixture
def maker(entrusted: Entrusted) -> Maker:
    """Makes a model that puts two quanta of a task into a job."""
    return lambda: entrusted.model(
        settings=BatchSettings(clustering=ClusterRules(chunk_size=2), visibility_s=0.0)  # type: ignore[call-arg]
    )


@pytest.fixture
def single(entrusted: Entrusted) -> Maker:
    """Makes one that makes each quantum a job: chunks of a random graph may wait for each other."""
    return lambda: entrusted.model(settings=BatchSettings(visibility_s=0.0))  # type: ignore[call-arg]


class Desk:
    """A model, and a scheduler that is told what it says: it raises at what is illegal."""

    def __init__(self, maker: Maker, system: StandIn, folder: Path, plan: Plan) -> None:
        self.plan, self.folder, self.maker, self.system = plan, folder, maker, system
        self.scheduler = Scheduler(plan, policy=Policy())
        self.events: list[Event] = []
        self.broken: list[BaseException] = []
        RunDir.create(folder)
        system.runs = self.run_job
        self.begin()

    def begin(self) -> None:
        """Open a model, as a driver that comes now."""
        self.model = self.maker()
        self.model.open(replace(make_run(self.folder), ledger=self.scheduler))

    def take(self, events: Iterable[Event]) -> None:
        """Apply what a model said."""
        for event in events:
            self.scheduler.apply(event)
            self.events.append(event)

    def start(self) -> None:
        """Hand over what is left."""
        self.model.start(self.scheduler.left())

    def until(self, is_so: Callable[[], object]) -> None:
        """Wait as the loop does, until something is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            if self.broken:
                raise self.broken[0]
            assert time.monotonic() < deadline, self.events
            self.take(self.model.wait(0.1))

    def work_off(self) -> None:
        """Hand over what is left, again and again, until nothing is."""
        while not self.scheduler.finished:
            if self.model.capacity().cores:
                self.start()
            self.until(lambda: self.model.capacity().cores or self.scheduler.finished)

    def states(self) -> list[State]:
        return [self.scheduler.state(index) for index in range(len(self.plan))]

    def run_job(self, batch_round: Round, job: int) -> JobStatus:
        """Do a try of a job: what the labels of its quanta say, as far as their prerequisites allow."""
        try:
            return self._try(batch_round, job)
        except BaseException as error:
            self.broken.append(error)
            raise

    def _try(self, batch_round: Round, job: int) -> JobStatus:
        parents = batch_round.jobs.parents(job)
        too_early = self.system.left(batch_round.name).intersection(parents)
        assert not too_early, f"job {job} began before {too_early} had ended"
        good = {event.index for event in self.events if isinstance(event, Succeeded)}
        for other in (*parents, job):
            good |= {event.index for event in _said(batch_round, other) if isinstance(event, Succeeded)}
        said: list[Event] = [BEGAN]
        over, numbers = self._before(batch_round, job, said)
        status = done(0)
        for index in batch_round.jobs.quanta(job):
            if index in over or not good.issuperset(self.plan.prerequisites(index)):
                continue
            label, number = self.plan.label(index), numbers[index] + 1
            said.append(started(index, number))
            how = _how_it_is_cut_off(label, number)
            if how is not None:
                status = how
                break
            said.append(_ending(label, index, number))
            if isinstance(said[-1], Succeeded):
                good.add(index)
            if said[-1] == returned(index, number) or getattr(said[-1], "retried", False):
                status = done(AGAIN)
        else:
            said.append(ENDED)
        folder = batch_round.journal(job)
        folder.mkdir(parents=True, exist_ok=True)
        write(batch_round, job, said, after=last_epoch(folder))
        return status

    def _before(self, batch_round: Round, job: int, said: list[Event]) -> tuple[set[int], dict[int, int]]:
        """Return what earlier tries have brought to an end, and the attempts so far; say what they left."""
        over: set[int] = set()
        numbers = {index: self.scheduler.attempts(index) for index in batch_round.jobs.quanta(job)}
        in_the_air: dict[int, int] = {}
        for event in _said(batch_round, job):
            if isinstance(event, AttemptStarted):
                in_the_air[event.index] = event.attempt
                numbers[event.index] = max(event.attempt, numbers[event.index])
            elif isinstance(event, Ended):
                in_the_air.pop(event.index)
                if not isinstance(event, AttemptReturned) and not getattr(event, "retried", False):
                    over.add(event.index)
        for index, number in in_the_air.items():
            said.append(lost(index, number, retried=number <= N_LOSSES))
            if number > N_LOSSES:
                over.add(index)
        return over, numbers


Succeeded = AttemptSucceeded | AttemptSkipped


def _said(batch_round: Round, job: int) -> list[Event]:
    """Return what a job has said in all its tries."""
    folder = batch_round.journal(job)
    return list(read_events(folder)) if folder.exists() else []


def _how_it_is_cut_off(label: str, number: int) -> JobStatus | None:
    """Return how a try ends that executes a quantum of this kind, if it does not end by itself."""
    match label:
        case "die":
            return killed()
        case "stay":
            return runs_on()
        case "node" if number == 1:
            return machine_lost()
        case "gone" if number == 1:
            return removed()
        case _:
            return None


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


def in_the_end(plan: Plan) -> list[State]:
    """Return where each quantum is when a run has ended, whatever ran it."""
    states: list[State] = []
    for index in range(len(plan)):
        if any(
            states[before] not in (State.SUCCEEDED, State.SKIPPED) for before in plan.prerequisites(index)
        ):
            states.append(State.BLOCKED)
        else:
            ends = {"fail": State.FAILED, "die": State.FAILED, "skip": State.SKIPPED}
            states.append(ends.get(plan.label(index), State.SUCCEEDED))
    return states


def test_it_is_an_execution_model(maker: Maker) -> None:
    """It has all that the seam asks for, and says that it orders the work."""
    model = maker()
    assert isinstance(model, ExecutionModel)
    assert (model.facts.orders_itself, model.facts.survives_driver) == (True, True)


def balance(desk: Desk) -> None:
    """Check that each attempt that was begun has come to one end."""
    begun = Counter(
        (event.index, event.attempt) for event in desk.events if isinstance(event, AttemptStarted)
    )
    assert begun == Counter((event.index, event.attempt) for event in endings(desk.events))
    assert set(begun.values()) <= {1}


def test_each_attempt_that_is_started_ends_once(maker: Maker, system: StandIn, tmp_path: Path) -> None:
    """Failures are values; what may be tried again is, and the rest goes on."""
    labels = ["isr", "fail", "skip", "flaky", "back", "isr", "node", "gone"]
    desk = Desk(maker, system, tmp_path / "run", plan_of([f"{label}:{n}" for n, label in enumerate(labels)]))
    desk.work_off()
    balance(desk)
    last = {event.index: type(event) for event in endings(desk.events)}
    kinds = [AttemptSucceeded, AttemptFailed, AttemptSkipped, *[AttemptSucceeded] * 5]
    assert [last[index] for index in range(len(labels))] == kinds


def test_it_has_room_only_while_nothing_is_in_its_hands(
    maker: Maker, system: StandIn, tmp_path: Path
) -> None:
    """From the hand-over to the end of its last job there is no capacity."""
    desk = Desk(maker, system, tmp_path / "run", plan_of(["isr:1", "isr:2", "isr:3"]))
    assert desk.model.capacity().cores == 1
    desk.start()
    assert desk.model.capacity().cores == 0
    desk.work_off()
    desk.until(lambda: desk.model.capacity().cores)
    (name,) = system.submitted
    assert not system.left(name)


def test_wait_with_nothing_to_do(maker: Maker, system: StandIn, tmp_path: Path) -> None:
    """Waiting for nothing ends, and nothing has happened."""
    desk = Desk(maker, system, tmp_path / "run", plan_of(["isr"]))
    assert list(desk.model.wait(0.0)) == []
    assert list(desk.model.close(cancel=True)) == []


def test_cancel_gives_back(maker: Maker, system: StandIn, tmp_path: Path) -> None:
    """What had begun and not ended is returned by closing, once; its jobs are gone."""
    desk = Desk(maker, system, tmp_path / "run", plan_of(["stay", "isr"], [(0, 1)]))
    desk.start()
    desk.until(lambda: desk.events)
    (name,) = system.submitted
    assert system.left(name) == {0, 1}
    desk.take(desk.model.close(cancel=True))
    assert [(type(event), event.index) for event in endings(desk.events)] == [(AttemptReturned, 0)]
    assert list(desk.model.close(cancel=True)) == []
    assert set(system.cancelled) == {name}
    assert not system.left(name)


def test_closing_without_cancel_leaves_it_to_the_next(maker: Maker, system: StandIn, tmp_path: Path) -> None:
    """The next that opens it is told what became of all."""
    desk = Desk(maker, system, tmp_path / "run", plan_of(["isr:1", "isr:2", "isr:3"]))
    desk.start()
    desk.take(desk.model.close(cancel=False))
    assert list(desk.model.close(cancel=False)) == []
    desk.begin()
    assert desk.model.capacity().cores == 0
    desk.work_off()
    assert (len(system.submitted), system.cancelled) == (1, [])
    assert len(endings(desk.events)) == 3


def test_a_job_that_dies_is_an_event(maker: Maker, system: StandIn, tmp_path: Path) -> None:
    """The attempt is lost, as often as the policy has it, and has failed then; the others go on.

    How many of these attempts are in one round is a matter of the batch system.
    """
    desk = Desk(maker, system, tmp_path / "run", plan_of(["isr", "die"]))
    desk.work_off()
    losses = [event for event in desk.events if isinstance(event, AttemptLost)]
    assert [event.retried for event in losses] == [True] * N_LOSSES + [False]
    assert len(system.submitted) == -(-len(losses) // system.n_runs)
    assert desk.states() == in_the_end(desk.plan)


def test_close_before_open(maker: Maker) -> None:
    """A model that was never opened can be closed."""
    assert list(maker().close(cancel=True)) == []


def test_start_before_open(maker: Maker) -> None:
    """It is an error with a sentence."""
    with pytest.raises(ModelError, match="is not open"):
        maker().start([])


def test_a_job_of_which_nothing_runs_stops_nobody_else(
    single: Maker, system: StandIn, tmp_path: Path
) -> None:
    """Behind a job that was removed its own children come later, and all others at once."""
    quanta = ["gone:1", "isr:2", "calibrate:1", "calibrate:2", "stack"]
    plan = plan_of(quanta, [(0, 2), (1, 3), (2, 4), (3, 4)])
    desk = Desk(single, system, tmp_path / "run", plan)
    desk.work_off()
    balance(desk)
    assert desk.states() == [State.SUCCEEDED] * 5
    ended = [(event.index, event.attempt) for event in endings(desk.events)]
    assert sorted(ended) == [(0, 1), (0, 2), (1, 1), (2, 1), (3, 1), (4, 1)]


# --- what no real batch system does on demand -----------------------------------------------------------


@pytest.fixture
def halfway(maker: Maker, system: StandIn, tmp_path: Path) -> Desk:
    """A round of three jobs, of which one has ended."""
    desk = Desk(maker, system, tmp_path / "run", plan_of([f"isr:{n}" for n in range(6)]))
    desk.start()
    desk.until(lambda: endings(desk.events))
    return desk


@pytest.mark.parametrize("trouble", ["silent", "garbled"])
def test_it_does_not_answer_for_a_while(
    halfway: Desk, system: StandIn, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    """Nothing is concluded from silence, nor from what nobody understands; it is said once."""
    setattr(system, trouble, True)
    for _ in range(10):
        halfway.take(halfway.model.wait(0.02))
    assert halfway.model.capacity().cores == 0
    assert not any(isinstance(event, AttemptLost) for event in halfway.events)
    assert sum("go on unseen" in record.message for record in caplog.records) == 1
    setattr(system, trouble, False)
    halfway.work_off()
    balance(halfway)
    assert (len(system.submitted), len(endings(halfway.events))) == (1, 6)


def test_it_forgets_jobs_that_have_ended(single: Maker, system: StandIn, tmp_path: Path) -> None:
    """What they wrote counts; how one ended that could not say so nobody knows, and it is a loss."""
    system.forgets = True
    desk = Desk(single, system, tmp_path / "run", plan_of(["isr:1", "gone", "isr:2"], [(0, 1)]))
    desk.work_off()
    balance(desk)
    assert [(type(event), event.attempt) for event in endings(desk.events) if event.index == 1] == [
        (AttemptLost, 1),
        (AttemptSucceeded, 2),
    ]
    assert desk.states() == [State.SUCCEEDED] * 3


def test_it_loses_a_job(maker: Maker, system: StandIn, tmp_path: Path) -> None:
    """What was to be done in a job that never began, and that nobody knows, is done in the next round."""
    system.loses = {1}
    desk = Desk(maker, system, tmp_path / "run", plan_of([f"isr:{n}" for n in range(6)]))
    desk.start()
    desk.until(lambda: desk.model.capacity().cores)
    assert sorted(event.index for event in endings(desk.events)) == [0, 1, 4, 5]
    system.loses = set()
    desk.work_off()
    balance(desk)
    assert desk.states() == [State.SUCCEEDED] * 6
    assert len(system.submitted) == 2


@pytest.mark.parametrize("entrusted", ["htcondor"], indirect=True)
def test_it_misses_the_end_of_a_job(
    single: Maker, entrusted: Entrusted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that waits for a job that is long gone is removed, and the next one does what is left."""
    assert isinstance(entrusted.system, CondorStandIn)
    entrusted.system.misses = {0}
    desk = Desk(single, entrusted.system, tmp_path / "run", plan_of(["isr:1", "isr:2", "stack"], [(0, 2)]))
    desk.start()
    desk.until(lambda: len(endings(desk.events)) == 2)
    desk.take(desk.model.wait(0.1))
    assert desk.model.capacity().cores == 0
    entrusted.system.misses = set()
    with monkeypatch.context() as patch:
        patch.setattr(desk.model.system, "stuck_s", 0.0)
        desk.until(lambda: entrusted.system.cancelled)
    desk.work_off()
    balance(desk)
    assert desk.states() == [State.SUCCEEDED] * 3
    first, _ = entrusted.system.submitted
    assert (entrusted.system.cancelled, entrusted.system.left(first)) == ([first], set())


def test_it_refuses_what_follows(single: Maker, system: StandIn, tmp_path: Path) -> None:
    """Its own words are the error; nothing is left in it or in hand, and all can be handed over later."""
    desk = Desk(single, system, tmp_path / "run", plan_of(["isr:1", "isr:2", "stack"], [(0, 2), (1, 2)]))
    system.refuses = "the account drp has no time left"
    with pytest.raises(ModelError, match="the account drp has no time left"):
        desk.start()
    refused = last_round(RunDir(desk.folder))
    assert refused is not None
    assert refused.is_closed
    assert not system.left(refused.name)
    assert desk.model.capacity().cores == 1
    system.refuses = ""
    desk.work_off()
    balance(desk)
    assert desk.states() == [State.SUCCEEDED] * 3
    assert refused.name not in system.submitted


def test_it_does_not_answer_who_submits(maker: Maker, system: StandIn, tmp_path: Path) -> None:
    """It is one error; nothing is in hand, and what is left can be handed over when it answers."""
    desk = Desk(maker, system, tmp_path / "run", plan_of(["isr:1", "isr:2", "isr:3"]))
    system.silent = True
    with pytest.raises(ModelError):
        desk.begin()
    system.silent = False
    desk.begin()
    desk.work_off()
    assert len(system.submitted) == 1


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, int]]]:
    """Random graphs of up to 12 quanta, with random failures."""
    n = draw(st.integers(1, 12))
    kinds = ["isr", "isr", "fail", "skip", "flaky", "back", "die", "node", "gone"]
    labels = draw(st.lists(st.sampled_from(kinds), min_size=n, max_size=n))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] < pair[1])
    edges = draw(st.lists(pairs, max_size=2 * n, unique=True)) if n > 1 else []
    return [f"{label}:{i}" for i, label in enumerate(labels)], edges


def test_random_graphs(single: Maker, system: StandIn, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the graph, the scheduler accepts every event of the model, and all ends as it must."""

    @tuned(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(graphs())
    def check(graph: tuple[list[str], list[tuple[int, int]]]) -> None:
        desk = Desk(single, system, tmp_path_factory.mktemp("any") / "run", plan_of(*graph))
        desk.work_off()
        assert endings(desk.model.close(cancel=True)) == []
        balance(desk)
        assert desk.states() == in_the_end(desk.plan)

    check()
