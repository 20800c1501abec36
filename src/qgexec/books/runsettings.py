"""What a run is, as ``run.json`` holds it; knows no files."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from qgexec import __version__
from qgexec.quantum import RunContext
from qgexec.storedvalues import check_types

__all__ = ["RUN_FORMAT", "RUN_VERSION", "OptionValue", "RunSettings", "user_name"]

RUN_VERSION = 3
"""Version of ``run.json``. 1: the first. 2: ``run_is_new``. 3: ``preparation``."""

RUN_FORMAT = "qgexec-run"
"""What ``run.json`` says that it is."""

OptionValue = str | int | float | bool | None | list["OptionValue"] | dict[str, "OptionValue"]
"""What an option may be: whatever JSON can hold."""


def user_name() -> str:
    """Return who runs this process: a name, or the number of a user who has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user need not be in its password file
        return str(os.getuid())


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run is: all that later commands need besides plan and journal."""

    context: RunContext
    """Repository, graph file, collections and run directory."""

    model: str
    """Name of the execution model."""

    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """Options as they were given, by their name in Python."""

    run_is_new: bool = False
    """The output RUN did not exist before this run."""

    labels: tuple[str, ...] = ()
    """Task labels, in the order of the pipeline."""

    serial_labels: tuple[str, ...] = ()
    """Those of which only one quantum may run at a time."""

    qgexec_version: str = __version__
    """Version of qgexec that made the run directory."""

    preparation: Mapping[str, OptionValue] | None = None
    """What is to be done to the registry, while it may not have been done in full; else `None`."""

    created_at: float = field(default_factory=time.time)
    """UNIX seconds."""

    user: str = field(default_factory=user_name)
    """Who made it."""

    host: str = field(default_factory=socket.gethostname)
    """Where it was made."""

    def to_json(self) -> dict[str, Any]:
        """Return what ``run.json`` holds: ``format``, ``version``, and the attributes by their names."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {"context": asdict(self.context), "options": dict(self.options)}
        return {"format": RUN_FORMAT, "version": RUN_VERSION, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings of a ``run.json``; KeyError or TypeError where it holds something else."""
        context = values["context"]
        settings = cls(
            context=RunContext(**{**context, "inputs": tuple(context["inputs"])}),
            labels=tuple(values["labels"]),
            serial_labels=tuple(values["serial_labels"]),
            run_is_new=bool(values.get("run_is_new", False)),
            preparation=values.get("preparation"),
            **{f.name: values[f.name] for f in fields(cls) if f.name not in _CONVERTED},
        )
        check_types(settings)
        return settings


_CONVERTED = frozenset({"context", "labels", "serial_labels", "run_is_new", "preparation"})
