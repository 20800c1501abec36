"""Owns what pipelines and graphs are built from, by name and value; knows neither itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Self

from qgexec.errors import UsageError

__all__ = [
    "GRAPH_SHOWS",
    "PIPELINE_SHOWS",
    "ChangeKind",
    "GraphOptions",
    "MockFailure",
    "PipelineChange",
    "PipelineOptions",
    "Show",
]


class ChangeKind(Enum):
    """What is done to a pipeline; the values are the options that ask for it."""

    INSTRUMENT = "--instrument"
    """The instrument whose overrides hold is added."""

    TASK = "-t"
    """A task is added."""

    DELETE = "--delete"
    """A task is taken out."""

    CONFIG = "-c"
    """A configuration field of a task is set."""

    CONFIG_FILE = "-C"
    """A file of configuration overrides is applied to a task."""


@dataclass(frozen=True, slots=True)
class PipelineChange:
    """One change to a pipeline; they are applied in the order in which they were asked for."""

    kind: ChangeKind
    value: str
    """Class of the instrument or of the task, value of the field, or the file; empty for `DELETE`."""

    label: str = ""
    """The task's; empty for an instrument, and for a task that is to have that of its class."""

    key: str = ""
    """The field of a `CONFIG`."""

    def __str__(self) -> str:
        match self.kind:
            case ChangeKind.CONFIG:
                said = f"{self.label}:{self.key}={self.value}"
            case ChangeKind.CONFIG_FILE:
                said = f"{self.label}:{self.value}"
            case ChangeKind.TASK:
                said = f"{self.value}:{self.label}" if self.label else self.value
            case ChangeKind.DELETE:
                said = self.label
            case ChangeKind.INSTRUMENT:
                said = self.value
        return f"{self.kind.value} {said}"

    @classmethod
    def parse(cls, kind: ChangeKind, text: str) -> Self:
        """Return the change that the value of an option asks for.

        Raises
        ------
        qgexec.errors.UsageError
            It is not of the form that the option takes.
        """
        first, colon, rest = text.partition(":")
        match kind:
            case ChangeKind.CONFIG:
                key, equals, value = rest.partition("=")
                if first and key and equals:
                    return cls(kind, value, first, key)
                form = "LABEL:KEY=VALUE"
            case ChangeKind.CONFIG_FILE:
                if first and rest:
                    return cls(kind, rest, first)
                form = "LABEL:FILE"
            case ChangeKind.TASK:
                if first and (rest or not colon):
                    return cls(kind, first, rest)
                form = "CLASS or CLASS:LABEL"
            case ChangeKind.DELETE:
                if text:
                    return cls(kind, "", text)
                form = "LABEL"
            case ChangeKind.INSTRUMENT:
                if text and not colon:
                    return cls(kind, text)
                form = "package.module.Class"
        raise UsageError(f"{kind.value} {text!r} is not of the form {form}.")


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """What a pipeline is made of."""

    file: str | None = None
    """Pipeline file, ``#label,label`` after its name to select tasks; `None` to begin with no tasks."""

    changes: tuple[PipelineChange, ...] = ()
    """What is done to it, in this order."""

    select_tasks: str = ""
    """Upstream's expression for the tasks to keep, such as ``>= calibrate``; empty for all."""

    def __bool__(self) -> bool:
        """Tell whether there is anything to make a pipeline of."""
        return self.file is not None or any(change.kind is ChangeKind.TASK for change in self.changes)

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self.file or "the pipeline made of -t"


@dataclass(frozen=True, slots=True)
class MockFailure:
    """Quanta of a mocked task that are to fail."""

    label: str
    """The task's."""

    exception: str
    """Fully qualified type of the exception; empty for upstream's ``ValueError``."""

    where: str
    """Butler expression for the data IDs that fail."""

    memory: str | None = None
    """Only where the quantum is told that it may use less than this (``4 GB``)."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what ``LABEL:EXCEPTION:WHERE[:MEMORY]`` asks for; raises `UsageError` for anything else."""
        parts = text.split(":")
        if len(parts) not in (3, 4) or not parts[0] or not parts[2]:
            raise UsageError(
                f"--mock-failure {text!r} is not of the form LABEL:EXCEPTION:WHERE or "
                "LABEL:EXCEPTION:WHERE:MEMORY.",
                hint="For example: --mock-failure 'isr::visit=42' (EXCEPTION may be empty).",
            )
        return cls(*parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """How a graph is built from a pipeline; names and meanings are those of ``pipetask qgraph``."""

    data_query: str = ""
    """Butler expression that selects data IDs."""

    data_id_tables: tuple[str, ...] = ()
    """Files of tables of data IDs that are joined in, in any format that astropy reads."""

    dataset_query_constraint: str = "all"
    """Whose existence the query for data IDs asks for: ``all``, ``off``, or names of dataset types."""

    skip_existing: bool = False
    """Leave out quanta that are done in the output RUN."""

    skip_existing_in: tuple[str, ...] = ()
    """Leave out quanta that are done in these collections."""

    retained_dataset_types: str | None = None
    """YAML file that lists the dataset types that were kept, of what was done earlier."""

    prune_unanchored_quanta: tuple[str, str] | None = None
    """Labels of a source and of an anchor: quanta of the source that lead to none of the anchor go."""

    clobber_outputs: bool = False
    """Quanta whose outputs exist in part are built nevertheless."""

    datastore_records: bool = True
    """Attach the datastore records of the overall inputs, which execution without a registry needs."""

    mock: bool = False
    """Replace all tasks by mocks that only imitate what they read and write."""

    mock_failures: tuple[MockFailure, ...] = ()
    """Quanta of mocks that fail."""

    unmocked_dataset_types: tuple[str, ...] = ()
    """Overall inputs that mocks read as they are."""


PIPELINE_SHOWS = (
    "config",
    "dump-config",
    "history",
    "inputs",
    "pipeline",
    "pipeline-graph",
    "subsets",
    "task-graph",
    "tasks",
)
"""What ``--show`` can show of a pipeline."""

GRAPH_SHOWS = ("graph", "uri", "workflow")
"""What ``--show`` can show of a graph."""


@dataclass(frozen=True, slots=True)
class Show:
    """One thing that ``--show`` asks for."""

    what: str
    """One of `PIPELINE_SHOWS` or `GRAPH_SHOWS`."""

    argument: str = ""
    """What stands after ``=``."""

    @classmethod
    def parse(cls, texts: Iterable[str]) -> tuple[Self, ...]:
        """Return what these values of ``--show`` ask for.

        Raises
        ------
        qgexec.errors.UsageError
            There is no such thing to show.
        """
        shows = []
        for text in texts:
            what, _, argument = text.partition("=")
            if what not in PIPELINE_SHOWS + GRAPH_SHOWS:
                raise UsageError(
                    f"--show {text}: there is no {what!r} to show.",
                    hint=f"Choose from {', '.join(sorted(PIPELINE_SHOWS + GRAPH_SHOWS))}.",
                )
            if what == "history" and not argument:
                raise UsageError(
                    "--show history: of which field?", hint="For example: --show history=isr::doFlat"
                )
            shows.append(cls(what, argument))
        return tuple(shows)

    @classmethod
    def of_graph(cls, shows: Sequence[Self]) -> tuple[Self, ...]:
        """Return those that a graph is needed for."""
        return tuple(show for show in shows if show.what in GRAPH_SHOWS)

    @classmethod
    def of_pipeline(cls, shows: Sequence[Self]) -> tuple[Self, ...]:
        """Return those that a pipeline is enough for."""
        return tuple(show for show in shows if show.what in PIPELINE_SHOWS)
