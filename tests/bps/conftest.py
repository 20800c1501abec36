"""Fixtures: the real ``bps`` command on a mock repository whose quanta are told what to do."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from lsst.ctrl.bps import drivers
from lsst.ctrl.bps.cli.bps import cli
from lsst.ctrl.bps.report import display_report
from lsst.daf.butler.cli.utils import LogCliRunner
from lsst.pipe.base.pipeline_graph import PipelineGraph

from qgexec.books.holder import driver_is_alive
from qgexec.errors import RunDirError
from qgexec.reports.report import RunReport, read_report
from tests.kit.butler.repos import (
    INPUT_CHAIN,
    OUTPUT,
    OUTPUT_RUN,
    MockRepository,
    add_standard_tasks,
    copy_template,
    open_repository,
    pipeline_yaml,
    save_graph,
)
from tests.kit.checkout import PYTHONPATH
from tests.kit.tasks.moodytask import MoodyTask, moody_config

SERVICE = "qgexec.bps.QgexecService"

LABELS = ("isr", "calibrate", "summary", "final")

PATIENCE_S = 120.0
"""Longest wait for something that must happen: reached only where it does not."""


@dataclass
class Bps:
    """``bps`` in a folder of its own, on one repository."""

    repository: MockRepository
    folder: Path
    log: pytest.LogCaptureFixture
    submit_path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.submit_path = self.folder / "submit" / OUTPUT_RUN

    @property
    def run_dir(self) -> Path:
        """The run directory of the first submission."""
        return self.submit_path / "qgexec"

    def configure(self, payload: Mapping[str, Any] | None = None, **keys: Any) -> Path:
        """Write a configuration for the repository's graph; what is given is laid over it."""
        config = {
            "wmsServiceClass": SERVICE,
            "project": "dev",
            "campaign": "quick",
            "qgraphFile": str(self.repository.graph),
            "submitPath": f"{self.folder}/submit/{{outputRun}}",
            "qgexecProcesses": 2,
            # The graph is that of the output RUN already: `pipetask update-graph-run` would take seconds.
            "updateQuantumGraph": "cp {inputQgraphFile} {qgraphFile}",
            "payload": {
                "payloadName": "check",
                "butlerConfig": str(self.repository.root),
                "inCollection": INPUT_CHAIN,
                "output": OUTPUT,
                "outputRun": OUTPUT_RUN,
                **(payload or {}),
            },
            **keys,
        }
        file = self.folder / "bps.yaml"
        file.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
        return file

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """Run the command in this process, say if its exit code is another one; return all that it says."""
        self.log.clear()
        result = LogCliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output + self.log.text
        return result.output + self.log.text

    def report(self) -> RunReport:
        """Return what qgexec says of the first submission."""
        return read_report(self.run_dir)

    def wait(self, condition: Callable[[RunReport], object]) -> RunReport:
        """Wait until a report of the first submission is as it should be."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition(found := self.report()):
            assert time.monotonic() < deadline, (self.submit_path / "qgexec.log").read_text()
            time.sleep(0.1)
        return found

    def end(self) -> None:
        """Kill the driver that a test has left."""
        with suppress(RunDirError, ProcessLookupError):
            driver = self.report().driver
            # This process is the driver where it has cancelled a run; others lead a session of their own.
            if driver is not None and driver.pid != os.getpid() and driver_is_alive(driver):
                os.killpg(driver.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """The standard repository with moody tasks, and their pipeline file; tests must not write to it."""
    folder = tmp_path_factory.mktemp("template")
    template = MockRepository(folder / "repo", folder / "graph.qg", folder / "bare.qg")
    config = {label: moody_config(folder.parent) for label in LABELS}
    with open_repository(template.root) as repo:
        add_standard_tasks(repo, config, dict.fromkeys(LABELS, MoodyTask))
        save_graph(repo, template.graph, register=False)
        graph: PipelineGraph = repo.pipeline_graph
        pipeline_yaml(graph, folder / "pipeline.yaml")
    return template


@pytest.fixture
def repository(template: MockRepository, tmp_path: Path) -> MockRepository:
    """A copy of the standard repository of the test's own."""
    return copy_template(template, tmp_path / "data")


@pytest.fixture
def bps(
    repository: MockRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Bps]:
    """The command; no driver that it started is left at the end."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    # Where ctrl_bps looks for pipetask: up to 30.2026.300 at least, and of 30.2026.4300.
    monkeypatch.setenv("CTRL_MPEXEC_DIR", sys.prefix)
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin", prepend=os.pathsep)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("BPS_WMS_SERVICE_CLASS", SERVICE)
    # It prints to what was stdout when it was imported.
    monkeypatch.setattr(
        drivers, "display_report", lambda *values, **named: display_report(*values, **named, file=sys.stdout)
    )
    bps = Bps(repository, folder, caplog)
    yield bps
    bps.end()
