"""The commands of a ctrl_bps workflow, by `qgexec-pipetask` under the name of pipetask, and by pipetask."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx
import pytest
from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowJob
from lsst.ctrl.bps.drivers import transform_driver
from lsst.daf.butler.cli.cliLog import CliLog

from qgexec.config.buildoptions import GraphOptions
from qgexec.rubin.build import build_graph
from tests.bps.conftest import Bps
from tests.kit.butler.repos import INPUT_CHAIN, OUTPUT, OUTPUT_RUN, MockRepository, copy_template
from tests.kit.checkout import PYTHONPATH
from tests.kit.peer.dumps import Dump, dump, first_difference
from tests.kit.processes import warm

OURS = f"#!{sys.executable}\nimport sys\nfrom qgexec.cli.pipetask import main\nsys.exit(main())\n"
"""What pip installs as ``qgexec-pipetask``."""

SUCCEEDED = {"isr": 2, "calibrate": 2, "summary": 1, "final": 1}


@dataclass(frozen=True, slots=True)
class Side:
    """A repository, and what is called pipetask there."""

    repository: MockRepository
    stack: Path
    """Its ``bin`` has pipetask."""

    here: Path
    """Where jobs begin."""

    def environment(self) -> dict[str, str]:
        """Return the environment of jobs."""
        added = {
            "CTRL_MPEXEC_DIR": str(self.stack),
            "DAF_BUTLER_DIR": sys.prefix,
            "PATH": f"{self.stack / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": PYTHONPATH,
            "QGEXEC_STATE": str(self.here / "state"),
            "TMPDIR": str(self.here),
        }
        return {**os.environ, **added}

    def execute(self, program: str, arguments: str) -> None:
        """Execute a command as a batch system does, in a process that must end well."""
        environment = self.environment()
        line = re.sub(r"<ENV:(\w+)>", r"${\1}", f"{program} {arguments}")  # as plugins of ctrl_bps do it
        program, *words = shlex.split(string.Template(line).substitute(environment))
        where = shutil.which(program, path=environment["PATH"])
        assert where is not None, program
        done = warm.run([where, *words], cwd=self.here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (where, words, done.stderr)
        assert [*self.here.iterdir()] == []

    def execute_final(self, script: str, arguments: str) -> None:
        """Execute the commands of the final job's script, which has its arguments in variables."""
        text = Path(script).read_text()
        variables = re.findall(r"^(\w+)=\$\d$", text, flags=re.MULTILINE)
        values = dict(zip(variables, shlex.split(arguments), strict=True))
        commands = [line for line in text.splitlines() if " aggregate-graph " in line]
        assert len(commands) == 1
        program, _, rest = string.Template(commands[0]).safe_substitute(values).partition(" ")
        self.execute(program, rest)


@pytest.fixture
def graph(template: MockRepository, tmp_path: Path) -> Path:
    """Six quanta; built once, for another graph has other datasets."""
    path = tmp_path / "some.qg"
    build_graph(
        str(template.root),
        str(template.root.parent / "pipeline.yaml"),
        inputs=[INPUT_CHAIN],
        output=OUTPUT,
        output_run=OUTPUT_RUN,
        options=GraphOptions(data_query="instrument = 'Cam1' AND visit = 1 AND detector IN (1, 2)"),
        save_to=path,
    )
    return path


def make_side(name: str, template: MockRepository, graph: Path, folder: Path) -> Side:
    """Copy the repository, and make folders; ``name`` is what is called pipetask."""
    copy = copy_template(template, folder / name / "data")
    side = Side(MockRepository(copy.root, graph, graph), folder / name / "stack", folder / name / "here")
    (side.stack / "bin").mkdir(parents=True)
    side.here.mkdir()
    pipetask = side.stack / "bin" / "pipetask"
    if name == "qgexec":
        pipetask.write_text(OURS)
        pipetask.chmod(0o755)
    else:
        pipetask.symlink_to(Path(sys.executable).with_name("pipetask"))
    return side


def jobs_of(workflow: GenericWorkflow) -> Iterator[GenericWorkflowJob]:
    """Yield all but the final job in an order in which a batch system might begin them."""
    for name in networkx.lexicographical_topological_sort(workflow):
        yield workflow.get_job(name)


def execute_workflow(side: Side, bps: Bps) -> tuple[Dump, int]:
    """Execute the jobs that ctrl_bps makes by its defaults; return what is there, and how many they were."""
    bps.repository, bps.submit_path = side.repository, bps.folder / side.stack.parent.name
    config = bps.configure(
        submitPath=str(bps.submit_path),
        useLazyCommands=False,  # else a batch system's plugin puts the names of files into them
        clusterAlgorithm="lsst.ctrl.bps.quantum_clustering_funcs.single_quantum_clustering",
        finalJob={"requestCpus": 1},
        extraAggregateOptions="--mock-storage-classes",
    )
    try:
        _, workflow = transform_driver(str(config))
    finally:
        CliLog.resetLog()
    n_jobs = 0
    for job in jobs_of(workflow):
        side.execute(job.executable.src_uri, job.arguments)
        n_jobs += 1
    final = workflow.get_final()
    side.execute_final(final.executable.src_uri, final.arguments)
    return dump(side.repository.root), n_jobs


def test_workflow(template: MockRepository, graph: Path, bps: Bps, tmp_path: Path) -> None:
    """Init job, a job for each quantum and final job: the repository is in the end as with pipetask.

    No job leaves anything but outputs.
    """
    (ours, n_jobs), (theirs, _) = (
        execute_workflow(make_side(name, template, graph, tmp_path), bps) for name in ("qgexec", "pipetask")
    )
    assert n_jobs == 1 + sum(SUCCEEDED.values())
    names = [name.split()[0] for name in ours["dataset"]]
    assert {label: names.count(f"{label}_metadata") for label in SUCCEEDED} == SUCCEEDED
    difference = first_difference(theirs, ours)
    assert difference is None, difference
