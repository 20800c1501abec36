"""`bps` with the model `slurm` on a real Slurm: submitted and left, reported, cancelled, restarted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qgexec.reports.report import RunState
from tests.bps.conftest import Bps
from tests.kit.commands.qgexec import Moods, datasets
from tests.kit.sites.slurm import Slurm, missing

pytestmark = [
    pytest.mark.site,
    pytest.mark.slurm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

SITE: dict[str, Any] = {
    "computeSite": "here",
    "site": {"here": {"qgexecModel": "slurm", "visibilityWait": 2, "requestMemory": 300}},
    "clusterAlgorithm": "qgexec.bps.chunks",
    "chunkSize": 4,
    "finalJob": {"requestMemory": 300},
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("site"), cpus=8, memory_mb=8000) as slurm:
        yield slurm


def test_submitted_failed_cancelled_restarted(
    bps: Bps, moods: Moods, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs go on without `bps`; a cancelled run leaves none, and restart submits what is left."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    moods.set({"isr 1,3": "raise", "calibrate 2,1": "wait"})
    bps.configure(**SITE)
    bps("submit", "bps.yaml")
    assert bps.report().state is RunState.SUBMITTED
    assert "answers" in bps("ping", "--pass-thru", "slurm")
    moods.wait_for(1)
    table = bps("report", "--id", bps.submit_path)
    assert "Jobs: " in table
    assert "RUNNING" in bps("report")
    bps("status", "--id", bps.submit_path, code=15)

    assert "Successfully canceled" in bps("cancel", "--id", bps.submit_path)
    bps("status", "--id", bps.submit_path, code=16)
    assert slurm.run("squeue", "--noheader").stdout == ""

    moods.set({})
    bps("restart", "--id", bps.submit_path)
    assert "resume" in (bps.submit_path / "qgexec.log").read_text()
    assert bps.wait(lambda report: report.state is RunState.SUCCEEDED).all_succeeded
    bps("status", "--id", bps.submit_path)
    assert len(datasets(bps.repository, "calibrated")) == 8
    assert datasets(bps.repository, "final_report")
