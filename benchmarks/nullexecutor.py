"""The executor that does nothing with its quantum; a module that workers find by name."""

from __future__ import annotations

import uuid

from lsst.daf.butler import Quantum
from lsst.daf.butler.logging import ButlerLogRecords
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult, QuantumExecutor
from lsst.pipe.base.quantum_reports import QuantumReport

__all__ = ["NullExecutor"]


class NullExecutor(QuantumExecutor):
    """Gets its quantum and returns at once."""

    def execute(
        self,
        task_node: TaskNode,
        /,
        quantum: Quantum,
        quantum_id: uuid.UUID | None = None,
        *,
        log_records: ButlerLogRecords | None = None,
    ) -> QuantumExecutionResult:
        """Return at once."""
        assert quantum.dataId is not None
        report = QuantumReport(quantumId=quantum_id, dataId=quantum.dataId, taskLabel=task_node.label)
        return QuantumExecutionResult(quantum, report, skipped_existing=False, adjusted_no_work=False)
