"""Takes the outputs of quanta that have ended for good to an ingester, in batches, beside or within the run.

Owns the batches: what was offered, what is confirmed, and what to do when
the ingester's process dies. Knows nothing of butlers: an ingester is
whatever takes details (`qgexec.journal.read_detail`) and says how many
datasets it took in. Ingesting is idempotent, so what is not confirmed is offered again.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qgexec.errors import IngestError, QgexecError, UsageError
from qgexec.events import OutputsIngested
from qgexec.journal import read_detail
from qgexec.processes import Channel, Message, Process, describe_exit, start_process
from qgexec.quantum import SegmentRef

__all__ = ["Batching", "Ingester", "IngesterOpener", "IngestionProcess", "InlineIngestion"]

_RESTARTS = 2
"""How often an ingester's process that died is started again in a run."""

_OFFERS_PER_MESSAGE = 200
"""At about 60 bytes each they stay well below the longest message."""

_MAX_QUANTA = 5000
"""Their indices, 5 bytes each, come back in one message."""

_NICENESS = 5
"""Workers come first while they run; at the end, when they are gone, this costs nothing."""

_CLOSE_S = 30.0
"""Longest time that an ingester which has nothing to do may take to close its connections."""

_DRAIN = "drain"
_OFFER = "offer"
_INGESTED = "ingested"


class Ingester(Protocol):
    """Takes details into a registry; the one of a real run is `qgexec.rubin.ingest.Ingester`."""

    def ingest(self, details: Sequence[Mapping[str, Any]]) -> int:
        """Take these in, in one transaction, and return how many datasets are new or replaced; idempotent."""
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
        if not 1 <= self.quanta <= _MAX_QUANTA or not self.seconds >= 0:
            raise UsageError(
                f"batches of {self.quanta} quanta or {self.seconds} s cannot be: "
                f"1 to {_MAX_QUANTA} quanta, 0 or more seconds"
            )


class _Batches:
    """Offers that wait for their transaction."""

    def __init__(self, opener: IngesterOpener, segments: Path, batching: Batching) -> None:
        self._opener = opener
        self._segments = segments
        self._batching = batching
        self._ingester: Ingester | None = None
        self._waiting: deque[tuple[int, SegmentRef]] = deque()
        self._oldest_at = 0.0

    def open(self) -> Ingester:
        if self._ingester is None:
            self._ingester = self._opener()
        return self._ingester

    def add(self, index: int, ref: SegmentRef) -> None:
        if not self._waiting:
            self._oldest_at = time.monotonic()
        self._waiting.append((index, ref))

    def due_in_s(self) -> float | None:
        """Return when the next batch is due, in seconds; `None` while nothing waits."""
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
        ingester, self._ingester = self._ingester, None
        if ingester is not None:
            ingester.close()


def _as_ingest_error(err: Exception) -> IngestError:
    hint = err.hint if isinstance(err, QgexecError) else ""
    what = err.message if isinstance(err, QgexecError) else f"{type(err).__name__}: {err}"
    return IngestError(f"outputs could not be taken into the registry: {what}", hint=hint)


class InlineIngestion:
    """Ingest in this process, when `collect` finds a batch due.

    Parameters
    ----------
    opener
        Opens the ingester, when the first batch is due.
    segments
        Folder of the segment files.
    batching
        When a batch is due.
    """

    def __init__(self, opener: IngesterOpener, segments: Path, batching: Batching | None = None) -> None:
        self._batches = _Batches(opener, segments, batching or Batching())

    def offer(self, index: int, detail: SegmentRef) -> None:
        """Hand over one quantum's outputs; returns at once."""
        self._batches.add(index, detail)

    def collect(self) -> Sequence[OutputsIngested]:
        """Ingest the batches that are due.

        Raises
        ------
        qgexec.errors.IngestError
            It cannot be done; what was offered is kept, and tried again by the next call.
        """
        ingested = []
        while self._batches.due_in_s() == 0:
            ingested.append(self._ingest())
        return [event for event in ingested if event is not None]

    def drain(self, timeout_s: float) -> Sequence[OutputsIngested]:
        """Ingest everything that was offered.

        Raises
        ------
        qgexec.errors.IngestError
            It cannot be done, or not in that time, which is looked at between two batches.
        """
        deadline = time.monotonic() + timeout_s
        ingested = []
        while (event := self._ingest()) is not None:
            ingested.append(event)
            if time.monotonic() > deadline and self._batches.due_in_s() is not None:
                raise IngestError(f"outputs were not taken into the registry within {timeout_s:.0f} s")
        return ingested

    def _ingest(self) -> OutputsIngested | None:
        try:
            return self._batches.ingest()
        except Exception as err:
            raise _as_ingest_error(err) from err

    def close(self) -> None:
        """Close the ingester; may be called twice."""
        self._batches.close()


class IngestionProcess:
    """Ingest in a process of its own, which opens the ingester at once.

    Parameters
    ----------
    opener
        Opens the ingester there.
    segments
        Folder of the segment files.
    logs
        Folder for what the process prints.
    batching
        When a batch is due.
    preload
        Modules that the process needs.

    Raises
    ------
    qgexec.errors.WorkerStartError
        The process cannot be started.
    """

    def __init__(
        self,
        opener: IngesterOpener,
        segments: Path,
        logs: Path,
        batching: Batching | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        self._args = (opener, str(segments), batching or Batching())
        self._output = logs / "ingester.out"
        self._preload = tuple(preload)
        self._unsent: deque[tuple[int, SegmentRef]] = deque()
        self._unconfirmed: dict[int, SegmentRef] = {}
        self._drain_wanted = self._drain_sent = False
        self._closed = False
        self._restarts_left = _RESTARTS
        self._error: IngestError | None = None
        self._process = self._start()

    @property
    def pid(self) -> int | None:
        """The ingester's process ID; `None` until it is forked."""
        self._process.refresh()
        return self._process.pid

    def fileno(self) -> int:
        """Return a file descriptor, readable when `collect` has something; another one after a restart."""
        return self._process.channel.fileno()

    def offer(self, index: int, detail: SegmentRef) -> None:
        """Hand over one quantum's outputs; returns at once."""
        self._unsent.append((index, detail))

    def collect(self) -> Sequence[OutputsIngested]:
        """Return what has been taken in since the last call; returns at once.

        Raises
        ------
        qgexec.errors.IngestError
            The ingester cannot go on; each later call says so again.
        """
        ingested: list[OutputsIngested] = []
        if self._error is None:
            self._send()
            self._receive(ingested)
            self._process.refresh()
            if self._process.ended:
                self._receive(ingested)
                self._restart()
        if self._error is not None and not ingested:
            raise self._error
        return ingested

    def drain(self, timeout_s: float) -> Sequence[OutputsIngested]:
        """Have everything taken in that was offered.

        Raises
        ------
        qgexec.errors.IngestError
            It cannot be done, or not in that time.
        """
        deadline = time.monotonic() + timeout_s
        self._drain_wanted, self._drain_sent = True, False
        ingested = list(self.collect())
        while self._unsent or self._unconfirmed:
            left = deadline - time.monotonic()
            if left <= 0:
                n_left = len(self._unsent) + len(self._unconfirmed)
                raise IngestError(
                    f"outputs of {n_left} quanta were not taken into the registry within {timeout_s:.0f} s",
                    hint=f"See {self._output}, and whether the database answers or is locked by another.",
                )
            poll = select.poll()
            poll.register(self._process, select.POLLIN)
            poll.register(self._process.channel, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            poll.poll(left * 1000)
            ingested.extend(self.collect())
        return ingested

    def close(self, patience_s: float = _CLOSE_S) -> None:
        """End the process; may be called twice.

        Parameters
        ----------
        patience_s
            Time that it has to end what it is doing and close its connections, seconds; then it is killed.
        """
        if not self._closed:
            self._closed = True
            self._process.channel.finish()
            self._process.wait(patience_s)
            self._process.close()

    def _start(self) -> Process:
        return start_process(
            ingest_until_told,
            self._args,
            name="ingester",
            output=self._output,
            preload=self._preload,
        )

    def _send(self) -> None:
        """Send what fits; the rest waits while the ingester is busy."""
        while self._unsent:
            some = [self._unsent[i] for i in range(min(len(self._unsent), _OFFERS_PER_MESSAGE))]
            offers = tuple((index, ref.segment, ref.offset, ref.length) for index, ref in some)
            if not self._process.channel.try_send((_OFFER, *offers)):
                return
            for index, ref in some:
                self._unsent.popleft()
                self._unconfirmed[index] = ref
        if self._drain_wanted and not self._drain_sent:
            self._drain_sent = self._process.channel.try_send((_DRAIN,))

    def _receive(self, ingested: list[OutputsIngested]) -> None:
        while (message := self._process.channel.try_receive()) is not None:
            if message[0] == _INGESTED:
                _, at, indices, n_datasets = message
                for index in indices:
                    self._unconfirmed.pop(index, None)
                ingested.append(OutputsIngested(at, indices, n_datasets))
            else:
                _, what, hint, trace = message
                self._error = IngestError(
                    f"outputs could not be taken into the registry: {what}",
                    hint=hint or f"The whole traceback is in {self._output}.",
                )
                self._error.add_note(trace)

    def _restart(self) -> None:
        """Start a new process for what the dead one has not confirmed."""
        if self._error is not None:
            return
        obituary = f"the ingester {describe_exit(self._process.exit_code)}"
        if not self._restarts_left:
            self._error = IngestError(
                f"{obituary}, as {_RESTARTS} before it", hint=f"What it printed is in {self._output}."
            )
            return
        self._restarts_left -= 1
        self._process.close()
        self._unsent.extendleft(reversed(self._unconfirmed.items()))
        self._unconfirmed.clear()
        self._drain_sent = False
        self._process = self._start()


def ingest_until_told(channel: Channel, opener: IngesterOpener, segments: str, batching: Batching) -> None:
    """Be the ingester's process: ingest what is offered until the driver has nothing more.

    Parameters
    ----------
    channel
        To the driver.
    opener, segments, batching
        As for `IngestionProcess`.
    """
    with suppress(OSError):
        os.nice(_NICENESS)
    batches = _Batches(opener, Path(segments), batching)
    batches.open()
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    draining = False
    while not channel.at_end:
        due_s = 0.0 if draining else batches.due_in_s()
        poll.poll(None if due_s is None else due_s * 1000)
        while (message := channel.try_receive()) is not None:
            draining = _accept(message, batches) or draining
        if draining or batches.due_in_s() == 0:
            event = batches.ingest()
            if event is None:
                draining = False
            else:
                channel.send((_INGESTED, event.at, event.indices, event.n_datasets))
    batches.close()


def _accept(message: Message, batches: _Batches) -> bool:
    """Take in a message; say whether everything is to be ingested now."""
    if message[0] == _DRAIN:
        return True
    for index, segment, offset, length in message[1:]:
        batches.add(index, SegmentRef(segment, offset, length))
    return False
