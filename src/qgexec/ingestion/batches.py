"""What waits for an ingester in one process: outputs in batches, and quanta to be cleaned up.

Knows nothing of butlers: an ingester is whatever takes details (`qgexec.books.journal.read_detail`) and
says how many datasets it took in, and removes what attempts left that came to no end. Both are
idempotent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from qgexec.books.journal import read_detail
from qgexec.errors import IngestError, QgexecError, UsageError
from qgexec.events import OutputsIngested
from qgexec.quantum import SegmentRef

__all__ = ["MAX_QUANTA", "Batches", "Batching", "Ingester", "IngesterOpener", "as_ingest_error"]

MAX_QUANTA = 5000
"""Most in one batch or message; their indices, 5 bytes each, fit one."""


class Ingester(Protocol):
    """Takes details into a registry; the one of a real run is `qgexec.rubin.ingest.Ingester`."""

    def ingest(self, details: Sequence[Mapping[str, Any]]) -> int:
        """Take these in, in one transaction, and return how many datasets are new or replaced; idempotent."""
        ...

    def discard(self, indices: Sequence[int]) -> None:
        """Remove what attempts at these quanta left that came to no end of their own; idempotent."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...


IngesterOpener = Callable[[], Ingester]
"""Opens an ingester in the process that calls it; picklable, as a `qgexec.models.base.BenchOpener` is."""


@dataclass(frozen=True, slots=True)
class Batching:
    """When offers become a transaction: as soon as either is reached."""

    quanta: int = 1000
    """Most quanta in one; 5000 at most."""

    seconds: float = 2.0
    """Age of the oldest offer."""

    def __post_init__(self) -> None:
        if not 1 <= self.quanta <= MAX_QUANTA or not self.seconds >= 0:
            raise UsageError(
                f"batches of {self.quanta} quanta or {self.seconds} s cannot be: "
                f"1 to {MAX_QUANTA} quanta, 0 or more seconds"
            )


class Batches:
    """Offers that wait for their transaction, and quanta that are to be cleaned up.

    Parameters
    ----------
    opener
        Opens the ingester, when it is first needed.
    segments
        Folder of the segment files.
    batching
        When a batch is due.
    """

    def __init__(self, opener: IngesterOpener, segments: Path, batching: Batching) -> None:
        self._opener = opener
        self._segments = segments
        self._batching = batching
        self._ingester: Ingester | None = None
        self._waiting: deque[tuple[int, SegmentRef]] = deque()
        self._oldest_at = 0.0
        self._remains: dict[int, None] = {}

    def open(self) -> Ingester:
        """Open the ingester, if it is not open."""
        if self._ingester is None:
            self._ingester = self._opener()
        return self._ingester

    def add(self, index: int, ref: SegmentRef) -> None:
        """Take an offer."""
        if not self._waiting:
            self._oldest_at = time.monotonic()
        self._waiting.append((index, ref))

    def add_remains(self, indices: Iterable[int]) -> None:
        """Take quanta to be cleaned up."""
        self._remains.update(dict.fromkeys(indices))

    @property
    def has_remains(self) -> bool:
        """Some quanta are to be cleaned up."""
        return bool(self._remains)

    @property
    def must_ingest_first(self) -> bool:
        """Outputs of a quantum to be cleaned up wait: registered after that, they would have no files."""
        return bool(self._remains) and any(index in self._remains for index, _ in self._waiting)

    def discard(self) -> tuple[int, ...]:
        """Clean up after some quanta, and return which."""
        indices = tuple(islice(self._remains, MAX_QUANTA))
        self.open().discard(indices)
        for index in indices:
            del self._remains[index]
        return indices

    def due_in_s(self) -> float | None:
        """Return when there is something to do, in seconds; `None` while nothing waits."""
        if self._remains:
            return 0.0
        if not self._waiting:
            return None
        if len(self._waiting) >= self._batching.quanta:
            return 0.0
        return max(0.0, self._oldest_at + self._batching.seconds - time.monotonic())

    def ingest(self) -> OutputsIngested | None:
        """Take in one batch, due or not; `None` if nothing waits."""
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batching.quanta))]
        if not batch:
            return None
        try:
            n_datasets = self.open().ingest([read_detail(self._segments, ref) for _, ref in batch])
        except BaseException:
            self._waiting.extendleft(reversed(batch))
            raise
        self._oldest_at = time.monotonic()
        return OutputsIngested(time.time(), tuple(index for index, _ in batch), n_datasets)

    def close(self) -> None:
        """Close the ingester, if it is open."""
        ingester, self._ingester = self._ingester, None
        if ingester is not None:
            ingester.close()


def as_ingest_error(err: Exception) -> IngestError:
    """Return what an ingester raised as the error that its driver is told."""
    hint = err.hint if isinstance(err, QgexecError) else ""
    what = err.message if isinstance(err, QgexecError) else f"{type(err).__name__}: {err}"
    return IngestError(f"outputs could not be taken into the registry: {what}", hint=hint)
