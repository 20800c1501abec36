"""Fixtures: a real HTCondor pool, and repositories whose quanta do as they are told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.butler.repos import MockRepository, dump_repository
from tests.kit.sites.condor import CondorFolder, CondorPool, missing
from tests.kit.sites.condorruns import EXTRA, RUN_S, Site, give, wait_until
from tests.kit.sites.slurmruns import make_moody
from tests.kit.tasks.jobtask import GO


@pytest.fixture(scope="module")
def runs_pool(request: pytest.FixtureRequest) -> Iterator[CondorPool]:
    """A running pool; it says that it has more cores than there are, for jobs mostly wait."""
    reason = missing()
    if (
        reason is None
        and "not thorough" in request.config.getoption("markexpr")
        and not CondorFolder().is_made()
    ):
        reason = "there is no HTCondor yet: `make test-thorough` installs one, in a folder"
    if reason is not None:
        pytest.skip(reason)
    with CondorPool(n_cpus=4, extra=EXTRA) as running:
        yield running


@pytest.fixture(scope="module")
def condor_template(runs_pool: CondorPool) -> tuple[Path, dict[str, object]]:
    """A repository, and what a local run leaves in a copy of it."""
    folder = runs_pool.shared / "template"
    made = Site(runs_pool, runs_pool.shared / "local", {})
    runs_pool.run("python", "-m", "tests.kit.tasks.jobtask", folder, env=made.env, timeout_s=RUN_S)
    shutil.copytree(folder, made.folder)
    give(made.folder)
    local: list[str | Path] = ["-b", made.folder / "repo", "-g", made.folder / "graph.qg", "-j", "2"]
    made.qgexec("run", *local, "--run-dir", made.run_dir, "--register-dataset-types")
    return folder, dump_repository(made.folder / "repo")


@pytest.fixture
def site(
    runs_pool: CondorPool, condor_template: tuple[Path, dict[str, object]], request: pytest.FixtureRequest
) -> Iterator[Site]:
    """A repository of this test's own, in a folder with blanks in its name; its jobs go with it."""
    folder = runs_pool.shared / f"it's {request.node.name}"[:60]
    shutil.copytree(condor_template[0], folder)
    give(folder)
    yield Site(runs_pool, folder, condor_template[1])
    (folder / GO).touch()
    runs_pool.run("condor_rm", "-all", check=False)
    wait_until(
        lambda: not runs_pool.run("condor_q", "-allusers", "-autoformat", "ClusterId").stdout.split(),
        "jobs stay in the queue",
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """The standard repository with moody tasks, for runs on Slurm; tests must not write to it."""
    return make_moody(tmp_path_factory.mktemp("template"))
