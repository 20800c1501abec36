"""The bench of a batch job: makes sure of what other machines wrote, and of the software here.

A network file system may show a file long after it was written elsewhere. Without that file a task would
go on with fewer inputs, or say that there was no work; so what its producers say they wrote is waited
for. What they did not write is not: it counts as not produced, as it does within one machine.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from lsst.resources import ResourcePath

from qgexec.books.journal import read_detail
from qgexec.books.visibility import look_anew
from qgexec.errors import InitOutputsError, JournalError
from qgexec.events import AttemptLost, Event
from qgexec.quantum import Attempt, SegmentRef
from qgexec.rubin.datastores import StoredFile, recorded_files
from qgexec.rubin.detail import records_from_json
from qgexec.rubin.opener import JobBenchOpener
from qgexec.rubin.versions import changed_versions
from qgexec.rubin.workbench import Workbench

__all__ = ["JobBench"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class JobBench(Workbench):
    """Executes quanta as `Workbench` does, and none before all that it might read is to be seen here.

    Parameters
    ----------
    opener
        What it was opened by.
    name
        Names its segment.

    Raises
    ------
    qgexec.errors.InitOutputsError
        Package versions are not the run's, and that is to be refused.
    """

    def __init__(self, opener: JobBenchOpener, name: str) -> None:
        super().__init__(opener.workbench, name)
        self._job = opener
        self._segments = Path(opener.workbench.books.segments)
        self._seen: set[int] = set()
        try:
            self._compare_versions()
        except BaseException:
            self.close()
            raise

    def _compare_versions(self) -> None:
        changes = changed_versions(self.supply, self._source, Path(self._job.workbench.graph_file))
        if not changes:
            return
        what = f"package versions on {socket.gethostname()} are not those of the run: {'; '.join(changes)}"
        if self._job.strict_versions:
            raise InitOutputsError(
                what,
                hint="Set up the same software for jobs (setup, environment, container), "
                "or leave out --strict-versions to go on with what is there.",
            )
        # Not logged: what is logged here belongs to a quantum, and would be gone with its log.
        sys.stderr.write(f"WARNING: {what}\n")

    def execute(self, attempt: Attempt) -> Event:
        """Execute one quantum and say what came of it, or that its inputs are not to be seen here."""
        awaited = [each for each in self._job.producers.get(attempt.index, ()) if each not in self._seen]
        if awaited and (reason := self._wait_for(awaited, attempt.timeout_s)):
            return AttemptLost(time.time(), attempt.index, attempt.number, reason)
        return super().execute(attempt)

    def _wait_for(self, producers: Iterable[int], timeout_s: float | None) -> str:
        """Wait until all that these quanta wrote is to be seen; return what is not, empty where all is.

        About 1 ms a producer, if all is there.
        """
        patience_s = self._job.visibility_s
        if timeout_s is not None:  # a quantum that timed out would count as too slow itself
            patience_s = min(patience_s, timeout_s / 2)
        deadline = time.monotonic() + patience_s
        pause_s = _FIRST_PAUSE_S
        for producer in producers:
            while unseen := self._unseen(self._job.details[producer]):
                if (left_s := deadline - time.monotonic()) <= 0:
                    return (
                        f"what quantum {producer} wrote is not to be seen on {socket.gethostname()} "
                        f"after {patience_s:g} s: {unseen}"
                    )
                time.sleep(min(pause_s, left_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._seen.add(producer)
        return ""

    def _unseen(self, ref: SegmentRef) -> str:
        """Return a file that is not here as an outcome says that it was written, or nothing."""
        try:
            detail = read_detail(self._segments, ref)
        except JournalError:
            look_anew(self._segments)
            return str(self._segments / ref.segment)
        datastore = self.supply.datastore
        remote: list[ResourcePath] = []
        for file in recorded_files(datastore, records_from_json(detail.get("records", {}))):
            if not file.uri.isLocal:
                remote.append(file.uri)
            elif not _is_here(file):
                look_anew(Path(file.uri.dirname().ospath))
                return file.uri.ospath
        # Object stores show an object whole or not at all; many are asked for at the same time.
        exist = ResourcePath.mexists(remote) if remote else {}
        return next((str(uri) for uri, exists in exist.items() if not exists), "")


def _is_here(file: StoredFile) -> bool:
    """Tell whether a local file is to be seen with all that was written to it."""
    recorded = file.info.file_size
    size = file.size()
    return size is not None and (size == recorded or recorded < 0)
