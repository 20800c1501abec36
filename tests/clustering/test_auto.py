"""`qgexec.clustering.auto`: chains and chunks that last about as long as a job should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from qgexec.clustering.algorithms import cluster_remarks, make_clusters
from qgexec.clustering.auto import JOB_COST_S, UNKNOWN_S
from qgexec.clustering.chains import MEMORY_RATIO
from qgexec.clustering.clusters import Clusters
from qgexec.clustering.rules import Algorithm, ClusterRules
from qgexec.errors import UsageError
from qgexec.quantum import Resources
from qgexec.scheduling.plan import Plan
from qgexec.testing import make_plan, plan_of

_LABELS = ("a", "b", "c", "d")


def _auto(plan: Plan, *, target_s: float = 1800.0, width: int = 1000, **kwargs: Any) -> Clusters:
    rules = ClusterRules(algorithm=Algorithm.AUTO, target_s=target_s, width=width)
    return make_clusters(plan, np.arange(len(plan)), rules, **kwargs)


def _shown(plan: Plan, clusters: Clusters) -> list[str]:
    """Return the quanta of each cluster, as ``a1 b1``."""
    numbers = {index: f"{node.task_label}{node.data_id['detector']}" for index, node in enumerate(plan)}
    return [" ".join(numbers[index] for index in clusters.quanta(n)) for n in range(len(clusters))]


def _siblings(n: int, label: str = "a") -> Plan:
    return plan_of([f"{label}:{number}" for number in range(n)])


class TestChains:
    """Quanta that follow one another."""

    def test_one_to_one(self) -> None:
        """They are one job, however many machines are free."""
        plan = make_plan("a:1 -> b:1 -> c:1; a:2 -> b:2 -> c:2")
        assert _shown(plan, _auto(plan)) == ["a1 b1 c1", "a2 b2 c2"]

    def test_no_longer_than_the_target(self) -> None:
        """A chain is cut where a job would be too long; a single quantum may be longer."""
        plan = make_plan("a:1 -> b:1 -> c:1 -> d:1")
        shown = _shown(plan, _auto(plan, durations={"a": 1000, "b": 800, "c": 1, "d": 9000}))
        assert shown == ["a1 b1", "c1", "d1"]

    @pytest.mark.parametrize("others", ["a:1 -> c:1", "c:1 -> b:1"])
    def test_nobody_else_waits(self, others: str) -> None:
        """A quantum that others wait for, or that waits for others, ends its chain."""
        plan = make_plan(f"a:1 -> b:1; {others}")
        durations = dict.fromkeys("abc", 2 * JOB_COST_S)
        assert _shown(plan, _auto(plan, durations=durations)) == [
            f"{n}1" for n in ("abc", "acb")[others[0] == "c"]
        ]

    def test_done_before(self) -> None:
        """What is not clustered is no prerequisite."""
        plan = make_plan("a:1 a:2 -> b:1")
        rules = ClusterRules(algorithm=Algorithm.AUTO)
        clusters = make_clusters(plan, np.array([1, 2]), rules)
        assert _shown(plan, clusters) == ["a2 b1"]

    @pytest.mark.parametrize(
        ("one", "other", "joined"),
        [
            (Resources(), Resources(), True),
            (Resources(2), Resources(1), False),
            (Resources(1, 1000), Resources(1, 2000), True),
            (Resources(1, 2001), Resources(1, 1000), False),
            (Resources(1, 1000), Resources(), False),
        ],
    )
    def test_what_they_ask_for(self, one: Resources, other: Resources, joined: bool) -> None:
        """Tasks that ask for very different things are not joined."""
        plan = make_plan("a:1 -> b:1")
        assert len(_auto(plan, requests={"a": one, "b": other})) == (1 if joined else 2)

    def test_memory_of_all_together(self) -> None:
        """Each asks for twice as much as the one before: the third is too much for the first."""
        plan = make_plan("a:1 -> b:1 -> c:1")
        requests = {label: Resources(1, memory) for label, memory in zip("abc", (1, 2, 4), strict=True)}
        assert _shown(plan, _auto(plan, requests=requests)) == ["a1 b1", "c1"]


class TestTakenIn:
    """What depends on one cluster alone."""

    def test_all_that_depends(self) -> None:
        """It is in the cluster if waiting for each other costs less than starting a job."""
        plan = make_plan("a:1 -> b:1 b:2 b:3")
        assert _shown(plan, _auto(plan, durations={"b": JOB_COST_S / 2})) == ["a1 b1 b2 b3"]
        assert len(_auto(plan, durations={"b": JOB_COST_S / 2 + 1})) == 4

    def test_end_of_a_visit(self) -> None:
        """What gathers the quanta of one chunk goes with them."""
        plan = make_plan("; ".join(f"a:{v}1 a:{v}2 a:{v}3 -> b:{v}" for v in (1, 2)))
        assert _shown(plan, _auto(plan, durations={"a": 20})) == ["a11 a12 a13 b1", "a21 a22 a23 b2"]

    def test_not_if_others_would_wait(self) -> None:
        """One of the quanta that depend on it depends on something else too: none is taken in."""
        plan = make_plan("a:1 -> b:1 c:1; d:1 -> c:1")
        assert len(_auto(plan, durations={"b": 1, "c": 1})) == 4


class TestChunks:
    """Quanta of one task at one level."""

    @pytest.mark.parametrize(
        ("n", "seconds", "width", "n_jobs"),
        [
            (100, 60, 1000, 100),  # there are machines for all of them
            (100, 60, 10, 10),  # and here for ten
            (101, 60, 10, 10),
            (1000, 60, 10, 34),  # 30 of a minute are half an hour
            (100, 1, 1000, 2),  # 60 take as long as starting a job
            (100, 0, 1000, 1),
            (7, 4000, 1, 7),
        ],
    )
    def test_number(self, n: int, seconds: float, width: int, n_jobs: int) -> None:
        """As long as the target, but no fewer than machines, but no shorter than it takes to start one."""
        clusters = _auto(_siblings(n), width=width, durations={"a": seconds})
        assert len(clusters) == n_jobs
        sizes = [len(clusters.quanta(number)) for number in range(n_jobs)]
        assert max(sizes) - min(sizes) <= 1

    def test_levels_stay_apart(self) -> None:
        """Quanta of a task that become ready at different times are not joined."""
        plan = make_plan("a:1; a:2; c:1 c:2 -> a:3; c:1 c:2 -> a:4")
        shown = _shown(plan, _auto(plan, width=1, durations={"a": 500, "c": 1700}))
        assert sorted(shown) == ["a1 a2", "a3 a4", "c1", "c2"]

    def test_visits_stay_together(self) -> None:
        """Those that the same quantum waits for are in one chunk where they can be."""
        names = [f"a:{visit}{detector}" for detector in range(4) for visit in range(1, 7)]
        visits = [f"b:{visit}" for visit in range(1, 7)]
        edges = [(n, len(names) + int(name[2]) - 1) for n, name in enumerate(names)]
        plan = plan_of(names + visits, edges)
        shown = _shown(plan, _auto(plan, width=3, durations={"a": 200, "b": 700}, target_s=1800))
        whole = [{name[1] for name in job.split()} for job in shown if job.startswith("a")]
        assert [sorted(visits) for visits in whole] == [["1", "2"], ["3", "4"], ["5", "6"]]

    def test_serial(self) -> None:
        """Quanta that must not run side by side need no machines: as few jobs as fit, one after another."""
        plan = plan_of(
            [f"{label}:{n}" for label in "ab" for n in range(60)], [(n, 60 + n) for n in range(60)]
        )
        clusters = _auto(plan, serial_labels=["b"])
        serial = [n for n in range(len(clusters)) if clusters.name(n) == "b"]
        assert Counter(clusters.name(n) for n in range(len(clusters))) == {"a": 60, "b": 2}
        assert serial[0] in clusters.parents(serial[1])


class TestRemarks:
    """What the user is told."""

    def test_unknown_run_times(self) -> None:
        """Tasks to be clustered whose run times are not known are named."""
        plan = make_plan("a -> b -> c")
        rules = ClusterRules(algorithm=Algorithm.AUTO)
        (told,) = cluster_remarks(plan, np.array([1, 2]), rules, durations={"c": 5})
        assert "run times of b:" in told
        assert f"{UNKNOWN_S:.0f} s" in told
        assert cluster_remarks(plan, np.array([2]), rules, durations={"c": 5}) == []
        assert cluster_remarks(plan, np.arange(3), ClusterRules()) == []

    def test_keys_of_another_algorithm(self) -> None:
        """What is said and changes nothing is named, and so is an algorithm that has nothing to go by."""
        plan = make_plan("a -> b")
        for rules, words in (
            (ClusterRules(target_s=60.0, width=5), "jobDuration, parallelJobs: of no effect"),
            (ClusterRules(algorithm=Algorithm.CHUNKS, chunk_sizes={"a": None}), "there is no chunkSize"),
            (ClusterRules(algorithm=Algorithm.DIMENSIONS), "no section `cluster`"),
        ):
            (told,) = cluster_remarks(plan, np.arange(2), rules)
            assert words in told
        assert cluster_remarks(plan, np.arange(2), ClusterRules(chunk_sizes={"a": 3})) == []

    @pytest.mark.parametrize(
        ("plan", "name"),
        [("a -> b", "a+b"), ("a -> b -> c", "a+b+c"), ("a -> b -> c -> d", "a+2+d"), ("a", "a")],
    )
    def test_names(self, plan: str, name: str) -> None:
        """A cluster is called by its tasks."""
        assert _auto(make_plan(plan)).names == (name,)


@dataclass(frozen=True)
class _Case:
    plan: Plan
    indices: Sequence[int]
    rules: ClusterRules
    durations: Mapping[str, float]
    serial_labels: frozenset[str]
    requests: Mapping[str, Resources]

    def clusters(self) -> Clusters:
        try:
            return make_clusters(
                self.plan,
                np.array(self.indices, dtype=np.int64),
                self.rules,
                durations=self.durations,
                serial_labels=self.serial_labels,
                requests=self.requests,
            )
        except UsageError:
            # Unlike in a pipeline's graph, a quantum may wait for one of its own task by way of another.
            assert self.rules.algorithm is Algorithm.CHUNKS
            reject()


@st.composite
def _cases(draw: st.DrawFn) -> _Case:
    n = draw(st.integers(0, 24))
    names = [f"{draw(st.sampled_from(_LABELS))}:{number}" for number in range(n)]
    numbers = st.integers(0, max(0, n - 1))
    pairs = draw(st.lists(st.tuples(numbers, numbers), max_size=2 * n)) if n else []
    plan = plan_of(names, [(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]])
    # What has been done has its prerequisites done.
    done = bytearray(b"\1" * n)
    for index in draw(st.lists(numbers, max_size=n)) if n else []:
        done[index] = 0
        plan.mark_descendants(index, done, 0)
    seconds = st.sampled_from([0.0, 0.5, 7.0, 60.0, 100.0, 5000.0])
    return _Case(
        plan,
        [index for index in range(n) if not done[index]],
        ClusterRules(
            algorithm=draw(st.sampled_from([Algorithm.AUTO] * 3 + [Algorithm.CHUNKS, Algorithm.SINGLE])),
            chunk_size=draw(st.integers(1, 5)),
            target_s=draw(st.sampled_from([1.0, 130.0, 1800.0])),
            width=draw(st.sampled_from([1, 2, 5, 1000])),
        ),
        draw(st.dictionaries(st.sampled_from(_LABELS), seconds)),
        draw(st.frozensets(st.sampled_from(_LABELS), max_size=2)),
        draw(
            st.dictionaries(
                st.sampled_from(_LABELS),
                st.builds(Resources, st.integers(1, 2), st.none() | st.sampled_from([1000, 2000, 4000])),
            )
        ),
    )


def _waits_for(clusters: Clusters) -> list[set[int]]:
    """Return for each cluster all that must end before it."""
    waits: list[set[int]] = []
    for number in range(len(clusters)):
        parents = set(clusters.parents(number))
        waits.append(parents.union(*(waits[parent] for parent in parents)))
    return waits


class TestGuarantees:
    """What holds for any graph, run times and rules."""

    @given(_cases())
    def test_each_quantum_once_and_in_order(self, case: _Case) -> None:
        """Every quantum is in one cluster; a cluster has smaller numbers before it, which its quanta need."""
        clusters = case.clusters()
        home = {q: number for number in range(len(clusters)) for q in clusters.quanta(number)}
        assert sorted(q for number in range(len(clusters)) for q in clusters.quanta(number)) == case.indices
        for number in range(len(clusters)):
            assert list(clusters.quanta(number)) == sorted(clusters.quanta(number))
            needed = {
                home[p] for q in clusters.quanta(number) for p in case.plan.prerequisites(q) if p in home
            }
            assert needed - {number} <= set(clusters.parents(number))
            assert all(parent < number for parent in clusters.parents(number))

    @given(_cases())
    def test_serial_labels_in_turn(self, case: _Case) -> None:
        """Of two clusters with quanta of a serial task one waits for the other."""
        clusters = case.clusters()
        waits = _waits_for(clusters)
        for label in case.serial_labels:
            having = [n for n in range(len(clusters)) if label in self._labels(case, clusters, n)]
            assert all(first in waits[second] for first in having for second in having if first < second)

    @given(_cases())
    def test_sizes(self, case: _Case) -> None:
        """A job is no longer than it may be, and what is in it asks for similar things."""
        clusters = case.clusters()
        for number in range(len(clusters)):
            quanta, labels = clusters.quanta(number), self._labels(case, clusters, number)
            if case.rules.algorithm is not Algorithm.AUTO:
                assert len(set(labels)) == 1
                most = case.rules.chunk_size_of(labels[0]) if case.rules.algorithm is Algorithm.CHUNKS else 1
                assert len(quanta) <= most
                continue
            seconds = [case.durations.get(label, UNKNOWN_S) for label in labels]
            assert len(quanta) == 1 or sum(seconds) <= (case.rules.target_s or 0) * (1 + 1e-9)
            requests = [case.requests.get(label, Resources()) for label in labels]
            assert len({request.cores for request in requests}) == 1
            memory = [request.memory_bytes for request in requests]
            known = [size for size in memory if size is not None]
            assert len(known) in (0, len(memory))
            assert not known or max(known) <= MEMORY_RATIO * min(known)
            assert len(set(labels)) == 1 or not case.serial_labels & set(labels)

    @given(_cases())
    def test_the_same_again(self, case: _Case) -> None:
        """The same input gives the same clusters, which arrays give back."""
        first, second = case.clusters().to_arrays(), case.clusters().to_arrays()
        again = Clusters.from_arrays(first).to_arrays()
        for name, values in first.items():
            assert values.tolist() == second[name].tolist() == again[name].tolist()

    @given(st.integers(1, 300), st.sampled_from([0.5, 10.0, 60.0, 90.0, 700.0]), st.integers(1, 50))
    def test_no_machine_is_idle(self, n: int, seconds: float, width: int) -> None:
        """There are jobs for all machines, or they are no longer than it takes to start one."""
        clusters = _auto(_siblings(n), width=width, durations={"a": seconds})
        longest = max(len(clusters.quanta(number)) for number in range(len(clusters)))
        assert len(clusters) >= min(n, width) or longest * seconds <= JOB_COST_S

    @staticmethod
    def _labels(case: _Case, clusters: Clusters, number: int) -> list[str]:
        return [case.plan.label(index) for index in clusters.quanta(number)]
