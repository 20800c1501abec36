"""`qgexec.books.runlist`: a user's runs, and that nothing about their list can harm one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from qgexec.books.runlist import RunEntry, RunList, state_folder

ENTRY = RunEntry("/a/run", "u/me/run", "repo", "sqlite:////a/repo/gen3.sqlite3", "/a/repo", "pool", 1000.0)


@pytest.fixture
def runs(tmp_path: Path) -> RunList:
    return RunList(tmp_path / "state")


def _entry(tmp_path: Path, name: str, **values: object) -> RunEntry:
    """Return an entry whose run directory is there."""
    (tmp_path / name).mkdir()
    return replace(ENTRY, run_dir=str(tmp_path / name), **values)  # type: ignore[arg-type]


def _is_over(_entry: RunEntry) -> bool:
    return False


def test_what_was_listed_comes_back(runs: RunList) -> None:
    """All that is known of a run, and the file system's own time at which it was written."""
    listed = runs.add(ENTRY)
    assert listed == ENTRY
    assert (ENTRY.written_ns, listed.written_ns > 0) == (0, True)
    (found,) = runs.entries()
    assert (found, found.written_ns) == (ENTRY, listed.written_ns)
    assert all((found.host, found.boot_id, found.pid_namespace, found.pid == os.getpid()))


def test_a_run_is_listed_once(runs: RunList) -> None:
    """Also where another driver goes on with it; the last that began comes first."""
    other = replace(ENTRY, run_dir="/b/run", driver_began_at=2.0)
    again = replace(ENTRY, host="elsewhere", driver_began_at=3.0)
    for entry in (ENTRY, other, again):
        runs.add(entry)
    assert runs.entries() == [again, other]
    runs.remove(other)
    runs.remove(other)
    assert runs.entries() == [again]


def test_a_run_directory_holds_one_run(runs: RunList) -> None:
    """What was there before, and was removed, is listed no more."""
    runs.add(ENTRY)
    new = replace(ENTRY, output_run="u/me/other", began_at=2000.0)
    runs.add(new)
    assert runs.entries() == [new]


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"QGEXEC_STATE": "/s", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/s"),
        ({"QGEXEC_STATE": "", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/qgexec"),
        ({"XDG_STATE_HOME": "x", "HOME": "/h"}, "/h/.local/state/qgexec"),
        ({"HOME": "/h"}, "/h/.local/state/qgexec"),
        ({"HOME": "h"}, None),
    ],
)
def test_where_it_is(environ: dict[str, str], folder: str | None) -> None:
    """The variable of our own comes first, then that of the XDG specification, then the home."""
    assert state_folder(environ) == (None if folder is None else Path(folder))


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user in no password file, without HOME, has no list, and no trouble."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    assert state_folder({}) is None
    runs = RunList(None)
    assert runs.add(ENTRY) == ENTRY
    runs.remove(ENTRY)
    runs.prune(_is_over)
    assert runs.entries() == []


@pytest.mark.parametrize("place", ["file/below", "/dev/null", "/proc/1/nobody", "x" * 300, "a\0b"])
def test_a_place_that_cannot_be_used(place: str, tmp_path: Path) -> None:
    """Nothing is listed, and nothing is raised."""
    (tmp_path / "file").write_text("")
    runs = RunList(tmp_path / place)
    assert runs.add(ENTRY).written_ns == 0
    runs.remove(ENTRY)
    runs.prune(_is_over)
    assert runs.entries() == []


def test_a_full_disk(runs: RunList, room_for: Callable[[int], AbstractContextManager[None]]) -> None:
    """What was listed stays, and no half of an entry is left."""
    runs.add(ENTRY)
    with room_for(10):
        assert runs.add(replace(ENTRY, model="other")).written_ns == 0
    assert runs.entries() == [ENTRY]


def test_other_files(runs: RunList, tmp_path: Path) -> None:
    """What is no entry is passed over, and stays: it may be another version's, or somebody's."""
    runs.add(ENTRY)
    folder = tmp_path / "state/runs"
    whole = ENTRY.to_json()
    texts = ["", "{", "[]", "7", "null", "[" * 100_000, "x" * 70_000, "\udcff"]
    texts += [json.dumps(whole | change) for change in ({"version": 9}, {"pid": "7"}, {"run_dir": None})]
    texts += [json.dumps({"format": whole["format"], "version": 1})]
    for number, text in enumerate(texts):
        (folder / f"{number}.json").write_bytes(os.fsencode(text))
    os.mkfifo(folder / "fifo.json")
    (folder / "folder.json").mkdir()
    (folder / "link.json").symlink_to("/dev/zero")
    before = sorted(folder.iterdir())
    runs.prune(_is_over)
    assert [entry.output_run for entry in runs.entries()] == []  # its run directory is not there
    assert len(before) - len(sorted(folder.iterdir())) == 1


def test_what_is_gone_is_taken_off(runs: RunList, tmp_path: Path) -> None:
    """A run directory that was removed; one that only another host may see stays for a month."""
    here = _entry(tmp_path, "here")
    gone = replace(ENTRY, run_dir=str(tmp_path / "gone"))
    elsewhere = replace(ENTRY, run_dir="/scratch/run", host="another-host")
    container = replace(ENTRY, run_dir="/inside/run", pid_namespace="pid:[1]")
    long_ago = replace(elsewhere, run_dir="/scratch/old", driver_began_at=0.0)
    for entry in (here, gone, elsewhere, container, long_ago):
        runs.add(entry)
    runs.prune(_is_over)
    assert {entry.run_dir for entry in runs.entries()} == {here.run_dir, "/scratch/run", "/inside/run"}


def test_of_too_many_the_oldest_that_are_over_are_taken_off(runs: RunList, tmp_path: Path) -> None:
    """Those that go on stay."""
    entries = [_entry(tmp_path, f"{n}", driver_began_at=float(n)) for n in range(204)]
    for entry in entries:
        runs.add(entry)
    runs.prune(lambda entry: entry == entries[1])
    assert runs.entries() == [*entries[:3:-1], entries[1]]
