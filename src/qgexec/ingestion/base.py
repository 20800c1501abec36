"""The seam between the loop and what takes outputs into the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qgexec.events import Event
from qgexec.quantum import SegmentRef

__all__ = ["Ingestion", "NoIngestion"]


class Ingestion(Protocol):
    """Takes the outputs of quanta that have ended for good into the registry."""

    def offer(self, index: int, detail: SegmentRef) -> None:
        """Hand over one quantum's outputs; returns at once."""
        ...

    def discard(self, index: int) -> None:
        """Have removed what attempts of a quantum left that came to no end of their own; returns at once."""
        ...

    def collect(self) -> Sequence[Event]:
        """Return what has been taken in since the last call; returns at once."""
        ...

    def drain(self, timeout_s: float) -> Sequence[Event]:
        """Take in and remove all that was handed over, also what could not be before.

        It returns early, to be called once more, where a process began that is to be on record before it
        is given anything: then there is a `WorkerStarted` among the events.
        """
        ...

    def close(self) -> Sequence[Event]:
        """End it; may be called twice."""
        ...


class NoIngestion:
    """For a client's own executor: what it writes is its own affair."""

    def offer(self, index: int, detail: SegmentRef) -> None:
        """Ignore it."""

    def discard(self, index: int) -> None:
        """Ignore it."""

    def collect(self) -> Sequence[Event]:
        """Return nothing."""
        return ()

    def drain(self, timeout_s: float) -> Sequence[Event]:
        """Return nothing."""
        return ()

    def close(self) -> Sequence[Event]:
        """Return nothing."""
        return ()
