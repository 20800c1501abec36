"""The jobs of one round as numbers: which quanta each has, what it asks for, which must end before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qgexec.clustering.clusters import Clusters
from qgexec.config.units import size_text
from qgexec.errors import RunDirError
from qgexec.storedvalues import UNFIT

__all__ = ["OVERHEAD_BYTES", "JobRequest", "Jobs"]

OVERHEAD_BYTES = 384 << 20
"""Memory of a job's own processes beside the one that executes its quanta: it with the stack loaded, and
the server that workers are forked from. Where the kernel's accounts are not at hand batch systems add up
resident sets, and count three times what they share."""

_NO_LIMIT = -1
"""Stands for no limit where an array cannot hold `None`."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What one job asks for."""

    cores: int = 1
    """The most that one of its quanta asks for; they run one after another."""

    memory_bytes: int | None = None
    """The most that one of its quanta asks for; `None` where none of them says."""

    walltime_s: float | None = None
    """The sum of its quanta's time limits; `None` where one has none."""

    def __str__(self) -> str:
        cores = f"{self.cores} core{'' if self.cores == 1 else 's'}"
        return f"{cores} and {size_text(self.memory_bytes)} of memory"


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs of a round, numbered from 0 in topological order: parents have smaller numbers."""

    clusters: Clusters
    """Quanta and parents of each job."""

    cores: npt.NDArray[np.int32]
    """Shape ``(n,)``."""

    memory_bytes: npt.NDArray[np.int64]
    """Shape ``(n,)``; -1 for no request."""

    walltime_s: npt.NDArray[np.float64]
    """Shape ``(n,)``; infinite for no limit."""

    def __len__(self) -> int:
        return len(self.clusters)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def quanta(self, job: int) -> Sequence[int]:
        """Return the indices of a job's quanta, each after its prerequisites."""
        return self.clusters.quanta(job)

    def all_quanta(self) -> npt.NDArray[np.int64]:
        """Return the indices of the quanta of all jobs, ascending."""
        return np.sort(np.asarray([index for job in self for index in self.quanta(job)], dtype=np.int64))

    def parents(self, job: int) -> Sequence[int]:
        """Return the jobs that must have ended before this one begins, ascending."""
        return self.clusters.parents(job)

    def name(self, job: int) -> str:
        """Return what people call this kind of job: a task label, or the name of a cluster."""
        return self.clusters.name(job)

    def request(self, job: int) -> JobRequest:
        """Return what a job asks for."""
        memory, walltime = int(self.memory_bytes[job]), float(self.walltime_s[job])
        return JobRequest(
            int(self.cores[job]),
            None if memory == _NO_LIMIT else memory,
            None if np.isinf(walltime) else walltime,
        )

    def priorities(self) -> npt.NDArray[np.int64]:
        """Return for each job the number of jobs on the longest path that it begins: more is more urgent."""
        longest = np.ones(len(self), dtype=np.int64)
        for job in range(len(self) - 1, -1, -1):
            after = longest[job] + 1
            for parent in self.parents(job):
                longest[parent] = max(longest[parent], after)
        return longest

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the jobs as arrays of numbers that `from_arrays` reads."""
        arrays = self.clusters.to_arrays()
        return arrays | {
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "walltime_s": self.walltime_s,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Jobs:
        """Return the jobs that `to_arrays` was called on.

        Raises
        ------
        qgexec.errors.RunDirError
            The arrays do not fit together.
        """
        try:
            jobs = cls(
                Clusters.from_arrays(arrays),
                _row(arrays["cores"], "iu").astype(np.int32),
                _row(arrays["memory_bytes"], "iu").astype(np.int64),
                _row(arrays["walltime_s"], "f").astype(np.float64),
            )
        except UNFIT as error:
            raise RunDirError(f"the stored jobs are damaged: {error}") from error
        if not len(jobs) == len(jobs.cores) == len(jobs.memory_bytes) == len(jobs.walltime_s):
            raise RunDirError("the stored jobs are damaged: their requests do not fit their number")
        return jobs


def _row(stored: npt.NDArray[Any], kinds: str) -> npt.NDArray[Any]:
    if stored.ndim != 1 or stored.dtype.kind not in kinds:
        raise ValueError(f"{stored.dtype} of shape {stored.shape}")
    return stored
