"""What waits for an ingester in one process: outputs in batches, and quanta to be cleaned up.

Knows nothing of butlers: an ingester is whatever takes details (`qgexec.books.journal.read_detail`) and
says how many datasets it took in, and removes what attempts left that came to no end. Both are
idempotent. A network file system may show a detail long after an outcome has told of it: such a detail is
waited for, and nothing else waits with it.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import inf
from pathlib import Path
from typing import Any, Protocol

from qgexec.books.journal import read_detail
from qgexec.books.visibility import look_anew
from qgexec.errors import IngestError, JournalError, QgexecError, UsageError
from qgexec.events import OutputsIngested
from qgexec.quantum import SegmentRef

__all__ = ["MAX_QUANTA", "Batches", "Batching", "Ingester", "IngesterOpener", "as_ingest_error"]

MAX_QUANTA = 5000
"""Most in one batch or message; their indices, 5 bytes each, fit one."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
"""Between two looks for details that could not be seen."""


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

    visibility_s: float = 60.0
    """How long a detail is waited for that cannot be seen; longer while the run goes on."""

    def __post_init__(self) -> None:
        if not 1 <= self.quanta <= MAX_QUANTA or not min(self.seconds, self.visibility_s) >= 0:
            raise UsageError(
                f"batches of {self.quanta} quanta, {self.seconds} s or a visibility of {self.visibility_s} s "
                f"cannot be: 1 to {MAX_QUANTA} quanta, 0 or more seconds"
            )


@dataclass(frozen=True, slots=True)
class _Offer:
    """Outputs of one quantum."""

    index: int
    ref: SegmentRef
    missed_at: float | None = None
    """When its detail could not be seen for the first time."""


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

    def __init__(
        self,
        opener: IngesterOpener,
        segments: Path,
        batching: Batching,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.draining = False
        """Nothing is offered any more: a batch is due at once, and what is still unseen after its time is
        an error."""
        self._opener = opener
        self._segments = segments
        self._batching = batching
        self._clock = clock
        self._ingester: Ingester | None = None
        self._waiting: deque[_Offer] = deque()
        self._oldest_at = 0.0
        self._unseen: deque[_Offer] = deque()
        self._look_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._why_unseen = ""
        self._remains: dict[int, None] = {}

    def open(self) -> Ingester:
        """Open the ingester, if it is not open."""
        if self._ingester is None:
            self._ingester = self._opener()
        return self._ingester

    def add(self, index: int, ref: SegmentRef) -> None:
        """Take an offer."""
        if not self._waiting:
            self._oldest_at = self._clock()
        self._waiting.append(_Offer(index, ref))

    def add_remains(self, indices: Iterable[int]) -> None:
        """Take quanta to be cleaned up."""
        self._remains.update(dict.fromkeys(indices))

    @property
    def may_discard(self) -> bool:
        """Some quanta are to be cleaned up, and none of their outputs wait.

        Registered after that, outputs would have no files.
        """
        return bool(self._remains) and not any(each.index in self._remains for each in self._all_offers())

    def _all_offers(self) -> Iterable[_Offer]:
        return chain(self._waiting, self._unseen)

    def discard(self) -> tuple[int, ...]:
        """Clean up after some quanta, and return which."""
        indices = tuple(islice(self._remains, MAX_QUANTA))
        self.open().discard(indices)
        for index in indices:
            del self._remains[index]
        return indices

    def due_in_s(self) -> float | None:
        """Return when there is something to do, in seconds; `None` while nothing waits."""
        if self.may_discard:
            return 0.0
        due_at = []
        if self._waiting:
            is_due = self.draining or self._remains or len(self._waiting) >= self._batching.quanta
            due_at.append(-inf if is_due else self._oldest_at + self._batching.seconds)
        if self._unseen:
            due_at.append(self._look_at)
        return max(0.0, min(due_at) - self._clock()) if due_at else None

    def ingest(self) -> OutputsIngested | None:
        """Take in one batch, due or not; `None` where nothing of it waits or can be seen.

        Raises
        ------
        qgexec.errors.IngestError
            All that is left cannot be seen, and its time is over; only while `draining`. It is kept.
        """
        offers = self._take_offers()
        seen, details = self._read(offers)
        if not seen:
            self._check_patience()
            return None
        try:
            n_datasets = self.open().ingest(details)
        except BaseException:
            self._waiting.extendleft(reversed(seen))
            raise
        self._oldest_at = self._clock()
        return OutputsIngested(time.time(), tuple(each.index for each in seen), n_datasets)

    def _take_offers(self) -> list[_Offer]:
        """Take a batch from what waits; of what could not be seen too, where it is time to look again."""
        offers: list[_Offer] = []
        sources = (self._unseen, self._waiting) if self._clock() >= self._look_at else (self._waiting,)
        for source in sources:
            offers += [source.popleft() for _ in range(min(len(source), self._batching.quanta - len(offers)))]
        return offers

    def _read(self, offers: Sequence[_Offer]) -> tuple[list[_Offer], list[Mapping[str, Any]]]:
        """Return what can be seen of a batch, and its details; the rest is to be looked for again."""
        seen: list[_Offer] = []
        details: list[Mapping[str, Any]] = []
        now, is_new, n_missed = self._clock(), False, 0
        for offer in offers:
            try:
                details.append(read_detail(self._segments, offer.ref))
            except JournalError as error:
                self._why_unseen = error.message
                is_new = is_new or offer.missed_at is None
                n_missed += 1
                missed_at = now if offer.missed_at is None else offer.missed_at
                self._unseen.append(replace(offer, missed_at=missed_at))
            else:
                seen.append(offer)
        if n_missed:
            look_anew(self._segments)
            self._pause_s = _FIRST_PAUSE_S if is_new else min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._look_at = now + self._pause_s
        return seen, details

    def _check_patience(self) -> None:
        """Refuse to wait longer for the last details, where that is what there is left to do."""
        if not self.draining or self._waiting or not self._unseen:
            return
        wait_s = self._batching.visibility_s
        since = max(each.missed_at for each in self._unseen if each.missed_at is not None)
        if self._clock() >= since + wait_s:
            raise IngestError(
                f"what {len(self._unseen)} quanta wrote is not to be seen on {socket.gethostname()} "
                f"after {wait_s:g} s: {self._why_unseen}",
                hint="See that this host sees the run directory as those that executed them do. "
                "To wait longer for a slow file system: visibilityWait, in a file for --resources.",
            )

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
