"""`qgexec.clustering.named`: clusters by dimensions; that they are BPS's is in test_against_bps."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np
import pytest

from qgexec.clustering.algorithms import cluster_remarks, make_clusters
from qgexec.clustering.clusters import Clusters
from qgexec.clustering.rules import Algorithm, ClusterRules, NamedCluster
from qgexec.errors import UsageError
from qgexec.scheduling.dataids import DataIds
from qgexec.scheduling.plan import Plan

_TASKS = {"isr": ("exposure", "detector"), "summary": ("visit",), "coadd": ("patch",)}


def _plan() -> Plan:
    """Two exposures of three detectors, gathered by visit, then all in one patch."""
    codes = [0] * 6 + [1] * 2 + [2]
    data_ids = [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3], [1], [2], [9]]
    edges = [(0, 6), (1, 6), (2, 6), (3, 7), (4, 7), (5, 7), (6, 8), (7, 8)]
    return Plan.from_edges(
        labels=_TASKS,
        label_codes=codes,
        quantum_ids=b"".join(uuid.UUID(int=n).bytes for n in range(1, 10)),
        data_ids=DataIds.pack(data_ids),
        predecessors=[first for first, _ in edges],
        successors=[second for _, second in edges],
    )


def _made(*named: NamedCluster, indices: Sequence[int] = range(9), **rules: int) -> list[list[int]]:
    clusters = _clusters(*named, indices=indices, **rules)
    return [list(clusters.quanta(number)) for number in range(len(clusters))]


def _clusters(*named: NamedCluster, indices: Sequence[int] = range(9), **rules: int) -> Clusters:
    names = {f"c{n}": cluster for n, cluster in enumerate(named, start=1)}
    return make_clusters(_plan(), np.array(indices), ClusterRules(clusters=names, **rules))  # type: ignore[arg-type]


def test_names_and_parents() -> None:
    """Clusters are called by the file's names, single quanta by their tasks."""
    clusters = _clusters(NamedCluster(pipetasks=("isr",), dimensions=("exposure",)))
    assert [clusters.name(n) for n in range(len(clusters))] == ["c1", "c1", "summary", "summary", "coadd"]
    assert [list(clusters.parents(n)) for n in range(len(clusters))] == [[], [], [0], [1], [2, 3]]


def test_the_rest_in_chunks() -> None:
    """Quanta of tasks in no named cluster are single, or in chunks where that was asked for."""
    named = NamedCluster(pipetasks=("summary",))
    assert _made(named) == [[0], [1], [2], [3], [4], [5], [6, 7], [8]]
    assert _made(named, chunk_size=4) == [[0, 1, 2], [3, 4, 5], [6, 7], [8]]


@pytest.mark.parametrize(("size", "chunks"), [(1, 6), (2, 4), (3, 2), (9, 2)])
def test_size(size: int, chunks: int) -> None:
    """Clusters are cut evenly, in the order of the plan."""
    named = NamedCluster(pipetasks=("isr",), dimensions=("exposure",), size=size)
    made = _made(named, indices=range(6))
    assert len(made) == chunks
    assert sorted(index for quanta in made for index in quanta) == list(range(6))
    assert max(map(len, made)) <= size


def test_what_is_left() -> None:
    """Only quanta that are still to be done are counted."""
    named = NamedCluster(
        pipetasks=("isr",), partition_dimensions=("exposure", "detector"), partition_max_clusters=2
    )
    assert _made(named, indices=range(2, 6)) == [[2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("method", "pipetasks", "made"),
    [
        ("source", ("isr", "summary"), [[0, 1, 2, 6], [3, 4, 5, 7], [8]]),
        ("sink", ("coadd", "summary"), [[0], [1], [2], [3], [4], [5], [6, 7, 8]]),
        ("source", ("summary", "coadd"), [[0], [1], [2], [3], [4], [5], [7], [6, 8]]),
    ],
)
def test_tasks_without_the_dimension(method: str, pipetasks: tuple[str, ...], made: list[list[int]]) -> None:
    """They follow the first quantum that they depend on, or that depends on them."""
    dimensions = {"isr": "exposure", "coadd": "patch", "summary": "visit"}[pipetasks[0]]
    named = NamedCluster(pipetasks=pipetasks, dimensions=(dimensions,), find_dependency_method=method)
    if made[-1] == [6, 8]:
        with pytest.raises(UsageError, match="lacks a dimension"):
            _made(NamedCluster(pipetasks=pipetasks, dimensions=("patch",), find_dependency_method=method))
    assert sorted(_made(named)) == sorted(made)


class TestErrors:
    """Definitions that do not fit the graph: one message with file and line."""

    @pytest.mark.parametrize(
        ("named", "message"),
        [
            (
                [NamedCluster(pipetasks=("isr", "coadd"), dimensions=("detector",), where="f:3")],
                "f:3: cluster c1 is of detector, but task coadd has no detector",
            ),
            (
                [NamedCluster(pipetasks=("isr",), dimensions=("visit",))],
                "cluster c1 is of visit, but task isr has no visit",
            ),
            (
                [NamedCluster(pipetasks=("isr",)), NamedCluster(pipetasks=("coadd", "isr"), where="f:7")],
                "f:7: task isr is in cluster c2, but also in c1",
            ),
            (
                [NamedCluster(pipetasks=("isr", "isr"), where="f:7")],
                "f:7: task isr is in cluster c1 twice",
            ),
            (
                [
                    NamedCluster(
                        pipetasks=("isr",),
                        dimensions=("exposure", "detector"),
                        partition_dimensions=("exposure",),
                        partition_max_clusters=5,
                        where="f:2",
                    )
                ],
                "f:2: cluster c1 makes 6 clusters by exposure, detector alone, but partitionMaxClusters is 5",
            ),
            (
                [NamedCluster(pipetasks=("isr", "coadd"), where="f:9")],
                "f:9: clusters of quanta wait for each other in a circle: c1 (with isr{exposure: 1, ",
            ),
        ],
    )
    def test_message(self, named: list[NamedCluster], message: str) -> None:
        """It says what is wrong, and what to do."""
        with pytest.raises(UsageError) as raised:
            _made(*named)
        assert raised.value.message.startswith(message)
        assert raised.value.hint

    def test_tasks_that_the_graph_lacks(self) -> None:
        """They may stand in several clusters, and are told of."""
        named = {name: NamedCluster(pipetasks=("isr" + name, "y")) for name in "ab"}
        rules = ClusterRules(algorithm=Algorithm.DIMENSIONS, clusters=named)
        assert len(make_clusters(_plan(), np.arange(9), rules)) == 9
        assert cluster_remarks(_plan(), np.arange(9), rules) == [
            "Clusters name tasks that this graph does not have: isra, y, isrb."
        ]
