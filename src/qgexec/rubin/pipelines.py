"""Owns how a pipeline is made of a file and changes to it; knows no data IDs and no quanta."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from lsst.daf.butler import Butler
from lsst.pipe.base import Pipeline
from lsst.pipe.base.pipeline_graph import PipelineGraph

from qgexec.config.buildoptions import ChangeKind, PipelineChange, PipelineOptions
from qgexec.errors import NotUtf8Error, UsageError
from qgexec.foreign import no_exit
from qgexec.regularfile import UnfitFileError
from qgexec.rubin.compat import keeping_package_metadata
from qgexec.rubin.localfile import check_local

__all__ = ["BuiltPipeline"]


class BuiltPipeline:
    """A pipeline with all changes made to it.

    Parameters
    ----------
    options
        What it is made of.

    Raises
    ------
    qgexec.errors.UsageError
        The file cannot be used, or a change not be made; the message says which.
    """

    def __init__(self, options: PipelineOptions) -> None:
        self._options = options
        self._pipeline = _read(options.file)
        try:
            with no_exit(), keeping_package_metadata():
                for change in options.changes:
                    _apply(self._pipeline, change)
                self._graph = self._pipeline.to_graph()
        except Exception as error:  # configurations and task classes raise what they like
            raise _explained(options, error) from error

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self._options.name

    @property
    def definition(self) -> Pipeline:
        """The pipeline as YAML has it.

        Raises
        ------
        qgexec.errors.UsageError
            Tasks were selected by an expression: that is done to the graph of tasks, and YAML cannot say it.
        """
        if self._options.select_tasks:
            raise UsageError(
                "--select-tasks has no part in a pipeline as YAML: it cannot be shown or saved.",
                hint="Name labels after the pipeline file instead (FILE#label,label).",
            )
        return self._pipeline

    @cached_property
    def graph(self) -> PipelineGraph:
        """The tasks and dataset types, not resolved yet.

        Raises
        ------
        qgexec.errors.UsageError
            The expression that selects tasks is wrong, or selects none.
        """
        return self._selected(self._graph)

    def resolved(self, butler: Butler | None) -> PipelineGraph:
        """Return the tasks and dataset types to look at, with dimensions where there is a butler."""
        graph = self._selected(self._pipeline.to_graph())
        try:
            graph.resolve(butler.registry if butler is not None else None, visualization_only=True)
        except Exception as error:  # definitions that do not fit raise what they like
            raise UsageError(f"{self.name} does not hold together: {_brief(error)}") from error
        return graph

    def save(self, file: str) -> None:
        """Write it as YAML.

        Raises
        ------
        qgexec.errors.UsageError
            The file cannot be written, or see `definition`.
        """
        try:
            self.definition.write_to_uri(file)
        except OSError as error:
            raise UsageError(f"--save-pipeline {file} cannot be written: {error.strerror}.") from error

    def _selected(self, graph: PipelineGraph) -> PipelineGraph:
        expression = self._options.select_tasks
        if not expression:
            return graph
        try:
            chosen = graph.select(expression)
        except Exception as error:  # the expression's grammar, or labels that there are not
            raise UsageError(
                f"--select-tasks {expression!r} cannot be applied to {self.name}: {_brief(error)}"
            ) from error
        if not chosen.tasks:
            raise UsageError(f"--select-tasks {expression!r} leaves none of the tasks of {self.name}.")
        return chosen


def _apply(pipeline: Pipeline, change: PipelineChange) -> None:
    match change.kind:
        case ChangeKind.INSTRUMENT:
            pipeline.addInstrument(change.value)
        case ChangeKind.TASK:
            pipeline.addTask(change.value, change.label)
        case ChangeKind.DELETE:
            pipeline.removeTask(change.label)
        case ChangeKind.CONFIG:
            pipeline.addConfigOverride(change.label, change.key, change.value)
        case ChangeKind.CONFIG_FILE:
            check_local(change.value)
            pipeline.addConfigFile(change.label, change.value)


def _explained(options: PipelineOptions, error: Exception) -> UsageError:
    """Find out which change is wrong, if it is not the file."""
    changes = options.changes
    culprit = next((changes[n - 1] for n in range(1, len(changes) + 1) if _fails(options, changes[:n])), None)
    if culprit is None or _fails(options, ()):
        return UsageError(
            f"{options.name} cannot be used as a pipeline: {_brief(error)}",
            hint="Where a task does not import, set up its package (PYTHONPATH).",
        )
    return UsageError(f"the option {culprit} cannot be applied: {_brief(error)}")


def _fails(options: PipelineOptions, changes: Sequence[PipelineChange]) -> bool:
    pipeline = _read(options.file)
    try:
        with no_exit():
            for change in changes:
                _apply(pipeline, change)
            pipeline.to_graph()
    except Exception:  # noqa: BLE001 -- any failure is the answer
        return True
    return False


def _read(file: str | None) -> Pipeline:
    if file is None:
        return Pipeline("anonymous")
    try:
        check_local(file)
        return Pipeline.from_uri(file)
    except UnfitFileError as error:
        raise UsageError(
            f"the pipeline file {file} cannot be read: {error.strerror}",
            hint="What a program prints is to be saved in a file first.",
        ) from error
    except FileNotFoundError:
        raise UsageError(
            f"the pipeline file {file} does not exist", hint="Check the path after -p."
        ) from None
    except UnicodeEncodeError as error:
        raise NotUtf8Error(error.object) from error
    except Exception as error:  # whatever the file's content makes upstream raise
        raise UsageError(f"{file} is not a valid pipeline file: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """Return type and message of an error; a configuration's goes on with its whole history, which is cut."""
    text = str(error).split("\nFor more information", maxsplit=1)[0]
    return f"{type(error).__name__}: {text}"
