"""What can be set for a pool of workers."""

from __future__ import annotations

from dataclasses import dataclass

from qgexec.errors import UsageError

__all__ = ["PoolSettings"]


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What can be set for a `qgexec.models.pool.Pool`.

    Raises
    ------
    qgexec.errors.UsageError
        Fewer than one process, a time or an amount that is negative, or one of 0 that must pass.
    """

    processes: int
    """Most workers; workers of serial tasks come on top."""

    cores: int
    """Cores that their quanta may use together."""

    grace_s: float
    """Time between SIGTERM and SIGKILL for a worker that is to end, seconds."""

    memory_bytes: int | None
    """Memory that quanta may ask for together; `None` for what the machine, or our control group, has."""

    growth_bytes: int
    """A worker that holds so much more memory after a quantum than when it began its work is replaced."""

    watch_period_s: float
    """Time between two looks at what long quanta use, seconds."""

    start_limit_s: float
    """A worker that is not ready after this time is given up, seconds."""

    silence_limit_s: float
    """A worker that is stopped, or does not take what it was sent, for this time is given up, seconds."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise UsageError(
                f"a pool of {self.processes} processes cannot run anything",
                hint="Give at least 1 (`-j 1`).",
            )
        if self.cores < 1:
            raise UsageError(f"cores is {self.cores}: it must be 1 or more")
        for name in ("grace_s", "growth_bytes"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("watch_period_s", "start_limit_s", "silence_limit_s", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}: it must be more than 0")
