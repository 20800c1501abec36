"""Tests of the published schema: it describes every key, and real reports are what it says."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError

from qgexec.events import AttemptStarted, AttemptTimedOut
from qgexec.reports.report import REPORT_VERSION, RunState
from qgexec.reports.schema import report_schema
from qgexec.reports.several import read_several
from qgexec.scheduling.policy import Cause
from qgexec.scheduling.states import State
from tests.kit.commands.qgexec import call
from tests.kit.runs.handbooks import BEGAN, HandBooks, started, succeeded, write_mixed
from tests.kit.runs.reportschema import assert_valid, schema

ROOT = Path(__file__).parents[2]


def _properties(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all properties that a schema names, with where they are."""
    if isinstance(value, list):
        for item in value:
            yield from _properties(item, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "properties":
                for name, of_name in item.items():
                    yield f"{path}/{name}", of_name
                    yield from _properties(of_name, f"{path}/{name}")
            else:
                yield from _properties(item, f"{path}/{key}")


def test_every_key_is_described() -> None:
    """In a sentence; and so is every object."""
    found = dict(_properties(schema()))
    assert len(found) > 100
    assert [path for path, of_name in found.items() if not of_name.get("description", "").endswith(".")] == []
    assert [name for name, each in schema()["$defs"].items() if not each["description"].endswith(".")] == []


def test_every_key_of_an_object_is_required() -> None:
    """A reader may rely on all of them; what cannot be told is null."""
    objects = [each for each in schema()["$defs"].values() if "properties" in each]
    assert objects
    assert all(each["required"] == list(each["properties"]) for each in objects)


def test_its_words_are_ours() -> None:
    """Version and enumerations are those of the code."""
    kinds = {
        name: schema()["$defs"][f"{name}_report"]["properties"] for name in ("run", "runs", "repository")
    }
    assert {name: (each["kind"]["const"], each["version"]["const"]) for name, each in kinds.items()} == {
        name: (name, REPORT_VERSION) for name in kinds
    }
    assert set(kinds["run"]["state"]["enum"]) == {state.value for state in RunState}
    defs = schema()["$defs"]
    assert set(defs["troubled"]["properties"]["state"]["enum"]) == {state.value for state in State}
    assert set(defs["cause"]["properties"]["ended"]["enum"]) == {cause.value for cause in Cause}


@pytest.fixture
def books(tmp_path: Path) -> HandBooks:
    """A run directory whose journal is empty."""
    return HandBooks(tmp_path / "run")


def test_reports_of_one_run(books: HandBooks) -> None:
    """Before it begins, while it runs, and when everything has happened."""
    assert_valid(books.read().to_json())
    write_mixed(books)
    report = books.read().to_json()
    assert_valid(report)
    assert report["failures"]
    assert report["retried"]


def test_a_report_while_it_runs(books: HandBooks) -> None:
    """With what runs, and a quantum that is tried again."""
    late = AttemptTimedOut(BEGAN.at + 2, 0, 1, 1.0, retried=True)
    books.write(BEGAN, *started(0, 1), late, AttemptStarted(BEGAN.at + 3, 0, 2), succeeded(1, caveats=5))
    report = books.read(is_alive=True).to_json()
    assert len(report["running"]) == 1
    assert_valid(report)


def test_a_report_of_several_runs(books: HandBooks, tmp_path: Path) -> None:
    """With failures and causes of each."""
    write_mixed(books)
    other = HandBooks(tmp_path / "other")
    other.write(BEGAN, *started(1), succeeded(1))
    report = read_several([books.run_dir.path, other.run_dir.path]).to_json()
    assert len(report["failures"]) == 3
    assert_valid(report)


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"kind": "other"}, {"state": "asleep"}, {"wall_s": None}, {"surprise": 1}]
)
def test_what_is_no_report(books: HandBooks, change: dict[str, Any]) -> None:
    """The schema says so, and our tests are told of keys that it does not know."""
    report = books.read().to_json() | change
    with pytest.raises(ValidationError):
        assert_valid(report)


def test_it_is_printed_and_shipped() -> None:
    """By the command, with the package, and beside the documentation: one and the same."""
    result = call("report", "--json-schema")
    assert (result.code, json.loads(result.out)) == (0, schema())
    assert (ROOT / "docs" / "report.schema.json").read_text() == report_schema()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["qgexec"]
    assert any(fnmatch("reports/report.schema.json", pattern) for pattern in patterns)
