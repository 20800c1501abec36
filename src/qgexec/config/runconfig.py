"""Owns what was said about resources, retries and batch jobs, and what it means for a run; reads no file.

What is said about one task wins over what is said about all; of two that say the same
thing the later one counts, key by key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict, cast

from qgexec.config.batchsettings import BatchSettings
from qgexec.config.units import size_text
from qgexec.plaintext import few
from qgexec.quantum import Resources
from qgexec.scheduling.ordergroup import OrderGroup
from qgexec.scheduling.policy import Policy, Retries, TaskRules
from qgexec.storedvalues import check_types

__all__ = ["ISOLATIONS", "RunConfig", "TaskSettings", "make_policy", "remarks"]

ISOLATIONS = ("process", "none")
"""What can be said about isolation."""

_MEMORY_MULTIPLIER = 2.0
"""Growth of memory where nothing else is said: BPS's own default, on which production files rely."""

_OF_AN_EXCEPTION = 1
"""Exit code of a process that runs one quantum as BPS starts it, if the task raised."""


class TaskSettings(TypedDict, total=False):
    """What was said about one task, or about all; `None` takes back what was said less particularly."""

    cores: int | None
    memory_bytes: int | None
    """Memory that a first attempt asks for."""

    memory_max_bytes: int | None
    """It never asks for more: what the task can need."""

    memory_limit_bytes: int | None
    """It never asks for more: what the machine can give."""

    memory_multiplier: float | None
    """1 or less for no growth."""

    enforce_memory: bool | None
    timeout_s: float | None
    n_retries: int | None
    """For every cause that no other number is for."""

    retry_unless_exit: list[int] | None
    """Exit codes after which there is no retry; 1 stands for any exception."""

    lost: int | None
    out_of_memory: int | None
    timed_out: int | None
    exceptions: dict[str, int] | None
    exit_codes: dict[int, int] | None
    signals: dict[int, int] | None
    isolation: str | None
    """``process``: each quantum is executed in a process of its own; ``none``: it is not."""

    keep_processes: bool | None
    """Processes that a quantum leaves behind go on until the end of the run."""

    other_options: str | None
    """Options for a task alone that a batch job would have been given, and that nothing here takes."""


_BY_NUMBER = ("exit_codes", "signals")
"""Settings whose keys JSON turns into text."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What was said about resources, retries and batch jobs, in files and options."""

    common: TaskSettings = field(default_factory=TaskSettings)
    """For all tasks."""

    tasks: Mapping[str, TaskSettings] = field(default_factory=dict)
    """By task label; labels that are in no graph do no harm."""

    batch: BatchSettings = field(default_factory=BatchSettings)
    """For batch jobs."""

    ordering: tuple[OrderGroup, ...] = ()
    """Order between quanta, for the plan of a run that begins."""

    unknown: tuple[str, ...] = field(default=(), compare=False)
    """What files said that means nothing: name and place. Not kept with the run: it has been told then."""

    @classmethod
    def for_all(cls, told: Mapping[str, object], batch: BatchSettings | None = None) -> Self:
        """Return what holds for all tasks.

        Parameters
        ----------
        told
            Settings by their names in `TaskSettings`; what is `None` was not said.
        batch
            For batch jobs.
        """
        said = {name: value for name, value in told.items() if value is not None}
        return cls(cast("TaskSettings", said), batch=batch or BatchSettings())

    def settings(self, label: str) -> TaskSettings:
        """Return all that holds for a task."""
        return _over(self.common, self.tasks.get(label, {}))

    def updated(self, later: RunConfig) -> RunConfig:
        """Return what holds when this is followed by something that was said later.

        What was said about one task stays above what is said about all, however late.
        """
        tasks = dict(self.tasks)
        for label, settings in later.tasks.items():
            tasks[label] = _over(tasks.get(label, {}), settings)
        return RunConfig(
            _over(self.common, later.common),
            tasks,
            self.batch.updated(later.batch),
            later.ordering or self.ordering,
            self.unknown + later.unknown,
        )

    def to_json(self) -> dict[str, Any]:
        """Return ``common``, ``tasks``, ``batch`` and ``ordering`` as JSON can hold them."""
        return {
            "common": _to_json(self.common),
            "tasks": {label: _to_json(settings) for label, settings in self.tasks.items()},
            "batch": self.batch.to_json(),
            "ordering": [group.to_json() for group in self.ordering],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave; an error of `UNFIT` where it is something else.

        Runs of before there were batch systems, or an order, say nothing about them.
        """
        tasks = {str(label): _from_json(settings) for label, settings in dict(values["tasks"]).items()}
        batch = BatchSettings.from_json(values.get("batch", {}))
        ordering = tuple(map(OrderGroup.from_json, values.get("ordering", ())))
        config = cls(_from_json(values["common"]), tasks, batch, ordering)
        check_types(config)
        return config


def make_policy(
    config: RunConfig,
    labels: Collection[str],
    *,
    fail_fast: bool = False,
    max_failures: int | None = None,
    machine_memory_bytes: int | None = None,
    machine_cores: int | None = None,
) -> Policy:
    """Return what the configuration means for a graph on a machine.

    Parameters
    ----------
    config
        What was said.
    labels
        Task labels of the graph.
    fail_fast, max_failures
        See `qgexec.scheduling.policy.Policy`.
    machine_memory_bytes, machine_cores
        The most that one quantum can get, `None` if that is not known. A quantum that asks for more
        asks for this much instead: it has the machine to itself then, rather than never running.
    """
    machine = _Machine(machine_memory_bytes, machine_cores)
    return Policy(
        fail_fast,
        max_failures,
        {label: _rules(config.settings(label), machine) for label in labels},
        _rules(config.common, machine),
    )


def remarks(
    config: RunConfig,
    labels: Collection[str],
    *,
    machine_memory_bytes: int | None = None,
    machine_cores: int | None = None,
) -> list[str]:
    """Return what the user should know before the run, one sentence or two each.

    Keys that mean nothing, all in one; options for single tasks that are not taken; tasks
    of this graph that ask for more than their own maximum, or than the machine has.
    """
    told = []
    if config.unknown:
        told.append(f"Keys that mean nothing here, and are ignored: {', '.join(config.unknown)}.")
    not_taken: dict[str, list[str]] = {}
    larger, held_down = [], []
    for label in labels:
        settings = config.settings(label)
        if options := settings.get("other_options"):
            not_taken.setdefault(options, []).append(label)
        asked, gets = (_request(settings, machine) for machine in (_ENDLESS, _Machine(None, machine_cores)))
        memory = _request(settings, _Machine(machine_memory_bytes, None)).memory_bytes
        if asked.cores > gets.cores:
            larger.append(f"{label} ({asked.cores} cores)")
        if asked.memory_bytes is not None and memory is not None and memory < asked.memory_bytes:
            larger.append(f"{label} ({size_text(asked.memory_bytes)})")
        wanted, most = settings.get("memory_bytes"), settings.get("memory_max_bytes")
        if wanted is not None and most is not None and most < wanted:
            held_down.append(f"{label} ({size_text(wanted)}, gets {size_text(most)})")
    told += [
        f"extraRunQuantumOptions of {few(labels)} is not taken: {options}. "
        "On the command line such options hold for all tasks."
        for options, labels in not_taken.items()
    ]
    if held_down:
        told.append(
            f"These tasks ask for more than their requestMemoryMax: {few(held_down)}. "
            "To give them more, raise that, too."
        )
    if larger:
        told.append(
            f"These tasks ask for more than there is: {few(larger)}. "
            f"Each of their quanta gets all there is ({_Machine(machine_memory_bytes, machine_cores)})."
        )
    return told


@dataclass(frozen=True, slots=True)
class _Machine:
    """The most that one quantum can get."""

    memory_bytes: int | None
    cores: int | None

    def __str__(self) -> str:
        amounts = [] if self.cores is None else [f"{self.cores} core{'s' * (self.cores > 1)}"]
        if self.memory_bytes is not None:
            amounts.append(f"{size_text(self.memory_bytes)} of memory")
        return ", ".join(amounts)


_ENDLESS = _Machine(None, None)


def _over(below: TaskSettings, above: TaskSettings) -> TaskSettings:
    """Return both; of what both say, the second, table entry by table entry."""
    both: dict[str, Any] = dict(below)
    for key, value in above.items():
        was = both.get(key)
        both[key] = {**was, **value} if isinstance(was, dict) and isinstance(value, dict) else value
    return cast("TaskSettings", both)


def _to_json(settings: TaskSettings) -> dict[str, Any]:
    values: dict[str, Any] = dict(settings)
    for key in _BY_NUMBER:
        if values.get(key) is not None:
            values[key] = {str(number): n for number, n in values[key].items()}
    return values


def _from_json(values: Mapping[str, Any]) -> TaskSettings:
    settings = dict(values)
    if foreign := settings.keys() - TaskSettings.__annotations__.keys():
        raise KeyError(*sorted(foreign))
    for key in _BY_NUMBER:
        if settings.get(key) is not None:
            settings[key] = {int(number): n for number, n in dict(settings[key]).items()}
    return cast("TaskSettings", settings)


def _least(*numbers: int | None) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


def _most_memory(settings: TaskSettings, machine: _Machine) -> int | None:
    return _least(settings.get("memory_max_bytes"), settings.get("memory_limit_bytes"), machine.memory_bytes)


def _request(settings: TaskSettings, machine: _Machine) -> Resources:
    """Return what a first attempt asks for."""
    memory = settings.get("memory_bytes")
    if memory is not None:
        memory = _least(memory, _most_memory(settings, machine))
    return Resources(_least(settings.get("cores") or 1, machine.cores) or 1, memory)


def _rules(settings: TaskSettings, machine: _Machine) -> TaskRules:
    multiplier = settings.get("memory_multiplier", _MEMORY_MULTIPLIER)
    return TaskRules(
        request=_request(settings, machine),
        enforce_memory=settings.get("enforce_memory") or False,
        memory_multiplier=max(1.0, multiplier or 1.0),
        memory_max_bytes=_most_memory(settings, machine),
        timeout_s=settings.get("timeout_s"),
        retries=_retries(settings),
        isolated=settings.get("isolation") == "process",
        keeps_processes=settings.get("keep_processes") or False,
    )


def _retries(settings: TaskSettings) -> Retries:
    n_retries, lost = settings.get("n_retries"), settings.get("lost")
    out_of_memory, not_after = settings.get("out_of_memory"), settings.get("retry_unless_exit") or []
    return Retries(
        common=n_retries or 0,
        lost=Retries().lost if lost is None else lost,
        out_of_memory=n_retries if out_of_memory is None else out_of_memory,
        timed_out=settings.get("timed_out"),
        raised=0 if _OF_AN_EXCEPTION in not_after else None,
        exceptions=settings.get("exceptions") or {},
        exit_codes=dict.fromkeys(not_after, 0) | (settings.get("exit_codes") or {}),
        signals=settings.get("signals") or {},
    )
