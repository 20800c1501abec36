"""Owns what was said about batch jobs: site, queue, account, set-up, limits, and how quanta are clustered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any, Self

from qgexec.clustering.rules import ClusterRules
from qgexec.storedvalues import check_types

__all__ = ["BatchSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """What jobs of a batch system are given besides what their quanta ask for."""

    site: str | None = None
    """Name of the section below ``site:`` that holds; ``computeSite`` of BPS."""

    queue: str | None = None
    """Partition or queue; ``queue`` of BPS."""

    account: str | None = None
    """Account or accounting group; ``accountingGroup`` of BPS."""

    accounting_user: str | None = None
    """``accountingUser`` of BPS."""

    setup: tuple[str, ...] = ()
    """Shell commands that each job runs before anything else, in one shell."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that each job gets; ``environment`` of BPS. ``${NAME}`` in a value is the job's own."""

    environments: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """By task label in what the variables of its jobs differ; `None` for one that they are not given."""

    container: str | None = None
    """Image that jobs run in, where the batch system can do that."""

    submit_lines: tuple[str, ...] = ()
    """Further lines of the batch system's own: options of sbatch, or lines of a submit description."""

    max_idle: int | None = None
    """The most jobs that wait in the queue at a time."""

    max_jobs: int | None = None
    """The most jobs that are in the batch system at a time."""

    walltime_s: float | None = None
    """Time limit of a job whose quanta have no time limits of their own; `None` leaves it to the site."""

    closing_memory_bytes: int = 4 << 30
    """What the job asks for that ingests and closes the books; ``finalJob: requestMemory`` of BPS."""

    visibility_s: float = 60.0
    """Longest wait, in a job, for what another machine wrote to be seen there, seconds: by default as long as
    NFS may go on showing a folder as it was. After that the attempt counts as lost, and is tried again."""

    clustering: ClusterRules = field(default_factory=ClusterRules)
    """Which quanta go into one job."""

    durations: Mapping[str, float] = field(default_factory=dict)
    """Mean run time of a quantum by task label, seconds, as earlier runs had it."""

    said: frozenset[str] = frozenset()
    """Names of the fields above that hold also where they are what they are by default."""

    def __post_init__(self) -> None:
        told = {f.name for f in fields(self) if f.name != "said" and getattr(self, f.name) != _default(f)}
        object.__setattr__(self, "said", self.said | told)

    def updated(self, later: BatchSettings) -> BatchSettings:
        """Return what holds when this is followed by settings that were given later."""
        values = {name: getattr(later, name) for name in later.said}
        if later.environment:
            values["environment"] = {**self.environment, **later.environment}
        earlier = {} if "environment" in later.said and not later.environment else self.environments
        values["environments"] = {
            label: {**earlier.get(label, {}), **later.environments.get(label, {})}
            for label in {**earlier, **later.environments}
        }
        values["clustering"] = self.clustering.updated(later.clustering)
        return replace(self, **values, said=self.said | later.said)

    def environment_codes(self) -> dict[str, int]:
        """Return a number by task label, the same for tasks whose jobs may be the same; 0 for all others."""
        numbers: dict[frozenset[tuple[str, str | None]], int] = {frozenset(): 0}
        return {
            label: numbers.setdefault(frozenset(changed.items()), len(numbers))
            for label, changed in self.environments.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the settings by their names, as JSON can hold them."""
        return asdict(self) | {"clustering": self.clustering.to_json(), "said": sorted(self.said)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave; one that is not there has its default."""
        known: dict[str, Any] = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        known |= {name: tuple(known[name]) for name in ("setup", "submit_lines") if name in known}
        if "clustering" in known:
            known["clustering"] = ClusterRules.from_json(known["clustering"])
        settings = cls(**known | {"said": frozenset(known.get("said", ()))})
        check_types(settings)
        return settings


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()
