"""Watches over workers whose quantum takes long: what they use, and whether they still answer; ends none.

Only what was running at the last round, and is running now, is judged. What has started processes
of its own is looked at from its first round on, and more often.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from qgexec.config.units import size_text
from qgexec.events import AttemptBegan
from qgexec.models.poolsettings import PoolSettings
from qgexec.models.workers import NEVER, OverMemory, Sentence, Unresponsive, Worker
from qgexec.processes.machine import MemoryGroup
from qgexec.processes.proctree import Sight, look_at
from qgexec.quantum import Attempt, Outcome

__all__ = ["OomKills", "Watch"]

_logger = logging.getLogger(__name__)

_STOPPED = "T"
"""State of a process that a signal has stopped; one that a debugger holds is in state ``t``."""

_ABSENCE_S = 5.0
"""A round that comes so much too late was held up together with all else: what it finds proves nothing."""

_SHARE = 0.05
"""Most of the driver's time that looking may take."""

_TREE_PERIOD_S = 0.1
"""Time between two looks while a quantum has processes of its own: nobody keeps their peak together."""

_LAPSE_S = 10.0
"""A kernel's kill that is not known to be of a worker for so long was one of something else, seconds."""


class Watch:
    """Goes round the workers, again and again.

    Parameters
    ----------
    settings
        How often, and how much patience it has.
    proc
        Where the kernel shows processes.
    """

    def __init__(self, settings: PoolSettings, proc: Path = Path("/proc")) -> None:
        self._settings = settings
        self._proc = proc
        self._told: set[str] = set()
        self.due_at = 0.0
        """When the next round is due, by the monotonic clock."""

    def go_round(
        self, workers: Iterable[Worker], now: float, settle: Callable[[Worker], None]
    ) -> Iterator[tuple[Worker, Sentence]]:
        """Look at all that have been running the same attempt since the last round; yield those to be ended.

        Parameters
        ----------
        workers
            All living workers.
        now
            By the monotonic clock.
        settle
            Called after a look: takes in what the worker has said by then. An attempt that
            turns out to have ended is not blamed for what was seen.
        """
        began = time.monotonic()
        was_absent = now > self.due_at + _ABSENCE_S
        period_s = self._settings.watch_period_s
        for worker in workers:
            known = self._watched(worker, now, forget=was_absent)
            attempt, pid = worker.watched, worker.process.pid
            if attempt is None or pid is None or (sight := look_at(pid, self._proc, worker.kept)) is None:
                continue
            settle(worker)
            if not worker.held or worker.held[0] is not attempt or worker.doomed:
                continue
            if known is not None or sight.n_descendants:
                worker.used_bytes = sight.used_bytes
                worker.peak_bytes = max(worker.peak_bytes, sight.used_bytes)
            period_s = min(period_s, _TREE_PERIOD_S if sight.n_descendants else period_s)
            if known is not None and (sentence := self._judge(worker, attempt, sight, now)) is not None:
                yield worker, sentence
        took_s = time.monotonic() - began
        self.due_at = now + max(period_s, took_s / _SHARE)

    def tell_begun(self, workers: Iterable[Worker]) -> Iterator[AttemptBegan]:
        """Say which attempts have gone on for a period of this watch, each once."""
        before = time.time() - self._settings.watch_period_s
        for worker in workers:
            attempt = worker.held[0] if worker.held and not worker.doomed else None
            if attempt is not None and attempt is not worker.told and worker.began_at <= before:
                yield worker.tell_begin()

    def heed_end(self, attempt: Attempt, outcome: Outcome) -> None:
        """Say of an attempt that came to its own end that it used too much, and no round has seen it.

        Once for each task. What succeeded stays so: the limit protects the other quanta, and that is over.
        """
        limit_bytes, peak_bytes = attempt.memory_limit_bytes, outcome.peak_rss_bytes
        if limit_bytes is None or peak_bytes is None or peak_bytes <= limit_bytes:
            return
        if attempt.task_label not in self._told:
            self._told.add(attempt.task_label)
            _logger.warning(
                "A quantum of %s used %s of the %s that it may use, and had ended before that was noticed.",
                attempt.task_label,
                size_text(peak_bytes),
                size_text(limit_bytes),
            )

    def _watched(self, worker: Worker, now: float, *, forget: bool) -> Attempt | None:
        """Return what a worker was running at the last round, if it still is."""
        running = worker.held[0] if worker.held and not worker.doomed else None
        if running is worker.watched and not forget:
            return running
        worker.watched, worker.watched_since = running, now
        worker.stopped_since = NEVER
        worker.used_bytes = None
        return None

    def _judge(self, worker: Worker, attempt: Attempt, sight: Sight, now: float) -> Sentence | None:
        limit_bytes = attempt.memory_limit_bytes
        if limit_bytes is not None and sight.used_bytes > limit_bytes:
            return OverMemory(attempt, sight.used_bytes, limit_bytes)
        worker.stopped_since = min(worker.stopped_since, now) if sight.state == _STOPPED else NEVER
        patience_s = self._settings.silence_limit_s
        if now - worker.stopped_since >= patience_s:
            return Unresponsive(f"was stopped by a signal for {patience_s:g} s")
        if now - worker.watched_since >= patience_s:
            unread = worker.process.next_unread()
            if unread is not None and unread[0] == attempt.index:
                return Unresponsive(f"did not take what it was sent for {patience_s:g} s")
        return None


class OomKills:
    """Tells which killed workers the kernel has ended for want of memory.

    The control group has one count for all its processes. A count that no worker's death is found
    for soon is that of something a quantum had started.

    Parameters
    ----------
    group
        The control group of this process, and so of its workers; `None` where there is none.
    """

    def __init__(self, group: MemoryGroup | None) -> None:
        self._group = group
        self._n_seen = self._count()
        self._unclaimed = 0
        self._noted_at = 0.0

    def note(self, now: float) -> None:
        """Read the count; ``now`` is by the monotonic clock."""
        count = self._count()
        if count > self._n_seen:
            self._unclaimed += count - self._n_seen
            self._n_seen, self._noted_at = count, now
        elif now - self._noted_at > _LAPSE_S:
            self._unclaimed = 0

    def claim(self, now: float) -> bool:
        """Return whether a worker that was killed without our doing was killed by the kernel."""
        self.note(now)
        if not self._unclaimed:
            return False
        self._unclaimed -= 1
        return True

    def _count(self) -> int:
        count = None if self._group is None else self._group.n_oom_kills()
        return count or 0
