"""A mock task for batch jobs: its quanta do what a file tells them to. Makes the repository, when called.

The file is in the folder that ``QGEXEC_MOODS_DIR`` names; jobs get it as any folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from lsst.pipe.base import InputQuantizedConnection, OutputQuantizedConnection, QuantumContext
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask

from tests.kit.butler.repos import add_standard_tasks, open_repository, save_graph

MOODS = "moods.json"
GO = "go"
"""Name of a file: while it is not there quanta in the mood ``wait`` wait."""

PATIENCE_S = 240.0
LABELS = ("isr", "calibrate", "summary", "final")


class JobTask(DynamicTestPipelineTask):
    """Upstream's mock task; looks up first what it is to do."""

    def runQuantum(  # noqa: N802
        self,
        butlerQC: QuantumContext,  # noqa: N803
        inputRefs: InputQuantizedConnection,  # noqa: N803
        outputRefs: OutputQuantizedConnection,  # noqa: N803
    ) -> None:
        data_id = butlerQC.quantum.dataId
        assert data_id is not None
        name = f"{self.getName()} " + ",".join(
            str(data_id[key]) for key in ("visit", "detector") if key in data_id
        )
        folder = Path(os.environ["QGEXEC_MOODS_DIR"])
        moods = json.loads((folder / MOODS).read_text()) if (folder / MOODS).exists() else {}
        mood, _, amount = str(moods.get(name, "")).partition(" ")
        with (folder / "began").open("a") as began:
            began.write(f"{name}\n")
        _act(mood, amount, folder)
        super().runQuantum(butlerQC, inputRefs, outputRefs)


def _act(mood: str, amount: str, folder: Path) -> None:
    match mood:
        case "raise":
            raise ValueError("bad pixels")
        case "hog":
            taken = bytearray(int(amount) << 20)
            taken[::4096] = b"x" * len(taken[::4096])
            # Longer than its memory can stay unseen, and than a job has that is told to end.
            first = not (folder / "hogged").exists()
            (folder / "hogged").touch()
            time.sleep(40 if first else 6)
        case "wait":
            deadline = time.monotonic() + PATIENCE_S
            while not (folder / GO).exists() and time.monotonic() < deadline:
                time.sleep(0.1)
        case _:
            return


def main() -> None:
    """Make the repository and the graph in the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir()
    with open_repository(folder / "repo") as repo:
        add_standard_tasks(repo, task_classes=dict.fromkeys(LABELS, JobTask))
        save_graph(repo, folder / "graph.qg", register=False)


if __name__ == "__main__":
    # Under the name by which jobs import it.
    from tests.kit.tasks.jobtask import main as main_by_name

    main_by_name()
