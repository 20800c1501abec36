"""A run whose current folder holds modules of names that everybody imports."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qgexec.processes.interpreter import module_command
from tests.kit.butler.repos import MockRepository
from tests.kit.checkout import PYTHONPATH
from tests.kit.commands.qgexec import call, report_of


@pytest.mark.thorough
def test_run(repository: MockRepository, folder: Path) -> None:
    """Neither the command, nor its workers, nor a job that a batch system would start runs any of them."""
    for name in ("json", "random", "lsst"):
        (folder / f"{name}.py").write_text(f"open('{folder}/{name}.was.run', 'w')\nraise SystemExit(3)\n")
    options = ("-b", str(repository.root), "-g", str(repository.graph), "--register-dataset-types")
    command = module_command("qgexec", "run", *options, "-j", "2", "--run-dir", str(folder / "run"))
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    job = module_command("qgexec", "worker", str(folder / "run"), "--quantum", "0")
    subprocess.run(job, cwd=folder, env=environment, check=True)
    assert call("collect", folder / "run").code == 0
    assert report_of(folder / "run")["all_succeeded"]
    assert not [*folder.glob("*.run")]
