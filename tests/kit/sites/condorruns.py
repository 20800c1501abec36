"""Runs of `qgexec` on an HTCondor pool of the tests' own, as its users run them: commands, and patience."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qgexec.batch.rounds import Round
from qgexec.books.journal import read_events
from qgexec.events import Event
from tests.kit.butler.repos import dump_repository
from tests.kit.checkout import PYTHONPATH
from tests.kit.sites.condor import UID, CondorPool
from tests.kit.tasks.jobtask import MOODS

__all__ = ["DISK_BYTES", "EXTRA", "RUN_S", "Site", "give", "wait_until"]

RUN_S = 300.0
_POLL_S = 0.5

EXTRA = """
use POLICY : HOLD_IF_MEMORY_EXCEEDED
MachineMaxVacateTime = 5
SUBMIT_REQUIREMENT_NAMES = Account
SUBMIT_REQUIREMENT_Account = AcctGroup =!= "refused"
SUBMIT_REQUIREMENT_Account_REASON = "the account refused has no time left"
"""

DISK_BYTES = 24 << 20
"""Room on a disk of a test's own: several times what a run needs."""

_SETTINGS = "clusterAlgorithm: chunks\nchunkSize: 4\n"


@dataclass(frozen=True, slots=True)
class Site:
    """A pool, a repository of its own for a test, and what the local run of the same graph has left."""

    pool: CondorPool
    folder: Path
    expected: dict[str, object]

    @property
    def run_dir(self) -> Path:
        return self.folder / "a run"

    @property
    def env(self) -> dict[str, str]:
        return {
            "PYTHONPATH": PYTHONPATH,
            "QGEXEC_MOODS_DIR": str(self.folder),
        }

    def moods(self, **moods: str) -> None:
        """Say what quanta do, by label, visit and detector: ``isr_1_2``."""
        by_name = {re.sub(r"_(\d)_(\d)$", r" \1,\2", name): mood for name, mood in moods.items()}
        (self.folder / MOODS).write_text(json.dumps(by_name))

    def qgexec(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.pool.run("qgexec", *arguments, timeout_s=RUN_S, env=self.env, check=check)

    def arguments(self, settings: str = "", *more: str) -> list[str | Path]:
        config = self.folder / "site.yaml"
        config.write_text(_SETTINGS + settings)
        named: list[str | Path] = ["-b", self.folder / "repo", "-g", self.folder / "graph.qg"]
        return [
            *named,
            "--run-dir",
            self.run_dir,
            "--register-dataset-types",
            "--model",
            "htcondor",
            "--resources",
            config,
            *more,
        ]

    def all_of_isr_wait(self) -> None:
        """Have both jobs of isr wait, whichever quanta are in which of them."""
        self.moods(**{f"isr_{visit}_{detector}": "wait" for visit in (1, 2) for detector in (1, 2, 3, 4)})

    def submit(self, settings: str = "", *more: str) -> None:
        self.qgexec("submit", *self.arguments(settings, *more))

    def round(self, number: int = 1) -> Round:
        return Round.open(self.run_dir / "batch" / f"{number:04d}")

    def n_rounds(self) -> int:
        return len(list((self.run_dir / "batch").glob("*/round.json")))

    def queue(self) -> list[str]:
        return self.pool.run("condor_q", "-allusers", "-autoformat", "ClusterId").stdout.split()

    def wait_for_the_end(self) -> None:
        """Wait until nothing is in the queue any more."""
        wait_until(lambda: not self.queue(), "the queue does not become empty")

    def wait_for_quanta(self, n_quanta: int) -> None:
        """Wait until so many have begun."""
        began = self.folder / "began"
        wait_until(
            lambda: began.exists() and len(began.read_text().splitlines()) >= n_quanta,
            f"less than {n_quanta} quanta begin",
        )

    def wait_for(self, name: str, times: int = 1) -> None:
        """Wait until a quantum has begun so often."""
        began = self.folder / "began"

        def has_begun() -> bool:
            return began.exists() and began.read_text().splitlines().count(name) >= times

        wait_until(has_begun, f"{name} does not begin")

    def events(self) -> list[Event]:
        """Return all that is in the run's journal."""
        return list(read_events(self.run_dir / "journal"))

    def check_outputs(self) -> None:
        """Everything that the local run has left is there, each once, and nothing else."""
        found = dump_repository(self.folder / "repo")
        assert found["datasets"] == self.expected["datasets"]
        assert found["files"] == self.expected["files"]


def give(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID)


def wait_until(is_so: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + RUN_S
    while not is_so():
        assert time.monotonic() < until, otherwise
        time.sleep(_POLL_S)
