"""What a BPS configuration means: the file of resources and the command that the service makes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from qgexec.bps import auto, by_task
from qgexec.bps.settings import Settings
from qgexec.clustering.rules import Algorithm
from qgexec.config.bpsfile import read_config
from qgexec.config.runconfig import RunConfig
from qgexec.errors import ModelError, UsageError
from tests.kit.butler.repos import N_QUANTA, MockRepository

SERVICE = "qgexec.bps.QgexecService"

MIB = 1 << 20


def _config(**keys: Any) -> BpsConfig:
    """Return a configuration as ctrl_bps gives it to the service, with its defaults and ours."""
    return BpsConfig(
        {"wmsServiceClass": SERVICE, "bps_defined": {"timestamp": "T", "operator": "me"}, **keys},
        search_order=BPS_SEARCH_ORDER,
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn=SERVICE,
    )


def _resources(folder: Path, **keys: Any) -> RunConfig:
    """Return what qgexec reads of the file that the service writes."""
    Settings(_config(**keys)).write_resources(folder / "qgexec.yaml")
    return read_config([folder / "qgexec.yaml"])


def _command(**keys: Any) -> list[str]:
    settings = Settings(_config(**keys))
    return settings.arguments("graph.qg", Path("r.yaml"), Path("run"), extends=False)


def test_defaults_are_those_of_bps(tmp_path: Path) -> None:
    """What ctrl_bps asks for by default is asked for here, but for the job that ingests."""
    found = _resources(tmp_path)
    assert found.common == {
        "cores": 1,
        "memory_bytes": 2048 * MIB,
        "memory_limit_bytes": 491520 * MIB,
        "memory_multiplier": 2,
        "n_retries": 5,
        "retry_unless_exit": [1, 2],
    }
    assert found.batch.closing_memory_bytes == 4096 * MIB
    assert found.batch.clustering.effective is Algorithm.SINGLE
    assert found.unknown == ()


def test_sections_count_as_in_bps(tmp_path: Path) -> None:
    """The command line of bps comes first, then payload, task, site, and the top level."""
    found = _resources(
        tmp_path,
        bps_cmdline={"computeSite": "there", "numberOfRetries": 1},
        payload={"numberOfRetries": 2, "requestCpus": 3},
        pipetask={"isr": {"requestMemory": "{small}", "requestCpus": 4}},
        site={"there": {"queue": "milano_{operator}", "requestMemory": 3000, "numberOfRetries": 7}},
        computeSite="here",
        small=1000,
        requestMemory=4000,
    )
    assert found.batch.site == "there"
    assert found.batch.queue == "milano_me"
    assert (found.common["n_retries"], found.common["cores"]) == (1, 3)
    assert found.common["memory_bytes"] == 3000 * MIB
    assert found.tasks["isr"] == {"memory_bytes": 1000 * MIB}


def test_bps_eval(tmp_path: Path) -> None:
    """What ctrl_bps evaluates is evaluated by it, for the task that it stands at."""
    found = _resources(
        tmp_path,
        base=1000,
        requestMemory="bpsEval(max, {base}, 500)",
        pipetask={"isr": {"base": 3000, "requestMemory": "bpsEval(min, {base}, 9000)"}},
        site={"x": {"environment": {"N": "bpsEval(math.floor, 2.5)"}}},
        computeSite="x",
    )
    assert found.common["memory_bytes"] == 1000 * MIB
    assert found.tasks["isr"]["memory_bytes"] == 3000 * MIB
    assert found.batch.environment == {"N": str(math.floor(2.5))}


def test_requests_and_environment_of_a_cluster(tmp_path: Path) -> None:
    """They hold for the tasks that it names, before what is said of these tasks and of the site."""
    found = _resources(
        tmp_path,
        base=1000,
        environment={"A": "all", "PLACE": "{place}"},
        place="here",
        pipetask={"isr": {"requestMemory": 9000, "requestCpus": 2, "environment": {"A": "${A}+isr"}}},
        cluster={
            "images": {
                "pipetasks": "isr,calibrate",
                "dimensions": "visit",
                "base": 3000,
                "requestMemory": "bpsEval(min, {base}, 9000)",
                "requestWalltime": 7200,
                "numberOfRetries": 1,
                "environment": {"A": "both", "PLACE": "{base}"},
            }
        },
    )
    assert found.tasks["isr"] == {"memory_bytes": 3000 * MIB, "cores": 2, "n_retries": 1}
    assert found.tasks["calibrate"] == {"memory_bytes": 3000 * MIB, "n_retries": 1}
    assert found.batch.clustering.clusters["images"].walltime_s == 7200
    assert found.batch.environment == {"A": "all", "PLACE": "here"}
    own = {"A": "both", "PLACE": "3000"}
    assert found.batch.environments == {"isr": own, "calibrate": own}
    assert found.unknown == ()


@pytest.mark.parametrize(
    ("keys", "algorithm"),
    [
        ({"clusterAlgorithm": "qgexec.bps.auto"}, Algorithm.AUTO),
        ({"clusterAlgorithm": "qgexec.bps.chunks", "chunkSize": 3}, Algorithm.CHUNKS),
        ({"chunkSize": 3}, Algorithm.CHUNKS),
        ({"cluster": {"a": {"pipetasks": "isr", "dimensions": "visit"}}}, Algorithm.DIMENSIONS),
        (
            {"clusterAlgorithm": "lsst.ctrl.bps.quantum_clustering_funcs.single_quantum_clustering"},
            Algorithm.SINGLE,
        ),
        ({"site": {"x": {"clusterAlgorithm": "qgexec.bps.auto"}}, "computeSite": "x"}, Algorithm.AUTO),
    ],
)
def test_clustering(tmp_path: Path, keys: dict[str, Any], algorithm: Algorithm) -> None:
    """Our algorithms have names that ctrl_bps can import; without one the other keys decide."""
    assert _resources(tmp_path, **keys).batch.clustering.effective is algorithm


def test_clustering_of_ones_own(tmp_path: Path) -> None:
    """A function of the user's own is refused by its name."""
    with pytest.raises(UsageError, match=r"clusterAlgorithm is 'my\.package\.clusters'"):
        _resources(tmp_path, clusterAlgorithm="my.package.clusters")


def test_pool_by_default() -> None:
    """Without a model it is the pool, on as many cores as are told."""
    command = _command(qgexecProcesses=3, payload={"butlerConfig": "repo"})
    assert command[:5] == ["run", "-b", "repo", "-g", "graph.qg"]
    assert command[command.index("--model") :] == ["--model", "pool", "--register-dataset-types", "-j", "3"]


def test_model_of_a_site() -> None:
    """Each site can have a model; one that needs no driver is submitted to."""
    sites = {"a": {"qgexecModel": "slurm"}, "b": {"qgexecModel": "inprocess"}}
    assert _command(site=sites, computeSite="a")[0] == "submit"
    assert "-j" not in _command(site=sites, computeSite="a")
    assert "inprocess" in _command(site=sites, computeSite="b")
    assert "pool" in _command(site=sites)
    with pytest.raises(ModelError, match="no execution model 'none'"):
        Settings(_config(qgexecModel="none"))


def test_options_of_the_command() -> None:
    """extraRunQuantumOptions are given on, but for the number of processes of one job."""
    command = _command(
        pool="--no-raise-on-partial-outputs",
        extraRunQuantumOptions="-j 7 {pool} --processes=3 --timeout 60 -j2",
        qgexecProcesses=1,
    )
    assert command[command.index("-j") :] == ["-j", "1", "--no-raise-on-partial-outputs", "--timeout", "60"]


def test_output_chain() -> None:
    """The chain is left alone where the final job of BPS would leave it alone."""
    assert "--no-output-chain" not in _command()
    for told in ("", None, "--no-update-output-chain"):
        assert "--no-output-chain" in _command(finalJob={"updateOutputChain": told})


def test_remarks() -> None:
    """What another service would have done is told; what is ctrl_bps's default is not."""
    assert list(Settings(_config()).remarks()) == []
    told = Settings(
        _config(
            runQuantumCommand="singularity exec x pipetask run-qbb",
            pipetask={"isr": {"runQuantumCommand": "nice pipetask run-qbb"}},
            finalJob={"command1": "butler transfer-from-graph"},
            payload={"extraInitOptions": "--coverage"},
        )
    ).remarks()
    assert [remark.partition(" of the BPS")[0] for remark in told] == [
        "runQuantumCommand",
        "payload: extraInitOptions",
        "pipetask: isr: runQuantumCommand",
        "finalJob: command1",
    ]


def test_remarks_on_jobs() -> None:
    """What is about jobs is told where there are any; what says the same as nothing is not."""
    keys: dict[str, Any] = {
        "preemptible": False,
        "requestDisk": 0,
        "provisionResources": False,
        "computeSite": "a",
        "site": {"a": {"profile": {"condor": {"x": "y"}}}, "b": {"nodeset": "c"}},
    }
    assert list(Settings(_config(**keys)).remarks()) == []
    told = Settings(_config(qgexecModel="slurm", **keys)).remarks()
    assert [remark.partition(" of the BPS")[0] for remark in told] == ["preemptible", "site: a: profile"]


def test_clusters_for_ctrl_bps(repository: MockRepository) -> None:
    """ctrl_bps is given one cluster for each task, which it finds to be in order."""
    with PredictedQuantumGraph.open(str(repository.graph)) as reader:
        reader.read_thin_graph()
        graph = reader.finish()
    ordering = {"first": {"labels": "isr", "dimensions": "visit", "blocking": True}}
    config = _config(bps_defined={"runQgraphFile": str(repository.graph)}, ordering=ordering)
    clustered = by_task(config, graph, "name")
    clustered.validate()
    counts = {cluster.label: sum(cluster.quanta_counts.values()) for cluster in clustered.clusters()}
    assert counts == {"isr": 8, "calibrate": 8, "summary": 2, "final": 1}
    assert sum(counts.values()) == N_QUANTA
    assert [cluster.label for cluster in clustered.successors("isr")] == ["calibrate"]
    assert "ordering" not in config, "ctrl_bps finds no data IDs in these clusters, and would refuse them"
    Settings(config).write_resources(repository.root.parent / "qgexec.yaml")
    (group,) = read_config([repository.root.parent / "qgexec.yaml"]).ordering
    assert (group.name, group.labels) == ("first", ("isr",))
    assert auto(config, graph, "name") == clustered
