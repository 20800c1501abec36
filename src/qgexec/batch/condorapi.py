"""Calls HTCondor through its Python package, `htcondor2` or the older `htcondor`; knows nothing of rounds.

Both have the classes that are used here; two enumerations have other names in the older one. The package
is imported when it is needed: nobody else must have it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from qgexec.errors import ModelError

__all__ = ["Ad", "CondorApi", "CondorCalls"]

Ad = Mapping[str, Any]
"""What HTCondor says of one thing; values that it cannot tell are left out."""

_MODULES = ("htcondor2", "htcondor")

_ENVIRONMENT = "CONDOR_CONFIG,PATH,TZ,HOME,USER,LANG,LC_ALL"
"""What DAGMan gets of whoever submits. By default it also gets tokens, and everybody can read a job's ad."""


class CondorCalls(Protocol):
    """What is asked of HTCondor; raises `qgexec.errors.ModelError` where it does not answer, or refuses."""

    def schedd_name(self) -> str:
        """Return the name of the schedd that submits from here."""
        ...

    def machines(self) -> list[tuple[int, int]]:
        """Return cores and memory in MiB of each machine of the pool that takes jobs, as a whole."""
        ...

    def submit(self, description: str) -> int:
        """Submit one job and return its cluster."""
        ...

    def submit_dag(self, dag: Path, batch_name: str) -> int:
        """Submit a DAG and return the cluster of its DAGMan; every path in it is meant from its folder."""
        ...

    def query(self, schedd: str, constraint: str, attributes: Sequence[str]) -> list[Ad]:
        """Return what these jobs in the queue say of themselves."""
        ...

    def history(self, schedd: str, constraint: str, attributes: Sequence[str]) -> Ad | None:
        """Return the last of these jobs that has left the queue."""
        ...

    def remove(self, schedd: str, constraint: str) -> None:
        """Remove these jobs."""
        ...


class CondorApi:
    """HTCondor, by its package.

    Raises
    ------
    qgexec.errors.ModelError
        From each method: the package is not installed, HTCondor does not answer, or it refuses.
    """

    @functools.cached_property
    def _module(self) -> Any:
        for name in _MODULES:
            with contextlib.suppress(ImportError):
                return importlib.import_module(name)
        raise ModelError(
            "HTCondor's Python package is not installed where qgexec runs",
            hint="Install it with: pip install 'qgexec[htcondor]'  (or conda install htcondor).",
        )

    @contextlib.contextmanager
    def _calling(self, what: str) -> Iterator[Any]:
        """Turn what the package raises into our error; it has an exception of its own, and raises others."""
        module = self._module
        raised = (module.HTCondorException, RuntimeError, ValueError, OSError)
        try:
            yield module
        except raised as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"HTCondor: {what}: {words}") from error

    def schedd_name(self) -> str:
        """Return the name of the schedd that submits from here."""
        with self._calling("no schedd answers on this machine") as module:
            ad = module.Collector().locate(_enum(module, "DaemonType").Schedd)
            if ad is None:
                raise ValueError("the collector knows none")
            return str(ad["Name"])

    def _schedd(self, module: Any, name: str) -> Any:
        found = module.Collector().locate(_enum(module, "DaemonType").Schedd, name)
        if (
            found is None
        ):  # and `Schedd(None)` would be the one of this machine, which knows nothing of the jobs
            raise ValueError("the pool's collector knows no schedd of this name")
        return module.Schedd(found)

    def machines(self) -> list[tuple[int, int]]:
        """Return cores and memory in MiB of each machine of the pool that takes jobs, as a whole.

        What does not say how large it is is left out.
        """
        with self._calling("the pool's machines cannot be listed") as module:
            ads = module.Collector().query(
                _enum(module, "AdType").Startd,
                constraint='PartitionableSlot =?= true || SlotType =?= "Static"',
                projection=["TotalSlotCpus", "TotalSlotMemory", "Cpus", "Memory"],
            )
            sizes = [
                (_number(ad, "TotalSlotCpus", "Cpus"), _number(ad, "TotalSlotMemory", "Memory")) for ad in ads
            ]
            return [(int(cores), int(mib)) for cores, mib in sizes if cores and mib]

    def submit(self, description: str) -> int:
        """Submit one job and return its cluster."""
        with self._calling("it refuses jobs") as module:
            return int(module.Schedd().submit(module.Submit(description)).cluster())

    def submit_dag(self, dag: Path, batch_name: str) -> int:
        """Submit a DAG and return the cluster of its DAGMan; every path in it is meant from its folder."""
        options = {"UseDagDir": True, "Force": True}  # the batch name has another name in the older package
        with self._calling("the DAG was not submitted") as module:
            description = module.Submit.from_dag(str(dag), options)
            description["getenv"] = _ENVIRONMENT
            description["My.JobBatchName"] = f'"{batch_name}"'
            return int(module.Schedd().submit(description).cluster())

    def query(self, schedd: str, constraint: str, attributes: Sequence[str]) -> list[Ad]:
        """Return what these jobs in the queue say of themselves."""
        with self._calling(f"schedd {schedd} does not answer") as module:
            found = self._schedd(module, schedd).query(constraint=constraint, projection=list(attributes))
            return [_plain(ad, attributes) for ad in found]

    def history(self, schedd: str, constraint: str, attributes: Sequence[str]) -> Ad | None:
        """Return the last of these jobs that has left the queue."""
        with self._calling(f"the history of schedd {schedd} cannot be read") as module:
            found = self._schedd(module, schedd).history(constraint, list(attributes), 1)
            return next((_plain(ad, attributes) for ad in found), None)

    def remove(self, schedd: str, constraint: str) -> None:
        """Remove these jobs."""
        with self._calling(f"schedd {schedd} does not remove jobs") as module:
            self._schedd(module, schedd).act(module.JobAction.Remove, constraint)


def _enum(module: Any, name: str) -> Any:
    """Return an enumeration of the package's, whose older form has names in the plural."""
    return getattr(module, name, None) or getattr(module, f"{name}s")


def _plain(ad: Any, attributes: Sequence[str]) -> dict[str, Any]:
    """Return the numbers and texts of an ad; what is undefined, or cannot be told, is left out."""
    values = {name: ad.get(name) for name in attributes}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, str) or type(value) in (int, float, bool)
    }


def _number(ad: Any, *names: str) -> float:
    for name in names:
        if type(value := ad.get(name)) in (int, float):
            return float(value)
    return 0.0


def is_root() -> bool:
    """Return whether this process is root's, from whom HTCondor takes no jobs."""
    return os.geteuid() == 0
