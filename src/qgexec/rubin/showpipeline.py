"""Owns what ``--show`` prints of a pipeline, as ``pipetask`` prints it; knows no quanta."""

from __future__ import annotations

import fnmatch
import io
import re
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from lsst.daf.butler import Butler
from lsst.pex.config import Config, ConfigurableInstance
from lsst.pex.config import history as config_history
from lsst.pipe.base.pipeline_graph import PipelineGraph, TaskNode, visualization

from qgexec.config.buildoptions import Show
from qgexec.errors import UsageError
from qgexec.rubin.pipelines import BuiltPipeline

__all__ = ["show_pipeline"]

_history: Callable[[Any, str], str] = config_history.format

_EXACT_CASE = ":NOIGNORECASE"


def show_pipeline(show: Show, pipeline: BuiltPipeline, butler: Butler | None, stream: TextIO) -> None:
    """Print one thing about a pipeline.

    Parameters
    ----------
    show
        What to print; one of `qgexec.config.buildoptions.PIPELINE_SHOWS`.
    pipeline
        The pipeline.
    butler
        Tells dimensions and storage classes; `None` to do without.
    stream
        Where to print it.

    Raises
    ------
    qgexec.errors.UsageError
        There is no such task or field, or the pipeline cannot be shown in this way.
    """
    if show.what in _OF_DEFINITION:
        _OF_DEFINITION[show.what](pipeline, stream)
    else:
        _OF_GRAPH[show.what](pipeline.resolved(butler), show.argument, stream)


def _show_yaml(pipeline: BuiltPipeline, stream: TextIO) -> None:
    print(pipeline.definition, file=stream)


def _show_subsets(pipeline: BuiltPipeline, stream: TextIO) -> None:
    for name, labels in pipeline.definition.subsets.items():
        print(f"{name}:", file=stream)
        for label in sorted(labels):
            print(f"  - {label}", file=stream)


def _show_inputs(graph: PipelineGraph, stream: TextIO) -> None:
    for name, node in sorted(graph.iter_overall_inputs()):
        if node is not None:
            print(name, node.dimensions, node.storage_class_name, file=stream)


def _show_subtasks(graph: PipelineGraph, stream: TextIO) -> None:
    for node in graph.tasks.values():
        print(f"### Subtasks for task `{node.task_class_name}'", file=stream)
        for field, task in _subtasks(node.config):
            print(f"{field}: {task}", file=stream)


def _subtasks(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield configurable fields, nested ones after their parents, with the classes that they are set to."""
    for name, field in sorted(config.items()):
        target, value = getattr(field, "target", None), getattr(field, "value", None)
        if target is not None and isinstance(value, Config):
            named = hasattr(target, "__module__") and hasattr(target, "__name__")
            yield f"{prefix}{name}", f"{target.__module__}.{target.__name__}" if named else repr(target)
            yield from _subtasks(value, f"{prefix}{name}.")


def _show_whole_config(graph: PipelineGraph, argument: str, stream: TextIO) -> None:
    for node in _tasks(graph, argument):
        _begin_config(node, stream).saveToStream(stream, root="config", skipImports=False)


def _show_config(graph: PipelineGraph, argument: str, stream: TextIO) -> None:
    label, pattern = _label_and_pattern(argument)
    nodes = _tasks(graph, label)
    matches = _matcher(pattern, stream) if pattern else None
    for node in nodes:
        for entry in _entries(_begin_config(node, stream)):
            # Comments stand above the assignment, which is the last line.
            field = entry.rstrip().rpartition("\n")[2].partition("=")[0]
            if matches is None or matches(field):
                stream.write(entry)


def _begin_config(node: TaskNode, stream: TextIO) -> Any:
    """Print a title; return the task's configuration, whose methods have no types."""
    print(f"### Configuration for task `{node.label}'", file=stream)
    return node.config


class _Entries(io.StringIO):
    """Keeps what is written, call by call: upstream writes a field in one, with its comments."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[str] = []

    def write(self, text: str) -> int:
        self.entries.append(text)
        return len(text)


def _entries(config: Any) -> list[str]:
    stream = _Entries()
    config.saveToStream(stream, root="config", skipImports=True)
    return stream.entries


def _matcher(pattern: str, stream: TextIO) -> Callable[[str], object]:
    """Return what tells whether a field is meant; case counts only where that is asked for."""
    if pattern.endswith(_EXACT_CASE):
        return re.compile(fnmatch.translate(pattern.removesuffix(_EXACT_CASE))).search
    if pattern != pattern.lower():
        print(
            f'Matching "{pattern}" without regard to case (append {_EXACT_CASE} to prevent this)', file=stream
        )
    return re.compile(fnmatch.translate(pattern), re.IGNORECASE).search


def _show_history(graph: PipelineGraph, argument: str, stream: TextIO) -> None:
    label, pattern = _label_and_pattern(argument)
    found = False
    for node in _tasks(graph, label):
        config: Any = node.config
        is_first = True
        for name in fnmatch.filter(config.names(), pattern):
            if not is_first:
                print(file=stream)
            is_first = False
            owner = _owner_of(config, name)
            field = name.rpartition(".")[2]
            if owner is not None and hasattr(owner, field):
                print(f"### Configuration field for task `{node.label}'", file=stream)
                print(_history(owner, field), file=stream)
                found = True
    if not found:
        raise UsageError(f"--show history={argument}: no task has such a field.")


def _owner_of(config: Config, name: str) -> Any:
    """Return the configuration that a field with a dotted name is in; `None` where something else is."""
    owner: Any = config
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part, None)
    return owner if isinstance(owner, Config | ConfigurableInstance) else None


def _label_and_pattern(argument: str) -> tuple[str, str]:
    """Take ``[Task::][config.]PATTERN`` apart."""
    match = re.match(r"(?:(\w+)::)?(?:config\.)?(.*)", argument, flags=re.DOTALL)
    assert match is not None, "it matches anything"
    return match[1] or "", match[2]


def _tasks(graph: PipelineGraph, name: str) -> list[TaskNode]:
    """Return the tasks with this label, or of a class with this name; all where it is empty."""
    nodes = [
        node
        for node in graph.tasks.values()
        if not name or name in (node.label, node.task_class_name.rpartition(".")[2])
    ]
    if not nodes:
        raise UsageError(
            f"--show: the pipeline has no task {name!r}", hint=f"It has {', '.join(graph.tasks) or 'none'}."
        )
    return nodes


_OF_DEFINITION: dict[str, Callable[[BuiltPipeline, TextIO], None]] = {
    "pipeline": _show_yaml,
    "subsets": _show_subsets,
}

_OF_GRAPH: dict[str, Callable[[PipelineGraph, str, TextIO], None]] = {
    "config": _show_config,
    "dump-config": _show_whole_config,
    "history": _show_history,
    "inputs": lambda graph, _argument, stream: _show_inputs(graph, stream),
    "pipeline-graph": lambda graph, _argument, stream: visualization.show(graph, stream, dataset_types=True),
    "task-graph": lambda graph, _argument, stream: visualization.show(graph, stream, dataset_types=False),
    "tasks": lambda graph, _argument, stream: _show_subtasks(graph, stream),
}
