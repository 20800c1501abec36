"""Owns the files that show a pipeline or a graph as a drawing: GraphViz's DOT, and Mermaid."""

from __future__ import annotations

import io
from pathlib import Path

from lsst.pipe.base.dot_tools import graph2dot
from lsst.pipe.base.mermaid_tools import graph2mermaid
from lsst.pipe.base.pipeline_graph import PipelineGraph, visualization
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from qgexec.errors import UsageError

__all__ = ["draw_graph_dot", "draw_graph_mermaid", "draw_pipeline_dot", "draw_pipeline_mermaid"]

_IMAGE_WIDTH = 4500
"""Width of a rendered Mermaid diagram, pixels; pipetask's."""


def draw_pipeline_dot(pipeline: PipelineGraph, file: str) -> None:
    """Write a resolved pipeline as DOT; raises `UsageError` where the file cannot be written."""
    text = io.StringIO()
    visualization.show_dot(pipeline, text, dataset_types=True, task_classes="full")
    _write("--pipeline-dot", file, text.getvalue().encode())


def draw_pipeline_mermaid(pipeline: PipelineGraph, file: str) -> None:
    """Write a resolved pipeline as a Mermaid diagram; rendered, where the file's name ends in .svg or .png.

    Raises
    ------
    qgexec.errors.UsageError
        The file cannot be written, or what renders is not installed.
    """
    kind = Path(file).suffix.removeprefix(".")
    if kind not in ("svg", "png"):
        text = io.StringIO()
        visualization.show_mermaid(
            pipeline, text, output_format="mmd", dataset_types=True, task_classes="full"
        )
        _write("--pipeline-mermaid", file, text.getvalue().encode())
        return
    image = io.BytesIO()
    try:
        visualization.show_mermaid(
            pipeline, image, output_format=kind, width=_IMAGE_WIDTH, dataset_types=True, task_classes="full"
        )
    except Exception as error:  # the renderer is a package of its own, and may ask a server
        raise UsageError(
            f"--pipeline-mermaid {file} cannot be rendered: {error}",
            hint="Install mermaid-py, or give a name that ends in .mmd for the diagram's text.",
        ) from error
    _write("--pipeline-mermaid", file, image.getvalue())


def draw_graph_dot(graph: PredictedQuantumGraph, file: str) -> None:
    """Write a graph, all quanta loaded, as DOT; raises `UsageError` where the file cannot be written."""
    text = io.StringIO()
    graph2dot(graph, text)
    _write("--qgraph-dot", file, text.getvalue().encode())


def draw_graph_mermaid(graph: PredictedQuantumGraph, file: str) -> None:
    """Write a graph, all quanta loaded, as the text of a Mermaid flowchart; raises as `draw_graph_dot`."""
    text = io.StringIO()
    graph2mermaid(graph, text)
    _write("--qgraph-mermaid", file, text.getvalue().encode())


def _write(option: str, file: str, content: bytes) -> None:
    try:
        Path(file).write_bytes(content)
    except OSError as error:
        raise UsageError(
            f"{option} {file} cannot be written: {error.strerror}.",
            hint="Name a file in a folder that exists.",
        ) from error
