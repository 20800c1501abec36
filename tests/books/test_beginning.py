"""`qgexec.books.beginning`: taking a folder in hand for a run, also one that a killed start has left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qgexec.books.beginning import Beginning, begin, find_place
from qgexec.books.holder import this_process
from qgexec.books.journal import Journal, last_epoch, read_writer
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.errors import RunDirError, RunHeldError
from qgexec.quantum import RunContext
from qgexec.testing import make_plan
from tests.kit.runs.handbooks import BEGAN

PLAN = make_plan("a -> b")


def settings_of(path: Path) -> RunSettings:
    """Return what a start writes before it touches the registry."""
    context = RunContext(str(path), "/repo", "/graph.qg", "u/me/run", None, ())
    return RunSettings(context, "pool", preparation={"inputs": ["raw"]})


def killed(action: Callable[[], object]) -> None:
    """Do something in a process that is killed then."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_folder_is_in_hand_from_the_start(tmp_path: Path) -> None:
    """The journal's first file names this process; another start is refused, and changes nothing."""
    begun = begin(tmp_path / "run")
    assert (begun.settings, begun.journal.epoch) == (None, 1)
    assert read_writer(begun.run_dir.journal, 1) == (this_process(), True)
    with pytest.raises(RunHeldError, match=f"in the hands of process {os.getpid()}"):
        begin(tmp_path / "run")
    assert last_epoch(begun.run_dir.journal) == 1


def test_giving_up_leaves_nothing(tmp_path: Path) -> None:
    """Folder, plan and claim are taken away again, with the folders above that were made for it."""
    begun = begin(tmp_path / "a" / "run")
    begun.run_dir.save_plan(PLAN)
    begun.give_up()
    assert names(tmp_path) == set()


def test_giving_up_keeps_what_says_that_the_registry_was_touched(tmp_path: Path) -> None:
    """The folder stays, held by nobody."""
    begun = begin(tmp_path / "run")
    begun.run_dir.write_settings(settings_of(tmp_path / "run"))
    begun.give_up()
    again = begin(tmp_path / "run")
    assert again.settings == begun.run_dir.read_settings()


def _left_behind(path: Path) -> None:
    begun = begin(path)
    begun.run_dir.save_plan(PLAN)
    for name in (".plan.npz.17.tmp", ".17-graph.qg", "graph.qg", "butler.yaml"):
        (path / name).touch()


def test_what_a_killed_start_left_is_used_again(tmp_path: Path) -> None:
    """All that it had written goes; the claim is the next one."""
    killed(lambda: _left_behind(tmp_path / "run"))
    begun = begin(tmp_path / "run")
    assert (begun.settings, begun.journal.epoch) == (None, 2)
    assert names(tmp_path / "run") == {"journal", "segments", "logs"}
    begun.give_up()
    assert names(tmp_path) == set()


def test_a_killed_start_that_had_come_further(tmp_path: Path) -> None:
    """What it had said that it would do to the registry is returned, and its files stay."""

    def prepare() -> None:
        _left_behind(tmp_path / "run")
        RunDir(tmp_path / "run").write_settings(settings_of(tmp_path / "run"))

    killed(prepare)
    begun = begin(tmp_path / "run")
    assert begun.settings is not None
    assert begun.settings.preparation == {"inputs": ["raw"]}
    whole = {"journal", "segments", "logs", "run.json", "plan.npz", "graph.qg", "butler.yaml"}
    assert names(tmp_path / "run") == whole


def test_of_two_that_take_it_up_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim decides; the other takes nothing away."""
    killed(lambda: _left_behind(tmp_path / "run"))
    winners: list[Beginning] = []
    create = Journal.create

    def overtaken(*where: Path, **options: Any) -> Journal:
        monkeypatch.undo()
        winners.append(begin(tmp_path / "run"))
        return create(*where, **options)

    monkeypatch.setattr(Journal, "create", overtaken)
    with pytest.raises(RunHeldError, match="a moment ago"):
        begin(tmp_path / "run")
    (winner,) = winners
    assert winner.journal.path.exists()
    winner.journal.append(BEGAN)


def test_a_claim_that_does_not_say_whose_it_is(tmp_path: Path) -> None:
    """It is left alone as long as its writer may be about to say so; then the folder is as good as empty."""
    run_dir = RunDir.create(tmp_path / "run")
    claim = run_dir.journal / "0001.jsonl"
    claim.write_bytes(b'{"format"')
    with pytest.raises(RunHeldError, match="has not said who"):
        begin(tmp_path / "run")
    os.utime(claim, (0, 0))
    begun = begin(tmp_path / "run")
    assert begun.settings is None
    assert begun.journal.path.name == "0002.jsonl"


@pytest.mark.parametrize("other", ["mine.txt", "segments/0001-worker-0001.jsonl", "logs/worker.log"])
def test_other_files_are_not_touched(tmp_path: Path, other: str) -> None:
    """A folder with anything else in it is somebody's."""
    killed(lambda: _left_behind(tmp_path / "run"))
    (tmp_path / "run" / other).touch()
    with pytest.raises(RunDirError, match="is not empty"):
        begin(tmp_path / "run")
    assert (tmp_path / "run" / "plan.npz").exists()


def test_a_run_that_lost_its_settings_is_no_start(tmp_path: Path) -> None:
    """Where there are events, a run has begun."""
    run_dir = RunDir.create(tmp_path / "run")
    with Journal.create(run_dir.journal) as journal:
        journal.append(BEGAN)
    with pytest.raises(RunDirError, match="is not empty"):
        begin(tmp_path / "run")


def test_a_run_is_no_start(tmp_path: Path) -> None:
    """A run whose registry is ready is not begun again."""
    run_dir = RunDir.create(tmp_path / "run")
    run_dir.write_settings(RunSettings(RunContext("", "", "", ""), "pool"))
    with pytest.raises(RunDirError, match="holds a run already"):
        begin(tmp_path / "run")


def test_default_place(tmp_path: Path) -> None:
    """The place of a killed start is taken again, that of one that lives is not."""
    first = find_place("u/run", tmp_path)
    killed(lambda: _left_behind(first))
    assert find_place("u/run", tmp_path) == first
    begin(first)
    assert find_place("u/run", tmp_path) == first.with_name("run_2")
