"""The examples for clients work as they are printed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qgexec.cli.main import cli
from qgexec.reports.report import read_report
from tests.kit.butler.repos import N_QUANTA_OF_A_PAIR, ONE_PAIR, OUTPUT_RUN, MockRepository, make_template
from tests.kit.processes import warm

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def prepared(tmp_path: Path) -> MockRepository:
    """A repository in which a small graph may be run, as `qgexec init` leaves it."""
    repository = make_template(tmp_path / "data", where=ONE_PAIR)
    options = ["-b", str(repository.root), "-g", str(repository.graph), "--register-dataset-types"]
    cli.main(["init", *options], standalone_mode=False)
    return repository


def call(name: str, *arguments: object, cwd: Path) -> str:
    """Run an example as a user would, and return what it prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = warm.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=120)
    return str(done.stdout)


def n_read(repository: MockRepository) -> int:
    """Return how many metadata datasets a plain butler reads from the output RUN."""
    with repository.butler(collections=OUTPUT_RUN) as butler:
        refs = [
            ref
            for label in ("isr", "calibrate", "summary", "final")
            for ref in butler.query_datasets(f"{label}_metadata")
        ]
        assert all(butler.get(ref) for ref in refs)
        return len(refs)


@pytest.mark.thorough
def test_in_a_loop(prepared: MockRepository, tmp_path: Path) -> None:
    """Twenty lines run a graph: each quantum after its prerequisites, all outputs in the repository."""
    lines = call("in_a_loop.py", prepared.root, prepared.graph, cwd=tmp_path).splitlines()
    indices = [int(line.split()[0]) for line in lines if line.strip()[0].isdigit()]
    assert indices == list(range(N_QUANTA_OF_A_PAIR))
    assert n_read(prepared) == N_QUANTA_OF_A_PAIR


@pytest.mark.thorough
def test_scripts_work(prepared: MockRepository, tmp_path: Path) -> None:
    """Every script runs one quantum; make runs them in order; collect brings all into registry and report."""
    call("write_scripts.py", prepared.root, prepared.graph, "scripts", cwd=tmp_path)
    scripts = tmp_path / "scripts"
    assert len(list(scripts.glob("*.sh"))) == N_QUANTA_OF_A_PAIR
    make = shutil.which("make")
    assert make is not None
    subprocess.run([make, "-C", str(scripts), "-j", "2"], check=True, capture_output=True, timeout=280)
    assert n_read(prepared) == N_QUANTA_OF_A_PAIR
    (run_dir,) = (path.parent for path in (tmp_path / "qgexec-runs").rglob("run.json"))
    report = read_report(run_dir)
    assert report.all_succeeded
    assert report.total.ingested == N_QUANTA_OF_A_PAIR
