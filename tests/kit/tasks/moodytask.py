"""A mock task whose quanta do what a file tells them to, when they run."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lsst.pex.config import Field
from lsst.pipe.base import (
    InputQuantizedConnection,
    InvalidQuantumError,
    OutputQuantizedConnection,
    QuantumContext,
    RepeatableQuantumError,
)
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask, DynamicTestPipelineTaskConfig
from lsst.pipe.base.tests.mocks._pipeline_task import DynamicTestPipelineTaskConnections

MOODS = "moods.json"
"""Name, in the folder that the configuration names, of the file with moods by quantum."""

BEGAN, GO = "began", "go"
"""Names, in the same folder, of two pipes: quanta in the mood ``wait`` say that they run, and may go on."""

STDERR_BYTES = 100_000_000

HOG_BYTES = 500_000_000
"""A batch job that may use less than twice this does not get away with it."""

LAST_S = 5.0
"""A slow quantum ends so long before its batch job is ended, seconds."""


class UnpicklableError(Exception):
    """An exception that neither pickles nor has a constructor that its arguments fit."""

    def __init__(self, what: str, *, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.handle = lambda: None


class MoodyConfig(DynamicTestPipelineTaskConfig, pipelineConnections=DynamicTestPipelineTaskConnections):
    """Where to look up what to do."""

    folder = Field[str]("Folder with moods and pipes.", dtype=str)


class MoodyTask(DynamicTestPipelineTask):
    """Upstream's mock task; looks up first what it is to do."""

    ConfigClass = MoodyConfig

    def runQuantum(  # noqa: N802
        self,
        butlerQC: QuantumContext,  # noqa: N803
        inputRefs: InputQuantizedConnection,  # noqa: N803
        outputRefs: OutputQuantizedConnection,  # noqa: N803
    ) -> None:
        config: Any = self.config
        folder = Path(config.folder)
        name = quantum_name(self.getName(), butlerQC.quantum.dataId)
        moods = json.loads((folder / MOODS).read_text()) if (folder / MOODS).exists() else {}
        self._act(moods.get(name) or moods.get(name.split()[0], ""), name, folder)
        super().runQuantum(butlerQC, inputRefs, outputRefs)

    def _act(self, mood: str, name: str, folder: Path) -> None:
        match mood:
            case "raise":
                raise ValueError(f"bad pixels in {name}")
            case "raise invalid":
                raise InvalidQuantumError(f"no such band in {name}")
            case "raise repeatable":
                raise RepeatableQuantumError(f"no stars in {name}")
            case "raise unpicklable":
                raise UnpicklableError("telescope", why="on fire")
            case "sys.exit":
                sys.exit(7)
            case "os._exit":
                self.log.warning("about to leave")
                os._exit(9)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "flood":
                chunk = b"all work and no play makes a dull worker\n" * 2500
                for _ in range(STDERR_BYTES // len(chunk) + 1):
                    os.write(2, chunk)
            case "hog" | "slow" | "close all" | "close files":
                _strain(mood)
            case "wait":
                with (folder / BEGAN).open("w") as began:
                    began.write(f"{os.getpid()} {name}\n")
                with (folder / GO).open("rb", buffering=0) as go:
                    go.read(1)
            case _:
                return


def _strain(mood: str) -> None:
    """Use more of something than a batch job has, or nearly all of it; or take it from others."""
    if mood.startswith("close"):  # as a library does that makes a daemon of its process
        os.closerange(0 if mood == "close all" else 3, 4096)
        return
    if mood == "slow":
        time.sleep(max(0.0, float(os.environ["QGEXEC_JOB_ENDS_AT"]) - LAST_S - time.time()))
        return
    held = b"x" * HOG_BYTES
    while int(os.environ["SLURM_MEM_PER_NODE"]) < 2 * HOG_BYTES >> 20 and held:
        signal.pause()


def quantum_name(label: str, data_id: Any) -> str:
    """Return the name by which moods are given: ``isr 1,3`` for visit 1 and detector 3."""
    return " ".join([label, ",".join(str(data_id[key]) for key in ("visit", "detector") if key in data_id)])


def moody_config(folder: Path) -> MoodyConfig:
    """Return a configuration that names a folder."""
    make: Any = MoodyConfig
    config: MoodyConfig = make()
    config.folder = str(folder)
    return config
