"""`qgexec.clustering.rules`: what was asked for, as values."""

from __future__ import annotations

import json

import pytest

from qgexec.clustering.rules import Algorithm, ClusterRules, NamedCluster

_NAMED = NamedCluster(
    pipetasks=("isr", "calibrateImage"),
    dimensions=("detector",),
    equal_dimensions=(("visit", "exposure"),),
    partition_dimensions=("exposure",),
    partition_max_clusters=7,
    find_dependency_method="sink",
    where="a.yaml:3",
)
_ALL = ClusterRules(
    algorithm=Algorithm.AUTO,
    clusters={"one": _NAMED},
    chunk_size=5,
    chunk_sizes={"isr": 7, "coadd": None},
    target_s=600.0,
    width=50,
)


@pytest.mark.parametrize("rules", [ClusterRules(), _ALL])
def test_round_trip(rules: ClusterRules) -> None:
    """JSON gives back what it was given."""
    assert ClusterRules.from_json(json.loads(json.dumps(rules.to_json()))) == rules


@pytest.mark.parametrize(
    ("rules", "algorithm"),
    [
        (ClusterRules(), Algorithm.SINGLE),
        (ClusterRules(chunk_size=5), Algorithm.CHUNKS),
        (ClusterRules(chunk_sizes={"isr": 5}), Algorithm.CHUNKS),
        (ClusterRules(chunk_sizes={"isr": None}), Algorithm.SINGLE),
        (ClusterRules(chunk_size=5, clusters={"one": _NAMED}), Algorithm.DIMENSIONS),
        (ClusterRules(algorithm=Algorithm.SINGLE, clusters={"one": _NAMED}), Algorithm.SINGLE),
        (_ALL, Algorithm.AUTO),
    ],
)
def test_algorithm(rules: ClusterRules, algorithm: Algorithm) -> None:
    """What was asked for, else what the other rules are for."""
    assert rules.effective is algorithm


def test_chunk_sizes() -> None:
    """A task's own counts, also where it takes back that of all."""
    assert [_ALL.chunk_size_of(label) for label in ("isr", "coadd", "x")] == [7, 1, 5]


def test_later_rules() -> None:
    """They count, and take nothing away that they do not speak of."""
    other = NamedCluster(pipetasks=("coadd",))
    later = ClusterRules(width=3, clusters={"two": other}, chunk_sizes={"isr": 9})
    both = _ALL.updated(later)
    assert (both.algorithm, both.width, both.chunk_size) == (Algorithm.AUTO, 3, 5)
    assert both.clusters == {"one": _NAMED, "two": other}
    assert both.chunk_sizes == {"isr": 9, "coadd": None}
    assert _ALL.updated(ClusterRules()) == _ALL == ClusterRules().updated(_ALL)
    assert later.updated(ClusterRules(clusters={"two": _NAMED})).clusters == {"two": _NAMED}
