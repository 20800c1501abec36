"""Finds execution models by entry point, so that another package can bring its own; knows none by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qgexec.errors import ModelError, UsageError
from qgexec.models.base import ExecutionModel, ModelFacts, SimpleModel

__all__ = ["GROUP", "Model", "ModelEntry", "facts_of", "find_model", "list_models", "takes_setting"]

GROUP = "qgexec.execution_models"
"""Entry point group; each entry names a class."""

Model = ExecutionModel | SimpleModel
"""What can execute a plan."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One line of ``qgexec models``."""

    name: str
    """Name to ask for it by."""

    package: str
    """Distribution that brings it."""

    summary: str
    """First line of its documentation, or why it cannot be used."""

    settings: tuple[str, ...] = ()
    """Names of what can be set."""

    facts: ModelFacts | None = None
    """What the loop must know about it; `None` for a `SimpleModel`, or one that cannot be used."""

    usable: bool = True
    """It can be imported."""


def list_models() -> list[ModelEntry]:
    """Return all models that are installed, by name; one that does not import is listed with the reason."""
    return [_describe(entry) for _, entry in sorted(_entries().items())]


def find_model(model: str | type[Model] | Model, **settings: Any) -> Model:
    """Return a model that is ready to be opened.

    Parameters
    ----------
    model
        Name of an entry point, a class, or an instance, which is returned as it is.
    **settings
        Arguments of the class.

    Raises
    ------
    qgexec.errors.ModelError
        No model has this name, its class does not import, or it is no
        execution model.
    qgexec.errors.UsageError
        The model has no such setting, or an instance was given settings.
    """
    if isinstance(model, str):
        return _make(_load(model), model, settings)
    if isinstance(model, type):
        return _make(model, model.__qualname__, settings)
    if settings:
        raise UsageError(
            f"{', '.join(settings)}: {type(model).__qualname__} is an instance, whose settings are fixed",
            hint="Give the settings to its constructor, or give the class instead of an instance.",
        )
    return _check(model, type(model).__qualname__)


def facts_of(name: str) -> ModelFacts:
    """Return what a model says of itself, by its name; raises as `find_model`."""
    facts = getattr(_load(name), "facts", None)
    return facts if isinstance(facts, ModelFacts) else ModelFacts()


def takes_setting(model: str | type[Model] | Model, name: str) -> bool:
    """Return whether a model that is still to be made has a setting of this name; raises as `find_model`."""
    cls = _load(model) if isinstance(model, str) else model
    return isinstance(cls, type) and name in _settings(cls)


def _entries() -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(name: str) -> type[Model]:
    entries = _entries()
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=1)
        meant = f"Did you mean {close[0]}? " if close else ""
        raise ModelError(
            f"there is no execution model {name!r}",
            hint=f"{meant}Known are: {', '.join(sorted(entries))}.",
        )
    try:
        found = entries[name].load()
    except Exception as err:
        raise ModelError(
            f"the execution model {name!r} ({entries[name].value}) cannot be imported: "
            f"{type(err).__name__}: {err}",
            hint=f"Repair or remove the package {_package(entries[name])}.",
        ) from err
    if not isinstance(found, type):
        raise ModelError(f"the execution model {name!r} ({entries[name].value}) is not a class")
    return found


def _make(cls: type[Model], name: str, settings: Mapping[str, Any]) -> Model:
    try:
        inspect.signature(cls).bind(**settings)
    except TypeError as err:
        known = ", ".join(_settings(cls)) or "none"
        raise UsageError(f"execution model {name}: {err}", hint=f"Its settings are: {known}.") from err
    return _check(cls(**settings), name)


def _check(model: Model, name: str) -> Model:
    if isinstance(model, ExecutionModel | SimpleModel):
        return model
    raise ModelError(
        f"{name} is no execution model",
        hint="It needs `facts`, `open`, `capacity`, `start`, `wait` and `close`, or one `execute(quanta)`: "
        "see qgexec.models.base.",
    )


def _settings(cls: type) -> tuple[str, ...]:
    return tuple(inspect.signature(cls).parameters)


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "that brings it"


def _describe(entry: EntryPoint) -> ModelEntry:
    try:
        cls = _load(entry.name)
    except ModelError as err:
        return ModelEntry(entry.name, _package(entry), err.message, usable=False)
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    facts = getattr(cls, "facts", None)
    return ModelEntry(entry.name, _package(entry), summary, _settings(cls), facts)
