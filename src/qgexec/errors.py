"""The errors that qgexec raises: each says what is wrong, where, and what to do next.

::

    QgexecError
      x UsageError
        + NotUtf8Error
      x GraphError
        + EmptyGraphError
        + UnknownQuantumError
      x RepositoryError
        + CollectionError
        + DatasetTypeError
        + InitOutputsError
        + RepositoryFullError
      x RunDirError
        + JournalError
          * RunHeldError
        + UntrustedError
      x IllegalEventError
      x ModelError
        + WorkerStartError
      x IngestError

A quantum that fails is not an error of qgexec's: it is a value (`qgexec.quantum.Outcome`).
`QuantumTimeUp` is none either: it ends a quantum in this process that has run for too long.
"""

from __future__ import annotations

__all__ = [
    "CollectionError",
    "DatasetTypeError",
    "EmptyGraphError",
    "GraphError",
    "IllegalEventError",
    "IngestError",
    "InitOutputsError",
    "JournalError",
    "ModelError",
    "NotUtf8Error",
    "QgexecError",
    "QuantumTimeUp",
    "RepositoryError",
    "RepositoryFullError",
    "RunDirError",
    "RunHeldError",
    "RunInterrupted",
    "UnknownQuantumError",
    "UntrustedError",
    "UsageError",
    "WorkerStartError",
]


class QgexecError(Exception):
    """Base of all errors that qgexec raises on purpose.

    Parameters
    ----------
    message
        What is wrong, and where: names the file, collection, option or
        quantum.
    hint
        What to do next, in the imperative; empty where there is nothing to
        advise.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # BaseException's own reduction drops keyword-only arguments; workers send errors through pipes.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(cls: type[QgexecError], message: str, hint: str) -> QgexecError:
    return cls(message, hint=hint)


class UsageError(QgexecError):
    """Options or arguments that make no sense, alone or together."""


class NotUtf8Error(UsageError):
    """A name has bytes that are not UTF-8, and something has to know it that takes none.

    The stack names files by URIs, and keeps text in databases. Python writes each such byte as half a
    character, which cannot be encoded again.

    Parameters
    ----------
    name
        What holds it.
    """

    def __init__(self, name: str) -> None:
        shown = name.encode("utf-8", "backslashreplace").decode("utf-8")
        super().__init__(
            f"{shown[:1000]}: there are bytes in this name that are not UTF-8, and lsst.resources takes none",
            hint="Rename it, or name a link that leads there; if it is the current folder, work in another.",
        )


class GraphError(QgexecError):
    """The quantum graph cannot be read, or cannot be executed as it is."""


class UnknownQuantumError(GraphError, LookupError):
    """The graph file has no such quantum: perhaps it is not the graph any more that the run began with."""


class EmptyGraphError(GraphError):
    """The quantum graph has no quanta."""


class RepositoryError(QgexecError):
    """The butler repository is missing, not writeable, or not the graph's."""


class CollectionError(RepositoryError):
    """A collection is in the way, missing, or of the wrong type."""


class DatasetTypeError(RepositoryError):
    """A dataset type is not registered, or not as the graph defines it."""


class InitOutputsError(RepositoryError):
    """Init-outputs, configurations or package versions differ from those in the output RUN."""


class RepositoryFullError(RepositoryError):
    """The file system that a datastore writes to has no room left, or the user's quota is used up."""


class RunDirError(QgexecError):
    """The run directory is missing, taken, or cannot be read or written."""


class JournalError(RunDirError):
    """A journal is damaged, of a newer version, or belongs to another writer now."""


class RunHeldError(JournalError):
    """Another driver has the run in hand, or may have."""


class UntrustedError(RunDirError):
    """Others may have written what a run directory says, and nobody has said that they are trusted."""


class IllegalEventError(QgexecError):
    """An event that the state table does not allow: a defect of an execution model, or of ours."""


class ModelError(QgexecError):
    """An execution model is unknown, cannot be set up, or broke its contract."""


class WorkerStartError(ModelError):
    """A worker process could not be started, or died before it could take a quantum."""


class IngestError(QgexecError):
    """Outputs could not be taken into the registry."""


class RunInterrupted(KeyboardInterrupt):
    """Raised into a quantum that runs in this process, where the user ends the run.

    Any other `KeyboardInterrupt` that comes out of a quantum is the task's own doing, and its failure.
    """


class QuantumTimeUp(BaseException):
    """Raised into a quantum that runs in this process, where its time is up.

    No `Exception`: what handles those must not take it for a failure of its own.
    """
