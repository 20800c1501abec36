"""An executor of a client's own: it needs no butler, and tells what it was given by files."""

from __future__ import annotations

from pathlib import Path

from lsst.daf.butler import Quantum
from lsst.daf.butler.logging import ButlerLogRecords
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult, QuantumExecutor

__all__ = ["CountingExecutor", "make_anything", "make_executor"]


class CountingExecutor(QuantumExecutor):
    """Full of state: counts what it executed, and writes it to a file for each process."""

    def __init__(self, folder: str | Path, fail: str = "") -> None:
        self.folder = Path(folder)
        self.fail = fail
        self.count = 0
        self.keep = lambda: None  # like a butler's connections: must not stop it from being used in process

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "fail": self.fail, "count": self.count}

    def execute(
        self,
        task_node: TaskNode,
        /,
        quantum: Quantum,
        quantum_id: object = None,
        *,
        log_records: ButlerLogRecords | None = None,
    ) -> QuantumExecutionResult:
        if task_node.label == self.fail:
            raise ValueError("as told")
        self.count += 1
        (self.folder / f"{quantum_id}").write_text(f"{task_node.label} {self.count}")
        return QuantumExecutionResult(quantum, None)


def make_executor(folder: str) -> QuantumExecutor:
    """Return one, and say so."""
    return CountingExecutor(folder)


def make_anything(folder: str):  # type: ignore[no-untyped-def]
    """Return one without saying so, as any function may."""
    return CountingExecutor(folder)
