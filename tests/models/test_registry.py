"""`qgexec.models.registry`: models by name, class or instance."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import EntryPoint

import pytest

from qgexec.errors import ModelError, UsageError
from qgexec.models import registry
from qgexec.models.inprocess import InProcess
from qgexec.models.pool import Pool, PoolSettings
from qgexec.models.registry import find_model, list_models
from qgexec.quantum import Quanta


class Simple:
    """The simplest kind of client."""

    def execute(self, quanta: Quanta) -> None:
        """Do nothing."""


class Nothing:
    """No model."""


def broken(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint(name="broken", value=value, group=registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])


def test_by_name() -> None:
    """A name gives a new instance with these settings."""
    model = find_model("pool", processes=3)
    assert isinstance(model, Pool)
    assert model.settings.processes == 3
    assert isinstance(find_model("inprocess"), InProcess)


def test_by_class() -> None:
    """A class is called with the settings."""
    model = find_model(Pool, processes=2, grace_s=1.0)
    assert isinstance(model, Pool)
    assert model.settings.grace_s == 1.0
    assert isinstance(find_model(Simple), Simple)


def test_by_instance() -> None:
    """An instance is returned as it is, and takes no settings."""
    for instance in (Pool(2), Simple()):
        assert find_model(instance) is instance
    with pytest.raises(UsageError, match="processes: Pool is an instance"):
        find_model(Pool(2), processes=3)


def test_unknown_name() -> None:
    """A name that is not known is answered with those that are."""
    with pytest.raises(ModelError, match="no execution model 'pol'") as caught:
        find_model("pol")
    assert "Did you mean pool?" in caught.value.hint
    assert "inprocess" in caught.value.hint


def test_unknown_setting() -> None:
    """A setting that a model does not have is answered with those that it has."""
    with pytest.raises(UsageError, match="processes") as caught:
        find_model("inprocess", processes=3)
    assert "Its settings are: grace_s, watch_memory." in caught.value.hint
    with pytest.raises(UsageError) as caught:
        find_model("pool", procesess=3)
    assert "processes, cores, grace_s" in caught.value.hint


@pytest.mark.parametrize("thing", [Nothing, Nothing()])
def test_no_model(thing: object) -> None:
    """What cannot execute anything is refused, with what a model needs."""
    with pytest.raises(ModelError, match="Nothing is no execution model") as caught:
        find_model(thing)  # type: ignore[arg-type]
    assert "execute(quanta)" in caught.value.hint


def test_model_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose package is broken is named, with the reason, and still listed."""
    broken(monkeypatch, "no_such_package.models:Model")
    with pytest.raises(ModelError, match=r"'broken' .*ModuleNotFoundError"):
        find_model("broken")
    (entry,) = list_models()
    assert not entry.usable
    assert "ModuleNotFoundError" in entry.summary


def test_model_that_is_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point that names something else is refused."""
    broken(monkeypatch, "qgexec.models.registry:GROUP")
    with pytest.raises(ModelError, match="is not a class"):
        find_model("broken")


def test_list() -> None:
    """Our own models are listed with what can be set and what the loop must know."""
    entries = {entry.name: entry for entry in list_models()}
    assert entries["inprocess"].settings == ("grace_s", "watch_memory")
    assert entries["pool"].settings == tuple(field.name for field in fields(PoolSettings))
    assert entries["pool"].facts == Pool.facts
    assert entries["pool"].package == "qgexec"
    assert entries["pool"].summary.startswith("Execute quanta in warm worker processes")
