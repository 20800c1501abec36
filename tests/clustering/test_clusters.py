"""`qgexec.clustering.clusters`: clusters in topological order, and chunks of single tasks."""

from __future__ import annotations

import numpy as np
import pytest

from qgexec.clustering.algorithms import make_clusters
from qgexec.clustering.clusters import Clusters
from qgexec.clustering.rules import Algorithm, ClusterRules
from qgexec.testing import make_plan


def _rows(clusters: Clusters) -> list[tuple[str, list[int], list[int]]]:
    return [
        (clusters.name(n), list(clusters.quanta(n)), list(clusters.parents(n))) for n in range(len(clusters))
    ]


def test_single() -> None:
    """One quantum per job is the plan over again."""
    plan = make_plan("a:1 a:2 -> b -> c")
    assert _rows(make_clusters(plan, np.arange(4), ClusterRules())) == [
        ("a", [0], []),
        ("a", [1], []),
        ("b", [2], [0, 1]),
        ("c", [3], [2]),
    ]


def test_nothing_left() -> None:
    """There may be nothing to cluster."""
    plan = make_plan("a -> b")
    for algorithm in Algorithm:
        rules = ClusterRules(algorithm=algorithm)
        clusters = make_clusters(plan, np.array([], dtype=np.int64), rules, serial_labels=["a"])
        assert _rows(clusters) == []
        assert len(Clusters.from_arrays(clusters.to_arrays())) == 0


def test_first() -> None:
    """A first part is whole in itself: none of it waits for what is left out."""
    clusters = make_clusters(make_plan("a:1 a:2 -> b -> c"), np.arange(4), ClusterRules())
    assert [_rows(clusters.first(n)) for n in range(5)] == [_rows(clusters)[:n] for n in range(5)]
    assert _rows(Clusters.from_arrays(clusters.first(3).to_arrays())) == _rows(clusters)[:3]


def test_chunks() -> None:
    """A task's quanta in the order of the plan, evenly; each task with its own size."""
    plan = make_plan("a:1; a:2; a:3; a:4; a:5; b:1; b:2; c")
    rules = ClusterRules(chunk_size=4, chunk_sizes={"b": 1})
    assert [quanta for _, quanta, _ in _rows(make_clusters(plan, np.arange(8), rules))] == [
        [0, 1, 2],
        [3, 4],
        [5],
        [6],
        [7],
    ]


def test_order_against_the_plan() -> None:
    """A cluster whose first quantum comes early waits for one whose first quantum comes later."""
    plan = make_plan("a:1; b:1 -> a:2; b:2")
    assert _rows(make_clusters(plan, np.arange(4), ClusterRules(chunk_sizes={"a": 2}))) == [
        ("b", [1], []),
        ("a", [0, 2], [0]),
        ("b", [3], []),
    ]


def test_in_turn() -> None:
    """Clusters of a serial task wait for each other in an order that fits all other waiting."""
    plan = make_plan("a:1 -> b:1; a:2 -> b:2; b:2 -> a:3")
    clusters = make_clusters(plan, np.arange(5), ClusterRules(), serial_labels=["a", "b", "x"])
    assert [(clusters.name(n), list(clusters.parents(n))) for n in range(5)] == [
        ("a", []),
        ("b", [0]),
        ("a", [0]),
        ("b", [1, 2]),
        ("a", [2, 3]),
    ]


@pytest.mark.parametrize("name", ["name_codes", "names", "quanta", "quantum_offsets", "parents"])
def test_damaged_arrays(name: str) -> None:
    """Arrays that do not fit together are no clusters."""
    plan = make_plan("a -> b -> c")
    arrays = make_clusters(plan, np.arange(3), ClusterRules()).to_arrays()
    with pytest.raises((KeyError, ValueError)):
        Clusters.from_arrays(arrays | {name: arrays[name][:-2]})
    del arrays[name]
    with pytest.raises(KeyError):
        Clusters.from_arrays(arrays)
