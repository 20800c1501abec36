"""What a run is told, by name and value: kept in its run directory, so that nobody need say it again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from qgexec.config.logoptions import LogOptions
from qgexec.config.runconfig import RunConfig, make_policy
from qgexec.errors import UsageError
from qgexec.scheduling.policy import Policy
from qgexec.storedvalues import UNFIT, check_types

if TYPE_CHECKING:
    from qgexec.scheduling.plan import Plan  # numpy, which --help does not wait for

__all__ = ["RunOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run is executed, as far as that can be written down."""

    processes: int = 1
    """Worker processes of the ``pool``."""

    fail_fast: bool = False
    """Stop at the first failure."""

    max_failures: str | None = None
    """Stop after so many failures: a number, or ``5%`` of all quanta."""

    skip_existing: bool = False
    """Do not execute quanta whose metadata exists in the output RUN."""

    clobber_outputs: bool = False
    """Remove outputs in the way of a quantum."""

    raise_on_partial_outputs: bool = True
    """Count partial outputs as a failure."""

    implicit_threads: bool = False
    """Leave numerical libraries in workers their own threads."""

    strict_versions: bool = False
    """Refuse to execute elsewhere, or later, with other package versions than those of the RUN."""

    log_level: str | None = None
    """Level of the stack's loggers where quanta run in the caller's process."""

    lsst_debug: bool = False
    """Import ``debug.py`` before each quantum, as upstream's lsstDebug wants it."""

    logging: LogOptions | None = None
    """What is logged here, in workers and in batch jobs; `None` where nothing was said of it."""

    seed: int | None = None
    """Quanta draw the same random numbers in each run with the same seed, 32 bits; `None`: never the same."""

    provenance: bool = False
    """Take upstream's provenance graph into the output RUN when the run has ended."""

    grace_s: float | None = None
    """Time that running quanta have to finish after an interrupt, seconds; `None` for any."""

    config: RunConfig = field(default_factory=RunConfig)
    """What the tasks' quanta may use, and how often they are tried again."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise UsageError(
                f"processes={self.processes} leaves nothing to run with.", hint="Give at least 1."
            )
        self.most_failures(100)

    @property
    def cores(self) -> int:
        """Cores of all processes together: each has as many as a quantum asks for by default."""
        return self.processes * (self.config.common.get("cores") or 1)

    def most_failures(self, n_quanta: int) -> int | None:
        """Return after how many failures a run of so many quanta stops; `None` for any number.

        Raises
        ------
        qgexec.errors.UsageError
            `max_failures` is neither a positive number nor a percentage up to 100.
        """
        if self.max_failures is None:
            return None
        text = self.max_failures.strip()
        number, percent = text.removesuffix("%"), text.endswith("%")
        try:
            value = float(number) if percent else float(int(number))
        except ValueError:
            value = math.nan
        if not (0 < value <= 100 if percent else value >= 1):
            raise UsageError(
                f"--max-failures {self.max_failures}: neither a number of quanta nor a share of them.",
                hint="Give for example 20 or 5%.",
            )
        return max(1, math.ceil(value / 100 * n_quanta)) if percent else int(value)

    def policy(self, plan: Plan, *, machine_memory_bytes: int | None) -> Policy:
        """Return what the options mean for a plan.

        Parameters
        ----------
        plan
            The run's.
        machine_memory_bytes
            The most that one quantum can get; `None` where that is not known.
        """
        return make_policy(
            self.config,
            plan.labels,
            fail_fast=self.fail_fast,
            max_failures=self.most_failures(len(plan)),
            machine_memory_bytes=machine_memory_bytes,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the options by their names, as JSON can hold them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        logging = None if self.logging is None else self.logging.to_json()
        return values | {"config": self.config.to_json(), "logging": logging}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the options that `to_json` gave; one that is not there has its default.

        Raises
        ------
        qgexec.errors.UsageError
            They are others, or of other types.
        """
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        try:
            if "config" in known:
                known["config"] = RunConfig.from_json(known["config"])
            if known.get("logging") is not None:
                known["logging"] = LogOptions.from_json(known["logging"])
            options = cls(**known)
            check_types(options)
        except UNFIT as error:
            raise UsageError(
                f"the run's options in its run.json are damaged: {error}",
                hint="Bring run.json back from a copy.",
            ) from error
        return options
