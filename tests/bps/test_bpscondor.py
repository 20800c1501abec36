"""`bps` with the model `htcondor` on a real HTCondor: submitted and left, reported, cancelled, restarted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.bps.conftest import SERVICE
from tests.kit.butler.repos import INPUT_CHAIN, OUTPUT, OUTPUT_RUN
from tests.kit.sites.condor import VENV, CondorPool, missing
from tests.kit.sites.condorruns import EXTRA, RUN_S, Site, give
from tests.kit.tasks.jobtask import GO

pytestmark = [
    pytest.mark.condor,
    pytest.mark.site,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

_STATES = {"RUNNING": 15, "DELETED": 16, "SUCCEEDED": 0}
"""BPS's numbers of them, but 0 for the last: exit codes of `bps status`."""


@pytest.fixture(scope="module")
def pool() -> Iterator[CondorPool]:
    with CondorPool(n_cpus=4, extra=EXTRA) as pool:
        yield pool


class _Bps:
    """``bps`` in the pool, on a repository whose quanta are told what to do."""

    def __init__(self, pool: CondorPool) -> None:
        self.site = Site(pool, pool.shared / "bps", {})
        pool.run(
            "python", "-m", "tests.kit.tasks.jobtask", self.site.folder, env=self.site.env, timeout_s=RUN_S
        )
        self.submit_path = self.site.folder / "submit" / OUTPUT_RUN

    def configure(self) -> None:
        config = {
            "wmsServiceClass": SERVICE,
            "project": "dev",
            "campaign": "quick",
            "computeSite": "here",
            "site": {"here": {"qgexecModel": "htcondor", "visibilityWait": 2}},
            "requestMemory": 300,
            "finalJob": {"requestMemory": 300},
            "clusterAlgorithm": "qgexec.bps.chunks",
            "chunkSize": 4,
            "qgraphFile": str(self.site.folder / "graph.qg"),
            "submitPath": f"{self.site.folder}/submit/{{outputRun}}",
            "updateQuantumGraph": "cp {inputQgraphFile} {qgraphFile}",
            "payload": {
                "payloadName": "check",
                "butlerConfig": str(self.site.folder / "repo"),
                "inCollection": INPUT_CHAIN,
                "output": OUTPUT,
                "outputRun": OUTPUT_RUN,
            },
        }
        (self.site.folder / "bps.yaml").write_text(yaml.safe_dump(config))
        give(self.site.folder)

    def __call__(self, *arguments: str | Path, code: int = 0) -> str:
        """Run the command, say if its exit code is another one; return all that it says."""
        env = {
            **self.site.env,
            "BPS_WMS_SERVICE_CLASS": SERVICE,
            "CTRL_MPEXEC_DIR": str(VENV),
            "XDG_STATE_HOME": str(self.site.folder / "state"),
        }
        done = self.site.pool.run(
            "bps", *arguments, cwd=self.site.folder, env=env, timeout_s=RUN_S, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "Traceback" not in said
        return said

    def check(self, state: str) -> None:
        self("status", "--id", self.submit_path, code=_STATES[state])
        assert re.search(rf"^\s*(F\s+)?{state}\s", self("report", "--id", self.submit_path), re.MULTILINE)


def test_submitted_cancelled_restarted(pool: CondorPool) -> None:
    """Jobs go on without `bps`; a cancelled run leaves none in the queue; restart submits what is left.

    Where no schedd answers, that is said in a sentence, and nothing is made.
    """
    bps = _Bps(pool)
    bps.site.all_of_isr_wait()
    bps.configure()
    assert "answers" in bps("ping", "--pass-thru", "htcondor")
    said = bps("submit", "bps.yaml")
    assert f"Run Id: {bps.submit_path}" in said
    assert "Of no meaning" not in said
    bps.site.wait_for_quanta(2)
    bps.check("RUNNING")
    assert "2 running" in bps("report", "--id", bps.submit_path)
    assert re.search(rf"RUNNING .*{bps.submit_path}.* here ", bps("report"))

    assert "Successfully canceled" in bps("cancel", "--id", bps.submit_path)
    assert bps.site.queue() == []
    bps.check("DELETED")

    (bps.site.folder / GO).touch()
    bps("restart", "--id", bps.submit_path)
    bps.site.wait_for_the_end()
    bps.check("SUCCEEDED")
    table = bps("report", "--id", bps.submit_path)
    assert "Outputs in the registry: those of 19 quanta" in table

    pool.stop_schedd()
    assert "no schedd answers" in bps("ping", "--pass-thru", "htcondor", code=1)
    assert "Error: HTCondor: no schedd answers" in bps("submit", "bps.yaml", code=2)
