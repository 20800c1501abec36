"""The demonstration on real batch systems: its outputs are the local run's, dataset by dataset."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.kit.checkout import CHECKOUT

pytest.importorskip("photutils", reason="the extra [demo] is not installed")

from tests.kit.sites import condor, slurm

_RUN_S = 600.0

_SITE = """
clusterAlgorithm: auto
jobDuration: 60
parallelJobs: 4
requestMemory: 1000
"""

_MAKE = """
import sys
from qgexec.demo import build_demo_graph, make_repository
repository = make_repository(sys.argv[1], seed=8, visits_per_band=3, n_detectors=1)
build_demo_graph(repository, save_to=sys.argv[2])
"""

_SHOW = """
import hashlib, io, json, sys
from lsst.daf.butler import Butler
from pyarrow import ipc, parquet

def plain(content):
    # How the file of a table tells the columns' units depends on the hash seed of the process that wrote it.
    table = parquet.read_table(io.BytesIO(content)).replace_schema_metadata(None)
    sink = io.BytesIO()
    with ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()

with Butler.from_config(sys.argv[1]) as butler:
    found = {}
    for dataset_type in butler.registry.queryDatasetTypes():
        for ref in butler.registry.queryDatasets(dataset_type, collections=...):
            uri = butler.getURI(ref)
            content = plain(uri.read()) if uri.getExtension().startswith(".parq") else uri.read()
            name = f"{dataset_type.name} {ref.dataId} {ref.id}"
            assert name not in found, name
            found[name] = hashlib.sha256(content).hexdigest()
print(json.dumps(found))
"""

_OF_THE_MOMENT = ("_metadata", "_log", "packages")
"""Dataset types whose content has times, hosts and versions in it."""

Call = Callable[[Sequence[str | Path]], str]
"""Runs a command where the batch system is, and returns what it printed."""


def _reduce_twice(call: Call, folder: Path, model: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return all datasets, with a digest of their content, after a local run and one on the batch system."""
    call(["python3", "-c", _MAKE, folder / "repo", folder / "demo.qg"])
    call(["cp", "-r", folder / "repo", folder / "local"])
    (folder / "site.yaml").write_text(_SITE)
    found = []
    ways: dict[str, list[str | Path]] = {
        "local": ["-j", "2"],
        "repo": ["--model", model, "--resources", folder / "site.yaml"],
    }
    for repo, options in ways.items():
        graph: list[str | Path] = [
            "-b",
            folder / repo,
            "-g",
            folder / "demo.qg",
            "--run-dir",
            folder / f"run-{repo}",
        ]
        call(["python3", "-m", "qgexec", "run", *graph, "--register-dataset-types", *options])
        shown: dict[str, str] = json.loads(call(["python3", "-c", _SHOW, folder / repo]))
        found.append(shown)
    return found[0], found[1]


def _check_equal(local: dict[str, str], batch: dict[str, str]) -> None:
    assert local.keys() == batch.keys()
    assert len(local) > 50
    different = [
        name
        for name, digest in local.items()
        if digest != batch[name] and not name.partition(" ")[0].endswith(_OF_THE_MOMENT)
    ]
    assert different == []


@pytest.mark.site
@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_the_demo_on_slurm(tmp_path: Path) -> None:
    """20 quanta of image reduction, as jobs of Slurm and as local workers: the same bytes."""
    if (why := slurm.missing()) is not None:
        pytest.skip(why)
    with slurm.Slurm(tmp_path, cpus=4, memory_mb=8000) as site:
        env = {**os.environ, **site.env}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"

        def call(command: Sequence[str | Path]) -> str:
            done = subprocess.run(
                list(map(str, command)),
                capture_output=True,
                text=True,
                timeout=_RUN_S,
                check=False,
                cwd=tmp_path,
                env=env,
            )
            assert done.returncode == 0, done.stderr[-4000:]
            return done.stdout

        _check_equal(*_reduce_twice(call, tmp_path, "slurm"))


@pytest.fixture
def pool() -> Iterator[condor.CondorPool]:
    """A pool of this test's own."""
    if (why := condor.missing()) is not None:
        pytest.skip(why)
    with condor.CondorPool() as pool:
        yield pool


@pytest.mark.site
@pytest.mark.condor
@pytest.mark.timeout(900)
def test_the_demo_on_htcondor(pool: condor.CondorPool) -> None:
    """20 quanta of image reduction, as nodes of DAGMan and as local workers: the same bytes."""
    folder = pool.shared / "demo"
    pool.run("mkdir", str(folder), timeout_s=60)
    shutil.chown(folder, condor.UID)
    folder.chmod(0o777)
    env = {"PYTHONPATH": str(CHECKOUT / "src")}

    def call(command: Sequence[str | Path]) -> str:
        return pool.run(*map(str, command), timeout_s=_RUN_S, env=env, cwd=folder).stdout

    _check_equal(*_reduce_twice(call, folder, "htcondor"))
