"""Tests of `qgexec.books.rundir`: real folders and files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qgexec.books.rundir import RunDir, default_run_dir
from qgexec.books.runsettings import RUN_VERSION, RunSettings
from qgexec.errors import RunDirError
from qgexec.quantum import RunContext
from qgexec.testing import make_plan

RoomFor = Callable[[int], AbstractContextManager[None]]

SETTINGS = RunSettings(
    RunContext("/runs/1", "/repo", "/runs/1/graph.qg", "u/me/run", "u/me", ("raw", "calib")),
    model="pool",
    options={"processes": 4, "fail_fast": False, "timeout_s": None, "memory": 2.5, "labels": ["isr"]},
    labels=("isr", "calibrate"),
    serial_labels=("calibrate",),
)


PLAN = make_plan("isr:1 isr:2 -> calibrate:1")


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    """A run directory with everything that later commands read."""
    run_dir = RunDir.create(tmp_path / "run")
    run_dir.save_plan(PLAN)
    run_dir.write_settings(SETTINGS)
    return run_dir


def listing(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def test_a_run_directory_is_made_with_the_folders_above_it(tmp_path: Path) -> None:
    """It is empty, and has the folders that others write to."""
    run_dir = RunDir.create(tmp_path / "a" / "b")
    assert run_dir.path == tmp_path / "a" / "b"
    assert all(folder.is_dir() for folder in (run_dir.journal, run_dir.segments, run_dir.logs))
    assert run_dir.attempt_log(7, 2) == run_dir.path / "logs" / "7.2.log"


def test_settings_come_back_as_they_were(finished: RunDir) -> None:
    """Everything about the run that later commands need."""
    assert RunDir.open(finished.path).read_settings() == SETTINGS
    assert SETTINGS.created_at > 0
    assert SETTINGS.user
    assert SETTINGS.host


def test_the_plan_comes_back_as_it_was(finished: RunDir) -> None:
    """The same quanta in the same order."""
    assert list(finished.load_plan()) == list(PLAN)


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change of the working folder changes nothing."""
    monkeypatch.chdir(tmp_path)
    assert RunDir.create(Path("x")).path == tmp_path / "x"


def test_a_run_is_never_overwritten(finished: RunDir) -> None:
    """Neither its folder is taken, nor its settings written again."""
    before = listing(finished.path)
    with pytest.raises(RunDirError, match="holds a run already"):
        RunDir.create(finished.path)
    with pytest.raises(RunDirError, match="holds a run already"):
        finished.write_settings(dataclasses.replace(SETTINGS, model="other"))
    assert listing(finished.path) == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """A home folder must not become a run directory by a slip."""
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunDirError, match="is not empty"):
        RunDir.create(tmp_path)
    assert listing(tmp_path) == {"thesis.tex": b"x"}


def test_a_file_in_the_place_is_refused(tmp_path: Path) -> None:
    """Also where it stands for a folder above."""
    (tmp_path / "x").write_text("x")
    for path in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(RunDirError, match="cannot make the run directory"):
            RunDir.create(path)
    assert listing(tmp_path) == {"x": b"x"}


def test_of_two_at_the_same_time_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second, which found the folder empty before the first wrote to it, takes nothing away."""
    path = tmp_path / "run"
    RunDir.create(path)
    (path / "journal" / "0001.jsonl").write_text("first")
    real = Path.iterdir

    def empty(folder: Path) -> Iterator[Path]:
        return iter(()) if folder == path else real(folder)

    monkeypatch.setattr(Path, "iterdir", empty)
    with pytest.raises(RunDirError):
        RunDir.create(path)
    monkeypatch.undo()
    assert (path / "journal" / "0001.jsonl").read_text() == "first"


def test_what_was_never_begun_can_be_taken_away(tmp_path: Path) -> None:
    """After a failed preparation everything is as before, the folders above included."""
    run_dir = RunDir.create(tmp_path / "a" / "b")
    run_dir.save_plan(PLAN)
    run_dir.graph_file.write_text("graph")
    run_dir.discard()
    assert listing(tmp_path) == {}


def test_only_what_was_made_here_is_taken_away(finished: RunDir, tmp_path: Path) -> None:
    """A finished run directory, and one that was only opened, are kept."""
    before = listing(tmp_path)
    finished.discard()
    RunDir.open(finished.path).discard()
    assert listing(tmp_path) == before


def test_a_missing_folder_is_said_to_be_missing(tmp_path: Path) -> None:
    """Nothing is made of it."""
    with pytest.raises(RunDirError, match="does not exist"):
        RunDir.open(tmp_path / "nowhere")
    assert listing(tmp_path) == {}


def test_a_folder_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    """The error says what is missing."""
    with pytest.raises(RunDirError, match=r"is not a run directory: .*run\.json is missing"):
        RunDir.open(tmp_path)


def test_an_unfinished_one_is_said_to_be_unfinished(tmp_path: Path) -> None:
    """Its start was killed while it prepared."""
    RunDir.create(tmp_path / "run")
    with pytest.raises(RunDirError, match="its run never began"):
        RunDir.open(tmp_path / "run")


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    """One clear error."""
    (tmp_path / "x").write_text("x")
    with pytest.raises(RunDirError, match="Not a directory"):
        RunDir.open(tmp_path / "x")


def test_a_run_of_a_newer_format_is_refused(finished: RunDir) -> None:
    """It says which qgexec can read it."""
    values = json.loads(finished.settings_file.read_text())
    values |= {"version": RUN_VERSION + 1, "qgexec_version": "9.9"}
    finished.settings_file.write_text(json.dumps(values))
    with pytest.raises(RunDirError, match=f"is of version {RUN_VERSION + 1}") as caught:
        RunDir.open(finished.path)
    assert "9.9" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", "{}", '{"format":"other"}', '{"format":"qgexec-run"}']
)
def test_damaged_settings_are_said_to_be_damaged(finished: RunDir, text: str) -> None:
    """One error for all of it."""
    finished.settings_file.write_text(text)
    with pytest.raises(RunDirError, match=r"run\.json is damaged"):
        RunDir.open(finished.path)


@pytest.mark.parametrize("key", ["context", "model", "labels", "created_at", "options"])
def test_settings_with_a_key_missing_are_damaged(finished: RunDir, key: str) -> None:
    """The key is named."""
    values = json.loads(finished.settings_file.read_text())
    del values[key]
    finished.settings_file.write_text(json.dumps(values))
    with pytest.raises(RunDirError, match=f"damaged: '{key}'"):
        RunDir.open(finished.path)


def test_a_plan_cut_off_anywhere_is_damaged(finished: RunDir) -> None:
    """Never half a plan."""
    whole = finished.plan_file.read_bytes()
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        finished.plan_file.write_bytes(whole[:end])
        with pytest.raises(RunDirError, match=r"plan\.npz is damaged"):
            finished.load_plan()


def test_a_plan_with_pickles_in_it_is_refused(finished: RunDir, tmp_path: Path) -> None:
    """A run directory may be another user's: nothing in it is executed."""

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    with finished.plan_file.open("wb") as file:
        np.savez(file, header=np.array([Bomb()], dtype=object))
    with pytest.raises(RunDirError, match="damaged"):
        finished.load_plan()
    assert not (tmp_path / "exploded").exists()


def test_a_missing_plan_is_an_error(finished: RunDir) -> None:
    """It names the file."""
    finished.plan_file.unlink()
    with pytest.raises(RunDirError, match=r"cannot read .*plan\.npz: No such file"):
        finished.load_plan()


@pytest.mark.parametrize("n_bytes", [0, 10, 300])
def test_a_full_disk_leaves_no_half_file(tmp_path: Path, room_for: RoomFor, n_bytes: int) -> None:
    """Neither settings nor plan, nor the files they were written to first."""
    run_dir = RunDir.create(tmp_path / "run")
    before = listing(tmp_path)
    with room_for(n_bytes):
        with pytest.raises(RunDirError, match=r"cannot write .*plan\.npz") as caught:
            run_dir.save_plan(PLAN)
        assert "Free space" in caught.value.hint
        with pytest.raises(RunDirError, match=r"cannot write .*run\.json"):
            run_dir.write_settings(SETTINGS)
    assert listing(tmp_path) == before


def test_options_that_are_no_json_are_refused(tmp_path: Path) -> None:
    """Before anything is written."""
    run_dir = RunDir.create(tmp_path / "run")
    bad: Any = {"x": object()}
    with pytest.raises(RunDirError, match="cannot be written as JSON"):
        run_dir.write_settings(dataclasses.replace(SETTINGS, options=bad))
    assert not run_dir.settings_file.exists()


_AS_NOBODY = """
import os, sys
from pathlib import Path
from qgexec.errors import RunDirError
from qgexec.books.rundir import RunDir
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    getattr(RunDir, sys.argv[1])(Path(sys.argv[2]))
except RunDirError as err:
    print(err)
"""


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that everybody can reach, and a user other than root cannot write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755 if os.getuid() == 0 else 0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(method: str, path: Path) -> str:
    found = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, method, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return found.stdout


def test_a_folder_that_may_not_be_written_is_refused(closed_folder: Path) -> None:
    """One clear error, and nothing is made."""
    said = as_nobody("create", closed_folder / "run")
    assert f"cannot make the run directory {closed_folder}/run: Permission denied" in said
    assert "--run-dir" in said
    assert listing(closed_folder) == {}


def test_a_run_that_may_not_be_read_is_refused(closed_folder: Path) -> None:
    """One clear error."""
    closed_folder.chmod(0o755)
    run_dir = RunDir.create(closed_folder / "run")
    run_dir.write_settings(SETTINGS)
    run_dir.settings_file.chmod(0)
    assert "run.json: Permission denied" in as_nobody("open", run_dir.path)


def test_the_users_umask_holds(tmp_path: Path) -> None:
    """A group can read the run if the user's files are readable for the group."""
    old = os.umask(0o027)
    try:
        run_dir = RunDir.create(tmp_path / "run")
        run_dir.write_settings(SETTINGS)
        run_dir.save_plan(PLAN)
    finally:
        os.umask(old)
    modes = [path.stat().st_mode & 0o777 for path in (run_dir.path, run_dir.settings_file, run_dir.plan_file)]
    assert modes == [0o750, 0o640, 0o640]


def test_the_default_is_named_after_the_output_run(tmp_path: Path) -> None:
    """The parts of the name are folders; a number is added where it is taken."""
    first = default_run_dir("u/me/run", tmp_path)
    assert first == tmp_path / "qgexec-runs" / "u" / "me" / "run"
    for expected in (first, first.with_name("run_2"), first.with_name("run_3")):
        path = default_run_dir("u/me/run", tmp_path)
        assert path == expected
        RunDir.create(path)


def test_a_run_named_like_a_folder_above_another_gets_a_number(tmp_path: Path) -> None:
    """One run directory does not lie around another's."""
    RunDir.create(default_run_dir("u/me/run", tmp_path))
    assert default_run_dir("u/me", tmp_path).name == "me_2"


def test_the_default_base_is_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one at the time of the call."""
    monkeypatch.chdir(tmp_path)
    assert default_run_dir("x") == tmp_path / "qgexec-runs" / "x"


@pytest.mark.parametrize("name", ["", ".", "/", "/etc", "..", "../x", "u/../../x", "x/..", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """Nothing outside of the folder for runs."""
    with pytest.raises(RunDirError, match="cannot name a folder"):
        default_run_dir(name, tmp_path)


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path: Path) -> None:
    """One clear error, and nothing is left of the folders above, whether they were there before or not."""
    for _ in range(2):
        before = listing(tmp_path)
        with pytest.raises(RunDirError, match="File name too long"):
            RunDir.create(default_run_dir("u/" + "x" * 300, tmp_path))
        assert listing(tmp_path) == before
        (tmp_path / "qgexec-runs" / "u").mkdir(parents=True, exist_ok=True)


def test_settings_are_replaced_as_a_whole(finished: RunDir) -> None:
    """Who goes on with a run replaces its settings; what a dead process left half written is no harm."""
    settings = dataclasses.replace(finished.read_settings(), model="other")
    aside = finished.settings_file.with_name(f".run.json.{os.getpid()}.tmp")
    aside.write_text("half")
    finished.rewrite_settings(settings)
    assert finished.read_settings() == settings
    assert not aside.exists()
