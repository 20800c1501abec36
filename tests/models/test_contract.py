"""The contract of `qgexec.models.base.ExecutionModel`, held by every model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qgexec.errors import ModelError
from qgexec.events import (
    AttemptFailed,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    Event,
)
from qgexec.models.base import ExecutionModel, Run
from qgexec.models.inprocess import InProcess
from qgexec.models.pool import Pool
from qgexec.quantum import Attempt, Resources, SegmentRef
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State
from qgexec.testing import plan_of
from tests.kit.runs.benches import attempts, endings, make_run, wait_for, work_off

Maker = Callable[[], ExecutionModel]

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(params=[InProcess, lambda: Pool(1), lambda: Pool(3)], ids=["inprocess", "pool1", "pool3"])
def maker(request: pytest.FixtureRequest) -> Maker:
    made: Maker = request.param
    return made


def test_it_is_an_execution_model(maker: Maker) -> None:
    """Every model has all that the seam asks for."""
    assert isinstance(maker(), ExecutionModel)


def test_each_attempt_ends_once(maker: Maker, tmp_path: Path) -> None:
    """1,000 quick attempts end in 1,000 events, each of its own quantum and attempt."""
    model = maker()
    model.open(make_run(tmp_path))
    todo = attempts(*(["isr", "calibrate"] * 500))
    ended = endings(work_off(model, todo))
    assert model.close(cancel=True) is not None
    assert {type(event) for event in ended} == {AttemptSucceeded}
    assert sorted((event.index, event.attempt) for event in ended) == [(a.index, a.number) for a in todo]


def test_outcome_is_whole(maker: Maker, tmp_path: Path) -> None:
    """What the bench said of an attempt arrives as it was said."""
    model = maker()
    model.open(make_run(tmp_path))
    (event,) = endings(work_off(model, attempts("fail")))
    model.close(cancel=False)
    assert isinstance(event, AttemptFailed)
    outcome = event.outcome
    assert (outcome.cpu_s, outcome.peak_rss_bytes, outcome.host, outcome.caveats) == (
        0.25,
        1_000_000,
        "here",
        3,
    )
    assert outcome.ended_at - outcome.started_at == pytest.approx(1)
    assert outcome.exception is not None
    assert (outcome.exception.type, outcome.exception.exit_code) == ("builtins.ValueError", 20)
    assert isinstance(outcome.detail, SegmentRef)
    assert (outcome.detail.offset, outcome.detail.length) == (12, 34)


def test_failures_are_values(maker: Maker, tmp_path: Path) -> None:
    """A quantum that fails or is skipped is an event; the others go on."""
    model = maker()
    model.open(make_run(tmp_path))
    ended = endings(work_off(model, attempts("fail", "isr", "skip", "isr")))
    model.close(cancel=True)
    kinds = {event.index: type(event) for event in ended}
    assert kinds == {0: AttemptFailed, 1: AttemptSucceeded, 2: AttemptSkipped, 3: AttemptSucceeded}


def test_capacity_shrinks(maker: Maker, tmp_path: Path) -> None:
    """Attempts of a label that was never seen take the capacity that they were given."""
    model = maker()
    model.open(make_run(tmp_path))
    cores = model.capacity().cores
    assert cores >= 1
    todo = attempts(*["isr"] * cores)
    for n, attempt in enumerate(todo, start=1):
        model.start([attempt])
        assert model.capacity().cores == cores - n
    assert len(endings(work_off(model, []) + wait_for(model, AttemptSucceeded, cores))) == cores
    model.close(cancel=True)


def test_wait_with_nothing_to_do(maker: Maker, tmp_path: Path) -> None:
    """Waiting for nothing ends, and nothing has ended."""
    model = maker()
    model.open(make_run(tmp_path))
    assert endings(model.wait(0.0)) == []
    model.close(cancel=True)


def test_cancel_gives_back(maker: Maker, tmp_path: Path) -> None:
    """What was started and has not ended is returned by closing, once."""
    model = maker()
    model.open(make_run(tmp_path))
    todo = attempts(*["hang"] * model.capacity().cores)
    model.start(todo)
    returned = endings(model.close(cancel=True))
    assert {type(event) for event in returned} == {AttemptReturned}
    assert sorted(event.index for event in returned) == [attempt.index for attempt in todo]
    assert list(model.close(cancel=True)) == []


def test_close_before_open(maker: Maker) -> None:
    """A model that was never opened can be closed."""
    assert list(maker().close(cancel=True)) == []


def test_bench_is_closed(maker: Maker, tmp_path: Path) -> None:
    """An idle bench is closed, not killed."""
    model = maker()
    model.open(make_run(tmp_path))
    (event,) = endings(work_off(model, attempts("isr")))
    model.close(cancel=True)
    assert isinstance(event, AttemptSucceeded)
    assert event.outcome.detail is not None
    assert (tmp_path / event.outcome.detail.segment.replace(".jsonl", ".closed")).exists()


@pytest.mark.parametrize("label", ["raise", "isr"])
def test_broken_bench(maker: Maker, label: str, tmp_path: Path) -> None:
    """A bench that raises, or says what is no outcome, is an error with the reason, not a hang."""
    model = maker()
    model.open(make_run(tmp_path, "" if label == "raise" else "lies"))
    todo = attempts(label)
    model.start(todo)
    ended: list[Event] = []
    with pytest.raises(ModelError, match=r"out of the bench|the bench returned None"):
        _wait_for_ever(model, ended)
    ended = [*endings(ended), *endings(model.close(cancel=True))]
    assert [(type(event), event.index) for event in endings(ended)] == [(AttemptReturned, 0)]


def test_bench_that_does_not_open(maker: Maker, tmp_path: Path) -> None:
    """A bench that cannot be opened is an error with the reason, from open or wait."""
    model = maker()
    with pytest.raises(ModelError, match="no such repository"):
        _open_and_wait(model, make_run(tmp_path, "raises"))
    model.close(cancel=True)


def _wait_for_ever(model: ExecutionModel, events: list[Event]) -> None:
    while True:
        events += model.wait(1.0)


def _open_and_wait(model: ExecutionModel, run: Run) -> None:
    model.open(run)
    model.start(attempts("isr"))
    _wait_for_ever(model, [])


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, int]]]:
    """Random graphs of up to 25 quanta, with random failures."""
    n = draw(st.integers(1, 25))
    labels = draw(st.lists(st.sampled_from(["isr", "calibrate", "fail", "skip"]), min_size=n, max_size=n))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] < pair[1])
    edges = draw(st.lists(pairs, max_size=2 * n, unique=True)) if n > 1 else []
    return [f"{label}:{i}" for i, label in enumerate(labels)], edges


def test_random_graphs(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the graph, the scheduler accepts every event of the model, and the run comes to its end."""

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(graphs())
    def check(graph: tuple[list[str], list[tuple[int, int]]]) -> None:
        plan = plan_of(*graph)
        scheduler = Scheduler(plan, policy=Policy())
        model = maker()
        model.open(make_run(tmp_path_factory.mktemp("run")))
        seen: Counter[int] = Counter()
        while not scheduler.finished:
            batch = scheduler.select(model.capacity())
            for attempt in batch:
                scheduler.apply(AttemptStarted(0.0, attempt.index, attempt.number))
            model.start(batch)
            for event in model.wait(1.0):
                scheduler.apply(event)
            seen.update(attempt.index for attempt in batch)
        assert endings(model.close(cancel=True)) == []
        run = (index for index in range(len(plan)) if scheduler.state(index) is not State.BLOCKED)
        assert seen == Counter(run)

    check()


def test_cores_are_respected(maker: Maker, tmp_path: Path) -> None:
    """An attempt that asks for more cores than there are runs alone."""
    model = maker()
    model.open(make_run(tmp_path))
    big = [Attempt(a.index, 1, a.quantum_id, a.task_label, Resources(cores=64)) for a in attempts("isr")]
    model.start(big)
    assert model.capacity().cores == 0
    assert len(endings(wait_for(model, AttemptSucceeded))) == 1
    model.close(cancel=True)
