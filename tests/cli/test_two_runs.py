"""Two drivers on one output RUN: the second is refused, unless it does something else or is told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.butler.repos import N_QUANTA, OUTPUT_RUN, MockRepository
from tests.kit.commands.qgexec import Command, Moods, call, one_message, report_of

Start = Callable[..., Command]


@pytest.fixture
def given(repository: MockRepository) -> list[object]:
    return ["-b", repository.root, "-g", repository.graph, "--register-dataset-types"]


@pytest.fixture
def first(given: list[object], moods: Moods, start: Start) -> Iterator[Command]:
    """A run of the graph whose first quantum waits."""
    moods.set({"isr 1,1": "wait"})
    command = start("run", *given, "--run-dir", "first")
    moods.wait_for(1)
    yield command
    moods.let_go()


def test_the_second_is_refused(
    first: Command, given: list[object], repository: MockRepository, moods: Moods, folder: Path
) -> None:
    """Whatever the repository is called; plan says so beforehand, and nothing is changed."""
    (folder / "link").symlink_to(repository.root)
    before = repository.dump()
    again = ["-b", "link", *given[2:], "--extend-run", "--run-dir", "second"]
    said = (f"the run in {folder}/first", f"the output RUN '{OUTPUT_RUN}'", f"qgexec status {folder}/first")
    one_message(call("run", *again), *said, "give --force")
    planned = call("plan", *again)
    assert planned.code == 2
    assert f"the run in {folder}/first" in " ".join(planned.out.split())
    assert repository.dump() == before
    assert not (folder / "second").exists()
    moods.let_go()
    assert first.finish().code == 0
    assert call("run", *again).code == 0
    assert report_of(folder / "second")["total"]["skipped"] == N_QUANTA


@pytest.mark.thorough
def test_other_quanta_are_welcome(
    given: list[object], moods: Moods, start: Start, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs of parts that have no quantum in common may write one RUN together; --force allows any."""
    moods.set({"isr 1,1": "wait"})
    first = start("run", *given, "--run-dir", "first", "--only", "isr{visit: 1}")
    moods.wait_for(1)
    extends = [*given, "--extend-run"]
    one_message(call("run", *extends, "--only", "isr{detector: 2}"), f"the run in {folder}/first")
    assert call("run", *extends, "--only", "isr{visit: 2}").code == 0
    assert f"The run in {folder}/first" in caplog.text
    assert "other quanta of the output RUN" in caplog.text
    assert call("run", *extends, "--only", "isr{detector: 3}", "--force").code == 0
    moods.let_go()
    assert first.finish().code == 0


def test_resume_of_an_earlier_run(given: list[object], moods: Moods, start: Start, folder: Path) -> None:
    """To go on with a run is refused, too, while another one writes its RUN; it is as it was, then."""
    moods.set({"isr 1,3": "raise"})
    assert call("run", *given, "--run-dir", "first").code == 1
    moods.set({"isr 1,3": "wait"})
    second = start("run", *given, "--run-dir", "second", "--extend-run", "--clobber-outputs")
    moods.wait_for(1)
    one_message(call("resume", "first"), f"the run in {folder}/second", "--force")
    assert [path.name for path in (folder / "first/journal").iterdir()] == ["0001.jsonl"]
    moods.let_go()
    assert second.finish().code == 0
    (folder / "link").symlink_to("first")
    assert call("resume", "link").code == 0  # it is not in its own way


@pytest.mark.parametrize("state", ["/dev/null/x", "missing/folder"])
def test_no_run_depends_on_the_list(
    given: list[object], state: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state folder that cannot be made is no reason to fail, or to say a word; one that can is made."""
    monkeypatch.setenv("QGEXEC_STATE", state)
    result = call("run", *given, "--run-dir", "books", "--only", "isr{visit: 1, detector: 1}")
    assert (result.code, "list" in result.err) == (0, False), result.err
    entries = [json.loads(path.read_text()) for path in Path(state).glob("runs/*.json")]
    assert [entry["output_run"] for entry in entries] == [OUTPUT_RUN] * (state == "missing/folder")
