"""A mock task whose quanta write down what they were told that they may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lsst.pipe.base import InputQuantizedConnection, OutputQuantizedConnection, QuantumContext
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask

TOLD = "QGEXEC_TEST_TOLD"
"""Names the file."""


class TellingTask(DynamicTestPipelineTask):
    """Upstream's mock task; tells first."""

    def runQuantum(  # noqa: N802
        self,
        butlerQC: QuantumContext,  # noqa: N803
        inputRefs: InputQuantizedConnection,  # noqa: N803
        outputRefs: OutputQuantizedConnection,  # noqa: N803
    ) -> None:
        told: Any = butlerQC.resources
        memory_bytes = round(told.max_mem.to_value("byte"))
        threads = os.environ.get("OMP_NUM_THREADS", "any")
        with Path(os.environ[TOLD]).open("a") as file:
            file.write(f"{told.num_cores} cores, {memory_bytes} bytes, {threads} threads\n")
        super().runQuantum(butlerQC, inputRefs, outputRefs)
