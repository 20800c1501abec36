"""Takes the outputs of quanta that have ended for good to an ingester, in batches, beside or within the run.

Owns what was handed over, what of it is confirmed, and what to do when the
ingester's process dies: ingesting is idempotent, and so is cleaning up, so what
is not confirmed is handed over again. Knows nothing of butlers.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from qgexec.errors import IngestError
from qgexec.events import Event, OutputsIngested, WorkerEnded, WorkerStarted
from qgexec.ingestion.batches import MAX_QUANTA, Batches, Batching, Ingester, IngesterOpener, as_ingest_error
from qgexec.processes.births import KERNEL
from qgexec.processes.descriptors import Sentinel
from qgexec.processes.forked import Channel, Message, Process, describe_exit, start_process
from qgexec.quantum import SegmentRef

__all__ = ["Batching", "Ingester", "IngesterOpener", "IngestionProcess", "InlineIngestion"]

_RESTARTS = 2
"""How often an ingester's process that died is started again in a run."""

_OFFERS_PER_MESSAGE = 200
"""At about 60 bytes each they stay well below the longest message."""

_NICENESS = 5
"""Workers come first while they run; at the end, when they are gone, this costs nothing."""

_CLOSE_S = 30.0
"""Longest time that an ingester which has nothing to do may take to close its connections."""

_INGESTER = 0
"""The ingester's process among the workers."""

_DRAIN = "drain"
_OFFER = "offer"
_DISCARD = "discard"
_INGESTED = "ingested"
_DISCARDED = "discarded"


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
        self._batches = Batches(opener, segments, batching or Batching())
        self._events: list[Event] = []
        self._sentinel = Sentinel()

    def offer(self, index: int, detail: SegmentRef) -> None:
        """Hand over one quantum's outputs; returns at once."""
        self._batches.add(index, detail)

    def discard(self, index: int) -> None:
        """Have removed what attempts at a quantum left that came to no end of their own; returns at once."""
        self._batches.add_remains([index])

    def collect(self) -> Sequence[Event]:
        """Ingest the batches that are due, and clean up.

        Raises
        ------
        qgexec.errors.IngestError
            It cannot be done; what was handed over is kept, and tried again by the next call.
        """
        while self._batches.due_in_s() == 0:
            self._work()
        return self._take_events()

    def drain(self, timeout_s: float) -> Sequence[Event]:
        """Ingest everything that was offered, and clean up.

        Raises
        ------
        qgexec.errors.IngestError
            It cannot be done, or not in that time, which is looked at between two batches.
        """
        deadline = time.monotonic() + timeout_s
        self._batches.draining = True
        while (due_in_s := self._batches.due_in_s()) is not None:
            time.sleep(due_in_s)
            self._work()
            if time.monotonic() > deadline and self._batches.due_in_s() is not None:
                raise IngestError(f"outputs were not taken into the registry within {timeout_s:.0f} s")
        return self._take_events()

    def _work(self) -> None:
        """Ingest one batch, or clean up."""
        if self._sentinel.is_lost():  # a database must not be written into what has its number now
            raise IngestError("a task has closed the files of this process, the registry's among them")
        try:
            if self._batches.may_discard:
                self._batches.discard()
            elif (event := self._batches.ingest()) is not None:
                self._events.append(event)
        except Exception as err:
            raise as_ingest_error(err) from err

    def close(self) -> Sequence[Event]:
        """Close the ingester; return what was taken in before an error. May be called twice."""
        if not self._sentinel.is_lost():
            self._batches.close()
        self._sentinel.close()
        return self._take_events()

    def _take_events(self) -> Sequence[Event]:
        events, self._events = self._events, []
        return events


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
        self._unsent_remains: deque[int] = deque()
        self._unconfirmed_remains: dict[int, None] = {}
        self._unreported: list[Event] = []
        self._announced: Process | None = None
        self._told: Process | None = None  # announced, and the caller has been told
        self._mourned: Process | None = None
        self._drain_wanted = self._drain_sent = False
        self._closed = False
        self._restarts_left = _RESTARTS
        self._error: IngestError | None = None
        self.process = self._start()
        """The ingester; another one after a restart."""

    @property
    def pid(self) -> int | None:
        """The ingester's process ID; `None` until it is forked."""
        self.process.refresh()
        return self.process.pid

    def fileno(self) -> int:
        """Return a file descriptor, readable when `collect` has something; another one after a restart."""
        return self.process.channel.fileno()

    def offer(self, index: int, detail: SegmentRef) -> None:
        """Hand over one quantum's outputs; returns at once."""
        self._unsent.append((index, detail))

    def discard(self, index: int) -> None:
        """Have removed what attempts at a quantum left that came to no end of their own; returns at once."""
        self._unsent_remains.append(index)

    def collect(self) -> Sequence[Event]:
        """Return what has been taken in since the last call, and that the process began or ended; at once.

        Raises
        ------
        qgexec.errors.IngestError
            The ingester cannot go on; each later call says so again.
        """
        events = self._collect()
        self._told = self._announced
        return events

    def _collect(self) -> list[Event]:
        events: list[Event] = []
        if self._error is None:
            # Whoever takes over after the driver must know of every process that writes to the registry.
            if self._told is self.process:
                self._send()
            self._receive(events)
            self._look_after(events)
        if self._error is not None and not events:
            raise self._error
        return events

    def drain(self, timeout_s: float) -> Sequence[Event]:
        """Have everything taken in that was offered, and everything removed that is to be.

        Where that could not be done before the first drain, it is tried once more.

        Returns
        -------
        events
            What has happened. Where a process has begun it returns early, to be called once more: that is
            to be on record before the process is given anything.

        Raises
        ------
        qgexec.errors.IngestError
            It cannot be done, or not in that time.
        """
        deadline = time.monotonic() + timeout_s
        if self._error is not None and not self._drain_wanted:
            self._try_once_more()
        self._drain_wanted, self._drain_sent = True, False
        self._unreported.extend(self._collect())
        while self._n_left and self._announced is self._told:
            left = deadline - time.monotonic()
            if left <= 0:
                raise IngestError(
                    f"outputs of {self._n_left} quanta were not taken into the registry, or removed, "
                    f"within {timeout_s:.0f} s",
                    hint=f"See {self._output}, and whether the database answers or is locked by another.",
                )
            poll = select.poll()
            poll.register(self.process, select.POLLIN)
            may_send = self._told is self.process and (self._unsent or self._unsent_remains)
            poll.register(self.process.channel, select.POLLIN | (select.POLLOUT if may_send else 0))
            poll.poll(left * 1000)
            self._unreported.extend(self._collect())
        self._told = self._announced
        return self._take_unreported()

    @property
    def _n_left(self) -> int:
        return sum(
            map(len, (self._unsent, self._unconfirmed, self._unsent_remains, self._unconfirmed_remains))
        )

    def close(self, patience_s: float = _CLOSE_S) -> Sequence[Event]:
        """End the process; may be called twice.

        Parameters
        ----------
        patience_s
            Time that it has to end what it is doing and close its connections, seconds; then it is killed.

        Returns
        -------
        events
            What nobody was told: what was taken in before an error, and that the process began and ended.
        """
        if self._closed:
            return ()
        self._closed = True
        self.process.channel.finish()
        self.process.wait(patience_s)
        self.process.close()
        self._tell(self._unreported)
        return self._take_unreported()

    def _take_unreported(self) -> Sequence[Event]:
        events, self._unreported = self._unreported, []
        return events

    def _look_after(self, events: list[Event]) -> None:
        """Note that the process began, or ended; start another one in the place of one that died."""
        self.process.refresh()
        if self.process.ended:
            self._receive(events)
        self._tell(events)
        if self.process.ended:
            self._restart()

    def _tell(self, events: list[Event]) -> None:
        """Say once that the process began, and once that it ended."""
        process, now = self.process, time.time()
        if process.pid is not None and self._announced is not process:
            self._announced = process
            pid, started_at = process.pid, process.started_at or now
            host, birth = socket.gethostname(), KERNEL.birth(process.pid)
            events.append(WorkerStarted(now, _INGESTER, host, pid, started_at, birth))
        if (process.ended or self._closed) and self._announced is process and self._mourned is not process:
            self._mourned = process
            events.append(WorkerEnded(now, _INGESTER, process.exit_code))

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
            if not self.process.channel.try_send((_OFFER, *offers)):
                return
            for index, ref in some:
                self._unsent.popleft()
                self._unconfirmed[index] = ref
        while self._unsent_remains:
            indices = [self._unsent_remains[i] for i in range(min(len(self._unsent_remains), MAX_QUANTA))]
            if not self.process.channel.try_send((_DISCARD, *indices)):
                return
            for index in indices:
                self._unsent_remains.popleft()
                self._unconfirmed_remains[index] = None
        if self._drain_wanted and not self._drain_sent:
            self._drain_sent = self.process.channel.try_send((_DRAIN,))

    def _receive(self, events: list[Event]) -> None:
        while (message := self.process.channel.try_receive()) is not None:
            if message[0] == _INGESTED:
                _, at, indices, n_datasets = message
                for index in indices:
                    self._unconfirmed.pop(index, None)
                events.append(OutputsIngested(at, indices, n_datasets))
            elif message[0] == _DISCARDED:
                for index in message[1:]:
                    self._unconfirmed_remains.pop(index, None)
            else:
                _, what, hint, trace = message
                self._error = IngestError(
                    f"outputs could not be taken into the registry: {what}",
                    hint=hint or f"The whole traceback is in {self._output}.",
                )
                self._error.add_note(trace)

    def _restart(self) -> None:
        """Start a new process in the place of one that died, unless too many have."""
        if self._error is not None:
            return
        obituary = f"the ingester {describe_exit(self.process.exit_code)}"
        if not self._restarts_left:
            self._error = IngestError(
                f"{obituary}, as {_RESTARTS} before it", hint=f"What it printed is in {self._output}."
            )
            return
        self._restarts_left -= 1
        self._replace_process()

    def _try_once_more(self) -> None:
        """Start a new process although one could not go on: the reason may have passed."""
        self.process.channel.finish()
        self.process.wait(_CLOSE_S)
        self._tell(self._unreported)
        self._error = None
        self._replace_process()

    def _replace_process(self) -> None:
        """Start a new process for what the last one has not confirmed."""
        self.process.close()
        self._unsent.extendleft(reversed(self._unconfirmed.items()))
        self._unconfirmed.clear()
        self._unsent_remains.extendleft(reversed(self._unconfirmed_remains))
        self._unconfirmed_remains.clear()
        self._drain_sent = False
        self.process = self._start()


def ingest_until_told(channel: Channel, opener: IngesterOpener, segments: str, batching: Batching) -> None:
    """Be the ingester's process: ingest and clean up what it is told to until the driver has nothing more.

    Parameters
    ----------
    channel
        To the driver.
    opener, segments, batching
        As for `IngestionProcess`.
    """
    with suppress(OSError):
        os.nice(_NICENESS)
    batches = Batches(opener, Path(segments), batching)
    batches.open()
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while not channel.at_end:
        due_s = batches.due_in_s()
        poll.poll(None if due_s is None else due_s * 1000)
        while (message := channel.try_receive()) is not None:
            _accept(message, batches)
        if batches.may_discard:
            channel.send((_DISCARDED, *batches.discard()))
        elif batches.due_in_s() == 0 and (event := batches.ingest()) is not None:
            channel.send((_INGESTED, event.at, event.indices, event.n_datasets))
    batches.close()


def _accept(message: Message, batches: Batches) -> None:
    """Take in a message."""
    if message[0] == _DRAIN:
        batches.draining = True
    elif message[0] == _DISCARD:
        batches.add_remains(message[1:])
    else:
        for index, segment, offset, length in message[1:]:
            batches.add(index, SegmentRef(segment, offset, length))
