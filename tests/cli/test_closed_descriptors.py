"""Tasks that close all descriptors that they find, as libraries do that make a daemon of their process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.butler.repos import N_QUANTA, MockRepository
from tests.kit.commands.qgexec import Command, Moods, call, report_of


@pytest.fixture
def moods(template: MockRepository) -> Iterator[Moods]:
    made = Moods(template.root.parents[1])
    yield made
    made.close()


@pytest.fixture
def given(repository: MockRepository, folder: Path) -> list[object]:
    options = ["-b", repository.root, "-g", repository.graph, "--register-dataset-types", "--retries", "0"]
    return ["run", *options, "--run-dir", folder / "run"]


@pytest.mark.parametrize("mood", ["close files", "close all"])
def test_in_process(
    mood: str, given: list[object], folder: Path, start: Callable[..., Command], moods: Moods
) -> None:
    """The run ends there, with its end on record; where stderr was left open it is said what it was."""
    moods.set({"calibrate 1,2": mood})
    result = start(*given, "-j", 1).finish()
    assert result.code == 2
    if mood == "close files":
        assert "(calibrate) has closed files of this program" in result.err
        assert sum(line.startswith("Error: ") for line in result.err.splitlines()) == 1
    assert "Traceback" not in result.err
    report = report_of(folder / "run")
    assert (report["state"], report["total"]["failed"], report["running"]) == ("broken", 0, [])
    moods.set({})
    assert call("resume", folder / "run", "-j", "1").code == 0
    assert report_of(folder / "run")["total"]["ingested"] == N_QUANTA


@pytest.mark.thorough
@pytest.mark.parametrize("mood", ["close files", "close all"])
def test_in_a_worker(
    mood: str, given: list[object], folder: Path, start: Callable[..., Command], moods: Moods
) -> None:
    """It is the end of that quantum alone."""
    moods.set({"calibrate 1,2": mood})
    result = start(*given, "-j", 2).finish()
    assert (result.code, "Traceback" in result.err) == (1, False)
    report = report_of(folder / "run")
    assert [failure["data_id"]["detector"] for failure in report["failures"]] == [2]
    assert report["total"]["succeeded"] == N_QUANTA - 3
