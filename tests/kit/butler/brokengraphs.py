"""Graph files that cannot be executed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.synthetic import read_block, replace_blocks

__all__ = ["without_task_class"]


def without_task_class(graph: Path, path: Path, name: str = "no_such_package.NoSuchTask") -> Path:
    """Copy a graph, and name a task class that cannot be imported."""
    text = read_block(graph, "pipeline_graph")
    known = b'"task_class":"lsst.pipe.base.tests.mocks.DynamicTestPipelineTask"'
    assert known in text
    block = {"pipeline_graph.json.zst": text.replace(known, f'"task_class":"{name}"'.encode())}
    return replace_blocks(graph, path, block)
