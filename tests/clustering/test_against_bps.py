"""Named clusters against those that ctrl_bps makes of the same graph and the same file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import yaml
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st
from lsst.ctrl.bps import BpsConfig
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from qgexec.clustering.algorithms import cluster_remarks, make_clusters
from qgexec.clustering.rules import Algorithm, ClusterRules
from qgexec.config.bpsfile import read_config
from qgexec.errors import UsageError
from qgexec.rubin.graphfile import read_plan
from qgexec.scheduling.plan import Plan
from tests.kit.butler.clustergraphs import (
    TASKS,
    Partition,
    bps_clusters,
    bps_partition,
    make_sky_graph,
    partition,
)

_DETECTORS = "isr,calibrateImage,analyzeInitialSummaryStats"
_EQUAL = "visit:exposure"
_COADDS = "assembleDeepCoadd,measureObjectUnforced"
_PRODUCTION = Path(os.environ.get("QGEXEC_BPS_FILES", Path(__file__).parents[3] / "shared" / "data" / "bps"))
"""Clustering files of the LSST pipelines, where they are at hand; they are not ours to copy."""


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, PredictedQuantumGraph]:
    """The graph, as our plan and as upstream's."""
    path = make_sky_graph(tmp_path_factory.mktemp("sky"))
    with PredictedQuantumGraph.open(str(path)) as reader:
        reader.read_all()
        return read_plan(path), reader.finish()


def _rules(folder: Path, clusters: Mapping[str, Any]) -> ClusterRules:
    path = folder / "clusters.yaml"
    path.write_text(yaml.safe_dump({"cluster": clusters}))
    return read_config([path]).batch.clustering


def _ours(plan: Plan, rules: ClusterRules) -> Partition:
    return partition(plan, make_clusters(plan, np.arange(len(plan)), rules))


@pytest.mark.parametrize(
    ("clusters", "n_clusters"),
    [
        # By a dimension that only some tasks have, another standing for it in the others.
        ({"a": {"pipetasks": _DETECTORS, "dimensions": "visit,detector", "equalDimensions": _EQUAL}}, 48),
        ({"a": {"pipetasks": _DETECTORS, "dimensions": "visit", "equalDimensions": "exposure:visit"}}, 12),
        ({"a": {"pipetasks": " isr , calibrateImage ", "dimensions": " detector "}}, 4),
        # No dimension: one cluster.
        ({"a": {"pipetasks": "isr"}}, 1),
        ({"a": {"pipetasks": _COADDS, "dimensions": "tract,patch,band"}}, 10),
        ({"a": {"pipetasks": _COADDS, "dimensions": "tract"}, "b": {"pipetasks": "isr"}}, 3),
        # Parts: 4 detectors, 12 visits.
        *(
            (
                {
                    "a": {
                        "pipetasks": _DETECTORS,
                        "dimensions": "detector",
                        "equalDimensions": "visit:exposure",
                        "partitionDimensions": "exposure",
                        key: number,
                    }
                },
                n_clusters,
            )
            for key, number, n_clusters in [
                ("partitionMaxClusters", 4, 4),
                ("partitionMaxClusters", 7, 4),
                ("partitionMaxClusters", 20, 20),
                ("partitionMaxClusters", 50000, 48),
                ("partitionMaxSize", 1, 48),
                ("partitionMaxSize", 5, 12),
                ("partitionMaxSize", 100, 4),
            ]
        ),
        # Parts by two dimensions, without others.
        ({"a": {"pipetasks": "isr", "partitionDimensions": "exposure,detector", "partitionMaxSize": 7}}, 7),
        # A limit without partitionDimensions means nothing.
        ({"a": {"pipetasks": "isr", "dimensions": "band", "partitionMaxClusters": 7}}, 2),
        *(
            (
                {
                    "a": {
                        "pipetasks": "isr,calibrateImage,consolidateVisitSummary",
                        "dimensions": "visit",
                        "equalDimensions": "visit:exposure",
                        "findDependencyMethod": method,
                    }
                },
                12,
            )
            for method in ("source", "sink")
        ),
        # A task that the graph does not have, even in two clusters.
        ({"a": {"pipetasks": "isr,x", "dimensions": "band"}, "b": {"pipetasks": "x,calibrateImage"}}, 3),
        ({"a": {"pipetasks": "x"}}, 0),
    ],
)  # fmt: skip
def test_same_clusters(
    sky: tuple[Plan, PredictedQuantumGraph], clusters: dict[str, Any], n_clusters: int, tmp_path: Path
) -> None:
    """Each rule gives the clusters that BPS makes, and as many as one counts by hand."""
    plan, graph = sky
    expected = bps_partition(bps_clusters(graph, clusters))
    assert _ours(plan, _rules(tmp_path, clusters)) == expected
    named = {
        label for cluster in clusters.values() for label in cluster["pipetasks"].replace(" ", "").split(",")
    }
    n_others = sum(count for label, count in plan.count_by_label().items() if label not in named)
    assert len(expected) == n_clusters + n_others


def _dimensions_of(label: str) -> set[str]:
    own = set(TASKS[label][0].split())
    return {"visit" if name == "exposure" else name for name in own} | ({"band"} if "visit" in own else set())


@st.composite
def _sections(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a section of clusters of tasks that follow one another, mostly by dimensions that they share."""
    labels = list(TASKS)
    edges = sorted(draw(st.sets(st.integers(0, len(labels)), min_size=2, max_size=5)))
    section: dict[str, Any] = {}
    for begin, end in pairwise(edges):
        tasks = labels[begin:end]
        shared = sorted(set.intersection(*map(_dimensions_of, tasks)))
        if draw(st.integers(0, 9)) == 0:
            shared.append("detector")
        chosen = draw(st.lists(st.sampled_from(shared), max_size=3, unique=True)) if shared else []
        n_own = draw(st.integers(0, len(chosen)))
        cluster: dict[str, Any] = {
            "pipetasks": ",".join(draw(st.permutations(tasks))),
            "equalDimensions": "visit:exposure",
        }
        if chosen[:n_own]:
            cluster["dimensions"] = ",".join(chosen[:n_own])
        if chosen[n_own:]:
            cluster["partitionDimensions"] = ",".join(chosen[n_own:])
            key = draw(st.sampled_from(["partitionMaxClusters", "partitionMaxSize"]))
            cluster[key] = draw(st.integers(1, 60))
        if draw(st.booleans()):
            cluster["findDependencyMethod"] = draw(st.sampled_from(["source", "sink"]))
        section[f"c{begin}"] = cluster
    return section


@settings(max_examples=150)
@given(section=_sections())
def test_any_section(
    sky: tuple[Plan, PredictedQuantumGraph], section: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever a file says: what BPS makes is made here, unless its jobs would wait for each other."""
    plan, graph = sky
    rules = _rules(tmp_path_factory.mktemp("any"), section)
    rules = ClusterRules(algorithm=Algorithm.DIMENSIONS, clusters=rules.clusters)
    try:
        clustered = bps_clusters(graph, section)
    except (RuntimeError, KeyError):
        reject()  # BPS refuses it: for a task without a dimension, too many clusters, tasks in a circle
    if nx.is_directed_acyclic_graph(clustered._cluster_graph):
        event("the same")
        assert _ours(plan, rules) == bps_partition(clustered)
    else:
        event("a circle of jobs")
        with pytest.raises(UsageError, match="circle"):
            _ours(plan, rules)


@pytest.mark.skipif(not _PRODUCTION.is_dir(), reason="the pipelines' own files are not here")
class TestProduction:
    """The clustering files of the LSST pipelines."""

    def test_as_it_is(self, sky: tuple[Plan, PredictedQuantumGraph]) -> None:
        """It is read without a warning about its keys, and makes what BPS makes of it."""
        plan, graph = sky
        path = _PRODUCTION / "clustering_LSSTCam_DRP-clustering.yaml"
        config = read_config([path])
        rules = config.batch.clustering
        assert config.unknown == ()
        assert (rules.algorithm, len(rules.clusters)) == (Algorithm.DIMENSIONS, 20)
        upstream = BpsConfig(str(path))["cluster"]
        section = {name: dict(upstream[name]) for name in upstream}
        ours = _ours(plan, rules)
        assert ours == bps_partition(bps_clusters(graph, section))
        assert {name for name, _ in ours} == {"", "step1detector", "makeWarpTract"}

    def test_labels_that_the_graph_lacks(self, sky: tuple[Plan, PredictedQuantumGraph]) -> None:
        """They are told of in one sentence."""
        rules = read_config([_PRODUCTION / "clustering_LSSTCam_DRP-clustering.yaml"]).batch.clustering
        (told,) = cluster_remarks(sky[0], np.arange(3), rules)
        assert "analyzeAmpOffsetMetadata" in told
        assert "more" in told

    def test_a_file_that_includes_another(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What it includes is read from where the package is."""
        included = tmp_path / "bps" / "clustering" / "DRP-recalibrated.yaml"
        included.parent.mkdir(parents=True)
        included.write_text("cluster: {a: {pipetasks: isr, dimensions: detector}}")
        monkeypatch.setenv("DRP_PIPE_DIR", str(tmp_path))
        config = read_config([_PRODUCTION / "clustering_HSC_DRP-RC2-clustering.yaml"])
        assert list(config.batch.clustering.clusters) == ["a"]
