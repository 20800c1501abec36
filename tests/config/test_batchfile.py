"""`qgexec.config.batchfile`: keys about batch jobs and clusters, and the settings that they make."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qgexec.clustering.algorithms import make_clusters
from qgexec.clustering.rules import Algorithm, ClusterRules, NamedCluster
from qgexec.config.batchsettings import BatchSettings
from qgexec.config.bpsfile import read_config
from qgexec.config.runconfig import RunConfig
from qgexec.errors import UsageError
from qgexec.testing import make_plan

GIB = 2**30
_PAGE = Path(__file__).parents[2] / "docs" / "clustering.md"


def _config(folder: Path, text: str, name: str = "a.yaml") -> RunConfig:
    path = folder / name
    path.write_text(text)
    return read_config([path])


def _batch(folder: Path, text: str) -> BatchSettings:
    return _config(folder, text).batch


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("queue: milano", {"queue": "milano"}),
        ("queue: 5", {"queue": "5"}),
        ("queue: ''", {"queue": None}),
        ("accountingGroup: rubin:developers", {"account": "rubin:developers"}),
        ("accountingUser: me", {"accounting_user": "me"}),
        ("container: /sw/stack.sif", {"container": "/sw/stack.sif"}),
        ("setup: source /sw/loadLSST.bash", {"setup": ("source /sw/loadLSST.bash",)}),
        ("setup: [module load x, 'export A=$B{c}']", {"setup": ("module load x", "export A=$B{c}")}),
        ("setup: |\n  if true; then\n    a\n  fi\n", {"setup": ("if true; then\n  a\nfi\n",)}),
        ("setup: null", {"setup": ()}),
        ("environment: {A: 1, B: x, C: null}", {"environment": {"A": "1", "B": "x", "C": ""}}),
        (
            "base: /sw\nenvironment: {A: '{base}/lib', D: '${HERE}'}",
            {"environment": {"A": "/sw/lib", "D": "h"}},
        ),
        ("submitLines: --qos=low", {"submit_lines": ("--qos=low",)}),
        ("submitLines: ['--qos=low', '+X = $(Y)']", {"submit_lines": ("--qos=low", "+X = $(Y)")}),
        ("submitLines: |\n  a = 1\n\n  b = 2\n", {"submit_lines": ("a = 1", "b = 2")}),
        ("maxIdle: 50\nmaxJobs: 200", {"max_idle": 50, "max_jobs": 200}),
        ("jobWalltime: '12:00:00'", {"walltime_s": 43200.0}),
        ("visibilityWait: 150", {"visibility_s": 150.0}),
        ("finalJob: {requestMemory: 32768, requestCpus: 16}", {"closing_memory_bytes": 32 * GIB}),
        ("finalJob: {requestMemory: null}", {}),
        ("finalJob:", {}),
    ],
)
def test_values(tmp_path: Path, text: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key means the same at top level and for the site that is chosen; no other site counts."""
    monkeypatch.setenv("HERE", "h")
    config = _config(tmp_path, text)
    assert _told(config.batch) == _told(BatchSettings(**settings))
    assert config.unknown == ()
    below = "".join(f"\n    {line}" for line in text.splitlines())
    for chosen, expected in (("here", settings), ("there", {})):
        config = _config(tmp_path, f"queue: top\ncomputeSite: {chosen}\nsite:\n  here:{below}\n  there: {{}}")
        assert _told(config.batch) == _told(BatchSettings(**{"queue": "top"} | expected, site=chosen))
        assert config.unknown == ()


def _told(batch: BatchSettings) -> dict[str, Any]:
    return {key: value for key, value in batch.to_json().items() if key != "said"}


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("clusterAlgorithm: auto\njobDuration: 0:30:00\nparallelJobs: 9", {"target_s": 1800.0, "width": 9}),
        ("clusterAlgorithm: single", {"algorithm": Algorithm.SINGLE}),
        (
            "clusterAlgorithm: lsst.ctrl.bps.quantum_clustering_funcs.single_quantum_clustering",
            {"algorithm": Algorithm.SINGLE},
        ),
        (
            "clusterAlgorithm: lsst.ctrl.bps.quantum_clustering_funcs.dimension_clustering",
            {"algorithm": Algorithm.DIMENSIONS},
        ),
        ("clusterAlgorithm: null", {}),
        (
            "chunkSize: 20\npipetask: {isr: {chunkSize: 50}, coadd: {chunkSize: null}}",
            {"chunk_size": 20, "chunk_sizes": {"isr": 50, "coadd": None}},
        ),
        (
            "cluster: {a: {pipetasks: ' isr , x,', size: null, clusterTemplate: '{visit}'}}",
            {"clusters": {"a": NamedCluster(pipetasks=("isr", "x"))}},
        ),
        (
            """cluster:
                 a:
                   pipetasks: [isr, x]
                   dimensions: tract, patch
                   equalDimensions: visit:exposure,a:b
                   partitionDimensions: band
                   partitionMaxSize: 5
                   findDependencyMethod: sink
            """,
            {
                "clusters": {
                    "a": NamedCluster(
                        pipetasks=("isr", "x"),
                        dimensions=("tract", "patch"),
                        equal_dimensions=(("visit", "exposure"), ("a", "b")),
                        partition_dimensions=("band",),
                        partition_max_size=5,
                        find_dependency_method="sink",
                    )
                }
            },
        ),
        (
            "n: 7\ncluster: {a: {pipetasks: isr, size: '{n}'}}",
            {"clusters": {"a": NamedCluster(pipetasks=("isr",), size=7)}},
        ),
    ],
)
def test_rules(tmp_path: Path, text: str, rules: dict[str, Any]) -> None:
    """Each key of clusters; where an entry stands is remembered."""
    if "target_s" in rules:
        rules |= {"algorithm": Algorithm.AUTO}
    config = _config(tmp_path, text)
    read = config.batch.clustering.to_json()
    places = [cluster.pop("where") for cluster in read["clusters"].values()]
    expected = ClusterRules(**rules).to_json()
    for cluster in expected["clusters"].values():
        del cluster["where"]
    assert read == expected
    assert all(re.fullmatch(rf"{tmp_path}/a.yaml:\d", place) for place in places)
    assert config.unknown == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queue: [a, b]", "one value"),
        ("environment: LANG=C", "section"),
        ("setup: {a: b}", "setup is a text"),
        ("setup: [a, 5]", "setup is a text"),
        ("submitLines: 5", "submitLines is a text"),
        ("maxIdle: 0", "maxIdle"),
        ("maxJobs: many", "maxJobs"),
        ("jobWalltime: 1h", "jobWalltime"),
        ("jobDuration: 0", "jobDuration"),
        ("parallelJobs: 1.5", "parallelJobs"),
        ("finalJob: {requestMemory: 8 GB}", "finalJob: requestMemory"),
        ("site: here", "site: a section with keys should stand here"),
        ("environment: {'A B': x}", "environment: 'A B' is no name of a variable"),
        ("queue: [a, b]", "queue: one value should stand here"),
        ("clusterAlgorithm: my.own.function", "single, chunks, dimensions or auto"),
        ("chunkSize: 0", "chunkSize"),
        ("pipetask: {isr: {chunkSize: x}}", "chunkSize"),
        ("cluster: isr", "section"),
        ("cluster: {a: isr}", "section"),
        ("cluster: {a: {dimensions: visit}}", "cluster a names no tasks"),
        ("cluster: {a: {pipetasks: ''}}", "cluster a names no tasks"),
        ("cluster: {a: {pipetasks: 'isr,b', size: 5}}", "several tasks"),
        ("cluster: {a: {pipetasks: isr, size: 0}}", "size"),
        ("cluster: {a: {pipetasks: isr, equalDimensions: visit}}", "equalDimensions"),
        ("cluster: {a: {pipetasks: isr, equalDimensions: 'a:b:c'}}", "equalDimensions"),
        ("cluster: {a: {pipetasks: isr, partitionDimensions: visit}}", "not one of partitionMaxClusters"),
        ("cluster: {a: {pipetasks: x, partitionDimensions: v, <<: *both}}", "not one of"),
        ("cluster: {a: {pipetasks: isr, partitionMaxClusters: none}}", "not a number of jobs"),
        ("cluster: {a: {pipetasks: isr, partitionMaxSize: none}}", "not a number of values"),
        ("cluster: {a: {pipetasks: isr, findDependencyMethod: both}}", "findDependencyMethod"),
    ],
)
def test_wrong_values(tmp_path: Path, text: str, message: str) -> None:
    """They are refused with file and line."""
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        _config(tmp_path, f"x: &both {{partitionMaxSize: 1, partitionMaxClusters: 1}}\n{text}")
    assert raised.value.message.startswith(f"{tmp_path}/a.yaml:2: ")


def test_keys_in_the_wrong_place(tmp_path: Path) -> None:
    """What is not taken where it stands is named; what a site of Parsl's has is its own."""
    text = (
        "computeSite: here\nsite: {here: {maxidle: 5}}\npipetask:\n  isr:\n    queue: long\n"
        "finalJob: {requestMemoryMax: 5, requestMemry: 5}\n"
        "cluster:\n  a:\n    pipetasks: isr\n  b:\n    pipetasks: coadd\n    queue: long\n"
        "    dimension: visit\n  a:\n    pipetasks: isr\n    partitionMaxSize: 5\n"
    )
    assert _config(tmp_path, text).unknown == (
        f"maxidle ({tmp_path}/a.yaml:2; is it maxIdle?)",
        f"queue ({tmp_path}/a.yaml:5; not taken for a single task)",
        f"requestMemry ({tmp_path}/a.yaml:6; is it requestMemory?)",
        f"partitionMaxSize ({tmp_path}/a.yaml:16; only with partitionDimensions)",
        f"queue ({tmp_path}/a.yaml:12; not taken for a single cluster)",
        f"dimension ({tmp_path}/a.yaml:13; is it dimensions?)",
        f"a ({tmp_path}/a.yaml:14; it stood there before, this one counts)",
    )
    parsl = "computeSite: x\nsite: {x: {class: lsst.a.B, retries: 1, environment: true, nodes: 5, queue: q}}"
    config = _config(tmp_path, parsl)
    assert (config.unknown, config.batch.queue) == ((), "q")


def test_place_of_a_cluster(tmp_path: Path) -> None:
    """What is wrong with a cluster only for a graph is told with its line too."""
    rules = _batch(tmp_path, "x: &y 1\ncluster:\n  loop: {pipetasks: 'a,c'}").clustering
    with pytest.raises(UsageError, match="circle") as raised:
        make_clusters(make_plan("a -> b -> c"), np.arange(3), rules)
    assert raised.value.message.startswith(f"{tmp_path}/a.yaml:3: ")


class TestSettings:
    """Settings as values that can be kept and laid over one another."""

    FULL = BatchSettings(
        site="s",
        queue="q",
        setup=("a", "b"),
        environment={"A": "1"},
        environments={"isr": {"A": None, "B": "x"}},
        submit_lines=("x",),
        max_jobs=5,
        clustering=ClusterRules(algorithm=Algorithm.AUTO, chunk_sizes={"isr": 5}),
    )

    @pytest.mark.parametrize("settings", [BatchSettings(), FULL])
    def test_round_trip(self, settings: BatchSettings) -> None:
        """JSON gives back what it was given, also as a part of a configuration."""
        assert BatchSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
        config = RunConfig(batch=settings)
        assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config

    def test_runs_of_before(self) -> None:
        """A run that was kept before there were batch systems says nothing about them."""
        assert RunConfig.from_json({"common": {}, "tasks": {}}).batch == BatchSettings()

    def test_later_settings(self) -> None:
        """What was said later counts; variables add up; the rest stays."""
        later = BatchSettings(queue="r", environment={"B": "2"}, clustering=ClusterRules(width=7))
        both = RunConfig(batch=self.FULL).updated(RunConfig(batch=later)).batch
        assert (both.queue, both.site, both.max_jobs, both.setup) == ("r", "s", 5, ("a", "b"))
        assert both.environment == {"A": "1", "B": "2"}
        assert (both.clustering.algorithm, both.clustering.width) == (Algorithm.AUTO, 7)
        assert self.FULL.updated(BatchSettings()) == self.FULL == BatchSettings().updated(self.FULL)

    def test_null_takes_back(self, tmp_path: Path) -> None:
        """What was said before can be taken back, for a run that goes on."""
        later = _batch(tmp_path, "queue: null\nsetup: null\nenvironment: null\nmaxJobs: null")
        both = self.FULL.updated(BatchSettings.from_json(json.loads(json.dumps(later.to_json()))))
        assert (both.queue, both.setup, both.environment, both.max_jobs) == (None, (), {}, None)
        assert both.site == "s"


class TestPage:
    """The examples in the documentation."""

    @pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", _PAGE.read_text(), flags=re.DOTALL))
    def test_example_is_read(self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is right in every key, and makes clusters."""
        monkeypatch.setenv("DRP_PIPE_DIR", str(tmp_path))
        included = tmp_path / "bps" / "clustering" / "LSSTCam" / "DRP-clustering.yaml"
        included.parent.mkdir(parents=True)
        included.write_text("cluster: {step1detector: {pipetasks: isr, dimensions: detector}}")
        config = _config(tmp_path, text)
        assert config.unknown == ()
        plan = make_plan("isr:1 -> calibrateImage:1; isr:2 -> calibrateImage:2")
        rules = ClusterRules(algorithm=Algorithm.SINGLE)
        assert len(make_clusters(plan, np.arange(4), config.batch.clustering.updated(rules))) == 4
