"""`qgexec.testing`: the fakes do as they are told, and notice misuse."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qgexec.errors import GraphError
from qgexec.events import (
    AttemptEvent,
    AttemptFailed,
    AttemptLost,
    AttemptOutOfMemory,
    AttemptReturned,
    AttemptSkipped,
    AttemptStarted,
    AttemptSucceeded,
    AttemptTimedOut,
    StopReason,
    StopRequested,
)
from qgexec.models.base import Bench, ExecutionModel, Run
from qgexec.quantum import Attempt, ExceptionSummary, OutcomeStatus, Resources, RunContext, SegmentRef
from qgexec.scheduling.policy import Policy, Retries, TaskRules
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State
from qgexec.testing import (
    AnyEnding,
    BenchAct,
    Ending,
    FakeBench,
    FakeBenchOpener,
    FakeClock,
    FakeModel,
    make_plan,
    plan_of,
    run_plan,
)


def _attempts(text: str, **labels: Resources) -> list[Attempt]:
    plan = make_plan(text)
    return [
        Attempt(node.index, 1, node.quantum_id, node.task_label, labels.get(node.task_label, Resources()))
        for node in plan
    ]


def _run(serial_labels: frozenset[str] = frozenset()) -> Run:
    return Run(RunContext("", "", "", ""), FakeBenchOpener(), Path(), serial_labels=serial_labels)


def test_plan_from_text() -> None:
    """Arrows make all before wait for all after; names repeat; numbers are detectors."""
    plan = make_plan("isr:1 isr:2 -> cal -> final; isr:3 -> final")
    assert [str(node) for node in plan] == [
        "isr{detector: 1}",
        "isr{detector: 2}",
        "cal{detector: 0}",
        "isr{detector: 3}",
        "final{detector: 0}",
    ]
    assert [node.prerequisites for node in plan] == [(), (), (0, 1), (), (2, 3)]


def test_plan_ids_depend_on_names_only() -> None:
    """A name has the same quantum ID in every plan."""
    assert make_plan("a -> b").quantum_id(1) == plan_of(["b"]).quantum_id(0)


def test_plan_of_names_given_twice() -> None:
    """Two quanta of one name would be one."""
    with pytest.raises(GraphError, match="same ID"):
        plan_of(["a", "a"])


def test_clock_stands_still() -> None:
    """Time passes only when told to."""
    clock = FakeClock(5.0)
    assert [clock(), clock()] == [5.0, 5.0]
    clock.advance(1.5)
    assert clock() == 6.5


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (Ending.SUCCEED, AttemptSucceeded),
        (Ending.FAIL, AttemptFailed),
        (Ending.FAIL_INVALID, AttemptFailed),
        (Ending.FAIL_REPEATABLE, AttemptFailed),
        (ExceptionSummary("builtins.OSError", "full"), AttemptFailed),
        (Ending.SKIP, AttemptSkipped),
        (Ending.LOSE, AttemptLost),
        (Ending.SEGFAULT, AttemptLost),
        (3, AttemptLost),
        (Ending.OUT_OF_MEMORY, AttemptOutOfMemory),
        (Ending.OUT_OF_MEMORY_BY_KERNEL, AttemptOutOfMemory),
        (Ending.TIME_OUT, AttemptTimedOut),
        (Ending.RETURN, AttemptReturned),
    ],
)
def test_model_follows_its_script(ending: AnyEnding, kind: type) -> None:
    """Each ending is the event it says, about the attempt that was started."""
    model = FakeModel(script={"a": ending})
    (attempt,) = _attempts("a")
    model.start([attempt])
    (event,) = model.wait(1.0)
    assert type(event) is kind
    assert isinstance(event, AttemptEvent)
    assert not isinstance(event, AttemptStarted)
    assert (event.index, event.attempt, event.at) == (0, 1, model.clock.now)


@pytest.mark.parametrize(
    ("ending", "exit_code", "reason"),
    [
        (Ending.LOSE, -9, "was killed by signal 9 (SIGKILL)"),
        (Ending.SEGFAULT, -11, "was killed by signal 11 (SIGSEGV)"),
        (-signal.SIGABRT, -6, "was killed by signal 6 (SIGABRT)"),
        (3, 3, "exited with status 3"),
    ],
)
def test_model_loses_attempts_in_every_way(ending: AnyEnding, exit_code: int, reason: str) -> None:
    """Signals and exit statuses are in the event, and in its words."""
    model = FakeModel(script={"a": ending})
    model.start(_attempts("a"))
    (event,) = model.wait(1.0)
    assert isinstance(event, AttemptLost)
    assert (event.exit_code, event.reason) == (exit_code, f"worker 1 {reason}")


def test_model_fails_as_told() -> None:
    """An exception that the script has is the outcome's."""
    error = ExceptionSummary("builtins.OSError", "full", "isr.py:3 run", 7)
    model = FakeModel(script={"a": [error]})
    model.start(_attempts("a"))
    (event,) = model.wait(1.0)
    assert isinstance(event, AttemptFailed)
    assert event.outcome.exception == error


def test_model_ends_attempts_over_their_memory() -> None:
    """It says the limit that the attempt had; of what the kernel ended nobody knows."""
    (attempt,) = _attempts("a", a=Resources(1, 100))
    model = FakeModel(Resources(1, 100), {"a": [Ending.OUT_OF_MEMORY, Ending.OUT_OF_MEMORY_BY_KERNEL]})
    model.start([replace(attempt, memory_limit_bytes=80)])
    (event,) = model.wait(1.0)
    assert event == AttemptOutOfMemory(model.clock.now, 0, 1, 81, 80, worker=1)
    model.start([replace(attempt, number=2)])
    (event,) = model.wait(1.0)
    assert event == AttemptOutOfMemory(model.clock.now, 0, 2, None, None, by_kernel=True, worker=1)


def test_memory_that_grows_is_seen_in_attempts() -> None:
    """Each attempt after one that ran out of memory is started with more, and the model has it to give."""
    rules = TaskRules(Resources(1, 100), enforce_memory=True, memory_multiplier=2, memory_max_bytes=300)
    scheduler = Scheduler(make_plan("a"), policy=Policy(rules={"a": rules}))
    model = FakeModel(Resources(1, 300), {"a": Ending.OUT_OF_MEMORY})
    run_plan(scheduler, model)
    assert [attempt.resources.memory_bytes for attempt in model.started] == [100, 200, 300]
    assert [attempt.memory_limit_bytes for attempt in model.started] == [100, 200, 300]
    assert scheduler.state(0) is State.FAILED


def test_run_plan_judges_failures() -> None:
    """The events that it returns say which attempts are followed by another."""
    policy = Policy(common_rules=TaskRules(retries=Retries(common=1)))
    scheduler = Scheduler(make_plan("a"), policy=policy)
    events = run_plan(scheduler, FakeModel(script={"a": Ending.FAIL}))
    assert [event.retried for event in events if isinstance(event, AttemptFailed)] == [True, False]


def test_model_scripts_each_attempt() -> None:
    """An index has precedence over its label; a sequence is one ending for each attempt."""
    plan = make_plan("a:1 a:2")
    model = FakeModel(script={"a": Ending.SKIP, 1: [Ending.RETURN, Ending.RETURN, Ending.FAIL]})
    scheduler = Scheduler(plan, policy=Policy())
    run_plan(scheduler, model)
    assert [scheduler.state(0), scheduler.state(1)] == [State.SKIPPED, State.FAILED]
    assert [scheduler.attempts(0), scheduler.attempts(1)] == [1, 3]


def test_model_counts_its_capacity() -> None:
    """What runs is taken off cores and memory, but of a serial label only its memory."""
    first, second, serial = _attempts("a b s", a=Resources(2, 100), b=Resources(1), s=Resources(9, 30))
    model = FakeModel(Resources(4, 150))
    model.open(_run(frozenset({"s"})))
    model.start([first, second, serial])
    assert model.capacity() == Resources(1, 20)
    model.wait(1.0)
    assert model.capacity() == Resources(3, 120)
    assert model.running == [second, serial]


@pytest.mark.parametrize(
    "attempts", [_attempts("a b"), _attempts("a", a=Resources(1, 200)), [*_attempts("a"), *_attempts("a")]]
)
def test_model_notices_misuse(attempts: list[Attempt]) -> None:
    """Starting more than fits, or a quantum that runs already, fails loudly."""
    with pytest.raises(AssertionError):
        FakeModel(Resources(1, 100)).start(attempts)


def test_model_notices_serial_labels_side_by_side() -> None:
    """Two quanta of a serial label do not run together."""
    model = FakeModel(Resources(8))
    model.open(_run(frozenset({"s"})))
    with pytest.raises(AssertionError):
        model.start(_attempts("s:1 s:2"))


def test_model_hangs_until_closed() -> None:
    """A hanging attempt lets the time-out pass, and is returned when the model is closed."""
    model = FakeModel(script={"a": Ending.HANG})
    model.start(_attempts("a"))
    now = model.clock.now
    assert model.wait(3.0) == []
    assert model.clock.now == now + 3.0
    with pytest.raises(AssertionError):
        model.close(cancel=False)
    assert [type(event) for event in model.close(cancel=True)] == [AttemptReturned]
    assert model.close(cancel=False) == []


def test_model_ends_attempts_as_chosen() -> None:
    """The order in which running attempts end can be chosen."""
    attempts = _attempts("a b c")
    model = FakeModel(Resources(3), choose=lambda running: len(running) - 1)
    model.start(attempts)
    events = [event for _ in attempts for event in model.wait(1.0)]
    assert [event.index for event in events if isinstance(event, AttemptSucceeded)] == [2, 1, 0]


def test_fakes_are_what_they_stand_for() -> None:
    """The fakes keep to the protocols."""
    assert isinstance(FakeModel(), ExecutionModel)
    bench: Bench = FakeBenchOpener()("driver")
    bench.close()
    bench.close()


def test_run_plan_stops_as_the_policy_wants() -> None:
    """The driver of tests requests the stop that the policy wants, and lets what runs end."""
    scheduler = Scheduler(make_plan("a b c"), policy=Policy(fail_fast=True))
    events = run_plan(scheduler, FakeModel(Resources(2), {"a": Ending.FAIL}))
    kinds = [AttemptStarted, AttemptStarted, AttemptFailed, StopRequested, AttemptSucceeded]
    assert [type(event) for event in events] == kinds
    assert scheduler.stopping is StopReason.FAILED_FAST


def test_run_plan_says_who_is_stuck() -> None:
    """A quantum that can never start ends the run with a sentence, not with a loop."""
    scheduler = Scheduler(make_plan("a"), policy=Policy(rules={"a": TaskRules(Resources(2))}))
    with pytest.raises(AssertionError, match="task a that are left asks for 2 cores"):
        run_plan(scheduler, FakeModel(Resources(1)))


def test_run_plan_does_not_run_for_ever() -> None:
    """What never ends is given up after some rounds."""
    scheduler = Scheduler(make_plan("a"), policy=Policy())
    with pytest.raises(AssertionError, match="not finished after 10 rounds"):
        run_plan(scheduler, FakeModel(script={"a": Ending.RETURN}), limit=10)


def test_bench_does_as_its_table_says(tmp_path: Path) -> None:
    """A bench succeeds, fails, names details, raises, and writes down what it was given."""
    first, second, third = _attempts("a b c")
    detail = SegmentRef("worker-0001.jsonl", 10, 20)
    acts = {
        "a": BenchAct(detail=detail),
        "b": BenchAct(fails="broken", sleep_s=1e-6),
        "c": BenchAct(raises=SystemExit),
    }
    bench = pickle.loads(pickle.dumps(FakeBenchOpener(acts, tmp_path / "trace")))("worker-0001")
    assert isinstance(bench, FakeBench)
    succeeded, failed = bench.execute(first), bench.execute(second)
    with pytest.raises(SystemExit, match="as told"):
        bench.execute(third)
    assert isinstance(succeeded, AttemptSucceeded)
    assert (succeeded.index, succeeded.outcome.status, succeeded.outcome.detail) == (
        0,
        OutcomeStatus.SUCCEEDED,
        detail,
    )
    assert isinstance(failed, AttemptFailed)
    assert failed.outcome.exception is not None
    assert failed.outcome.exception.message == "broken"
    assert failed.outcome.started_at <= failed.outcome.ended_at <= failed.at
    assert (tmp_path / "trace").read_text() == "worker-0001 0 1\nworker-0001 1 1\nworker-0001 2 1\n"


@pytest.mark.parametrize(("act", "status"), [("signal=signal.SIGKILL", -signal.SIGKILL), ("exit_code=7", 7)])
def test_bench_ends_its_process(act: str, status: int) -> None:
    """A bench can end the process it is in, by a signal or at once with a status."""
    code = (
        "import signal, uuid\n"
        "from qgexec.quantum import Attempt\n"
        "from qgexec.testing import BenchAct, FakeBenchOpener\n"
        f"bench = FakeBenchOpener({{'a': BenchAct({act})}})('driver')\n"
        "bench.execute(Attempt(0, 1, uuid.UUID(int=1), 'a'))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == status


def test_no_middleware_is_imported() -> None:
    """Whoever tests with these fakes does not pay for lsst."""
    code = "import sys, qgexec.testing; sys.exit('lsst' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
