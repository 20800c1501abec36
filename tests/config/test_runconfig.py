"""`qgexec.config.runconfig`: what was said about resources and retries, and the policy that it makes."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgexec.config.runconfig import ISOLATIONS, RunConfig, TaskSettings, make_policy, remarks
from qgexec.events import AttemptFailed, AttemptLost, AttemptOutOfMemory, AttemptTimedOut, FailureEvent
from qgexec.quantum import ExceptionSummary, Outcome, OutcomeStatus, Resources
from qgexec.scheduling.policy import Retries, TaskRules

GIB = 2**30
_LABELS = ("a", "b", "c")

_table = st.dictionaries(st.integers(1, 60), st.integers(0, 5), max_size=3)
_bytes = st.none() | st.integers(1, 500 * GIB)
_few = st.none() | st.integers(0, 9)
_values: dict[str, st.SearchStrategy[Any]] = {
    "cores": st.none() | st.integers(1, 128),
    "memory_bytes": _bytes,
    "memory_max_bytes": _bytes,
    "memory_limit_bytes": _bytes,
    "memory_multiplier": st.none() | st.floats(0.1, 10),
    "enforce_memory": st.none() | st.booleans(),
    "timeout_s": st.none() | st.floats(0.1, 1e6),
    "n_retries": _few,
    "retry_unless_exit": st.none() | st.lists(st.integers(0, 255), max_size=3),
    "lost": _few,
    "out_of_memory": _few,
    "timed_out": _few,
    "exceptions": st.none() | st.dictionaries(st.sampled_from(["OSError", "a.B"]), st.integers(0, 5)),
    "exit_codes": st.none() | _table,
    "signals": st.none() | _table,
    "isolation": st.none() | st.sampled_from(ISOLATIONS),
    "keep_processes": st.none() | st.booleans(),
    "other_options": st.none() | st.text(max_size=5),
}
_settings = st.fixed_dictionaries({}, optional=_values).map(lambda values: cast("TaskSettings", values))
_configs = st.builds(RunConfig, _settings, st.dictionaries(st.sampled_from("abcd"), _settings))


def _known() -> set[str]:
    return set(TaskSettings.__annotations__)


def _plain(settings: TaskSettings) -> dict[str, Any]:
    return dict(settings)


class TestConfig:
    """Values that can be kept and laid over one another."""

    def test_all_settings_are_drawn(self) -> None:
        """The strategies below know every setting."""
        assert set(_values) == _known()

    @given(_configs)
    def test_round_trip(self, config: RunConfig) -> None:
        """JSON gives back what it was given."""
        assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"common": {}},
            {"common": {"colour": 1}, "tasks": {}},
            {"common": 5, "tasks": {}},
            {"common": {}, "tasks": 5},
        ],
    )
    def test_something_else(self, values: dict[str, Any]) -> None:
        """JSON that is something else is no configuration."""
        with pytest.raises((KeyError, TypeError, ValueError)):
            RunConfig.from_json(values)

    @given(_configs, _configs)
    def test_precedence(self, earlier: RunConfig, later: RunConfig) -> None:
        """Task before all, then later before earlier: of each setting the first that says anything counts."""
        both = earlier.updated(later)
        for label in _LABELS:
            layers = [
                _plain(settings)
                for settings in (
                    later.tasks.get(label, {}),
                    earlier.tasks.get(label, {}),
                    later.common,
                    earlier.common,
                )
            ]
            found = _plain(both.settings(label))
            assert found.keys() == set().union(*layers)
            for key, value in found.items():
                first = next(layer[key] for layer in layers if key in layer)
                if isinstance(first, dict):
                    assert first.items() <= value.items()
                else:
                    assert value == first

    @given(_configs)
    def test_nothing_said(self, config: RunConfig) -> None:
        """Nothing said later changes nothing, and leaves the former as it was."""
        before = json.dumps(config.to_json())
        assert config.updated(RunConfig()) == config == RunConfig().updated(config)
        config.updated(RunConfig({"cores": 3}, {"a": {"cores": 4}}))
        assert json.dumps(config.to_json()) == before

    def test_what_meant_nothing_is_not_kept(self) -> None:
        """Keys without a meaning are told of once."""
        config = RunConfig(unknown=("x (f:1)",))
        assert config.updated(RunConfig(unknown=("y (g:1)",))).unknown == ("x (f:1)", "y (g:1)")
        assert RunConfig.from_json(config.to_json()).unknown == ()


def _rules(settings: TaskSettings, memory: int | None = None, cores: int | None = None) -> TaskRules:
    config = RunConfig({}, {"a": settings})
    return make_policy(config, ["a"], machine_memory_bytes=memory, machine_cores=cores).rules_of("a")


class TestPolicy:
    """What the settings mean."""

    def test_nothing_said(self) -> None:
        """One core, no request, no limit, no retry but for lost workers."""
        policy = make_policy(RunConfig(), ["a"])
        assert policy.rules_of("a") == TaskRules(memory_multiplier=2.0) == policy.rules_of("not in the graph")
        assert policy.rules.keys() == {"a"}
        assert policy.rules_of("a").retries == Retries()

    def test_stopping(self) -> None:
        """When to stop is handed on."""
        policy = make_policy(RunConfig(), [], fail_fast=True, max_failures=7)
        assert (policy.fail_fast, policy.max_failures) == (True, 7)

    def test_values(self) -> None:
        """Each setting comes out where it belongs."""
        assert _rules(
            {
                "cores": 4,
                "memory_bytes": 2 * GIB,
                "memory_max_bytes": 8 * GIB,
                "memory_multiplier": 3.0,
                "enforce_memory": True,
                "timeout_s": 60.0,
                "n_retries": 2,
                "lost": 5,
                "timed_out": 0,
                "exceptions": {"OSError": 3},
                "exit_codes": {3: 1},
                "signals": {11: 0},
            }
        ) == TaskRules(
            request=Resources(4, 2 * GIB),
            enforce_memory=True,
            memory_multiplier=3.0,
            memory_max_bytes=8 * GIB,
            timeout_s=60.0,
            retries=Retries(
                common=2,
                lost=5,
                out_of_memory=2,
                timed_out=0,
                exceptions={"OSError": 3},
                exit_codes={3: 1},
                signals={11: 0},
            ),
        )

    @pytest.mark.parametrize("multiplier", [1.0, 0.5, None])
    def test_no_growth(self, multiplier: float | None) -> None:
        """A factor of 1 or less, or one taken back, is no growth."""
        rules = _rules({"memory_bytes": GIB, "memory_multiplier": multiplier})
        assert rules.request_after(3).memory_bytes == GIB

    def test_growth_as_in_bps(self) -> None:
        """The example of BPS's documentation: 3, 6, 12, then 20 GiB, and that is all."""
        rules = _rules({"memory_bytes": 3 * GIB, "memory_max_bytes": 20 * GIB, "memory_multiplier": 2.0})
        memory = [rules.request_after(n).memory_bytes or 0 for n in range(5)]
        assert [number / GIB for number in memory] == [3, 6, 12, 20, 20]

    @given(_settings, st.integers(1, 64 * GIB), st.integers(1, 64), st.integers(0, 20))
    def test_never_more_than_there_is(self, settings: TaskSettings, memory: int, cores: int, n: int) -> None:
        """However often it ran out of memory, a quantum asks for no more than its limits allow."""
        rules = _rules(settings, memory, cores)
        request = rules.request_after(n)
        limits = (settings.get("memory_max_bytes"), settings.get("memory_limit_bytes"), memory)
        assert 1 <= request.cores <= cores
        assert (request.memory_bytes is None) == (settings.get("memory_bytes") is None)
        assert (request.memory_bytes or 0) <= min(limit for limit in limits if limit is not None)


def _failure(name: str) -> AttemptFailed:
    outcome = Outcome(0, 1, OutcomeStatus.FAILED, 0.0, 1.0, exception=ExceptionSummary(name, "no"))
    return AttemptFailed(1.0, outcome)


_KILLED = AttemptLost(1.0, 0, 1, "killed", -9)
_CRASHED = AttemptLost(1.0, 0, 1, "crashed", -11)
_EXITED = AttemptLost(1.0, 0, 1, "exited", 3)
_LATE = AttemptTimedOut(1.0, 0, 1, 60.0)
_OVER = AttemptOutOfMemory(1.0, 0, 1, 2 * GIB, GIB)
_RAISED = _failure("builtins.ValueError")


class TestRetries:
    """How many retries each cause has."""

    @pytest.mark.parametrize(
        ("settings", "numbers"),
        [
            ({}, (3, 0, 0, 0, 5, 0)),
            ({"n_retries": 2}, (3, 2, 2, 2, 2, 2)),
            ({"n_retries": 0}, (3, 0, 0, 0, 0, 0)),
            ({"n_retries": None}, (3, 0, 0, 0, 5, 0)),
            ({"memory_multiplier": 1.0}, (3, 0, 0, 0, 0, 0)),
            ({"n_retries": 2, "retry_unless_exit": [1, 2]}, (3, 2, 2, 2, 2, 0)),
            ({"n_retries": 2, "retry_unless_exit": [3]}, (3, 2, 0, 2, 2, 2)),
            ({"n_retries": 2, "retry_unless_exit": [3], "exit_codes": {3: 4}}, (3, 2, 4, 2, 2, 2)),
            ({"n_retries": 2, "retry_unless_exit": None}, (3, 2, 2, 2, 2, 2)),
            ({"retry_unless_exit": [1], "exceptions": {"ValueError": 7}}, (3, 0, 0, 0, 5, 7)),
            ({"n_retries": 1, "lost": 0, "out_of_memory": 4, "timed_out": 6}, (0, 1, 1, 6, 4, 1)),
            ({"n_retries": 1, "signals": {11: 9}}, (3, 9, 1, 1, 1, 1)),
        ],
    )
    def test_budgets(self, settings: TaskSettings, numbers: tuple[int, ...]) -> None:
        """Lost, crashed, exited, over time, over memory, raised: as the settings say."""
        policy = make_policy(RunConfig({"memory_bytes": GIB}, {"a": settings}), ["a"])
        events: tuple[FailureEvent, ...] = (_KILLED, _CRASHED, _EXITED, _LATE, _OVER, _RAISED)
        assert tuple(policy.account(event, "a")[1] for event in events) == numbers

    def test_upstreams_word_is_last(self) -> None:
        """What upstream calls repeatable is not tried again, whatever is said."""
        policy = make_policy(RunConfig({"n_retries": 9, "exceptions": {"RepeatableQuantumError": 9}}), ["a"])
        summary = ExceptionSummary("lsst.pipe.base.RepeatableQuantumError", "no", exit_code=20)
        outcome = Outcome(0, 1, OutcomeStatus.FAILED, 0.0, 1.0, exception=summary)
        assert not policy.wants_retry(AttemptFailed(1.0, outcome), "a", {}, 0)


class TestRemarks:
    """What the user is told before the run."""

    def test_nothing(self) -> None:
        """There is nothing to say about what fits."""
        config = RunConfig({"cores": 2, "memory_bytes": GIB})
        assert remarks(config, ["a"], machine_memory_bytes=GIB, machine_cores=2) == []
        assert remarks(config, ["a"]) == []

    def test_unknown_keys_in_one(self) -> None:
        """All keys without a meaning are in one warning."""
        (told,) = remarks(RunConfig(unknown=("x (f:1)", "y (f:2)")), [])
        assert "x (f:1), y (f:2)" in told

    def test_options_of_tasks(self) -> None:
        """Options of single tasks are named where the graph has the task."""
        tasks: dict[str, TaskSettings] = {label: {"other_options": "--x"} for label in "abc"}
        (told,) = remarks(RunConfig({}, tasks), ["a", "c"])
        assert "a, c is not taken: --x" in told

    def test_more_than_there_is(self) -> None:
        """Tasks of the graph that ask for more than the machine has are named, and what they get."""
        config = RunConfig({}, {"a": {"memory_bytes": 4 * GIB}, "b": {"cores": 60}, "c": {"cores": 99}})
        (told,) = remarks(config, ["a", "b", "d"], machine_memory_bytes=2 * GIB, machine_cores=8)
        assert "a (4.3 GB), b (60 cores)" in told
        assert "(8 cores, 2.1 GB of memory)" in told

    def test_more_than_its_own_maximum(self) -> None:
        """A request that an earlier file's maximum holds down has no effect: that is said."""
        config = RunConfig({}, {"a": {"memory_bytes": 4 * GIB, "memory_max_bytes": 2 * GIB}})
        (told,) = remarks(config, ["a"], machine_memory_bytes=8 * GIB)
        assert "requestMemoryMax: a (4.3 GB, gets 2.1 GB)" in told

    def test_a_limit_of_the_users_own(self) -> None:
        """A request above the user's own limit is no surprise."""
        config = RunConfig({"memory_bytes": 4 * GIB, "memory_limit_bytes": GIB})
        assert remarks(config, ["a"], machine_memory_bytes=2 * GIB) == []
