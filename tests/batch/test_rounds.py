"""The folder of a round: there whole or not at all, and damage named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qgexec.batch.past import read_pasts
from qgexec.batch.planning import make_round
from qgexec.batch.rounds import ROUND_VERSION, Round, last_round, round_folder, rounds
from qgexec.books.rundir import RunDir
from qgexec.clustering.rules import ClusterRules
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import RunDirError
from qgexec.scheduling.troubles import Past
from tests.kit.batch.roundwork import PLAN, jobs_of


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run")


def make(run_dir: RunDir) -> Round:
    settings = BatchSettings(queue="long", setup=("module load x",), clustering=ClusterRules(chunk_size=2))
    command = ("python", "-m", "qgexec")
    return make_round(run_dir, "hand", jobs_of(PLAN), settings, command, {2: Past(1, {}, 1)})


def test_a_round_comes_back_as_it_was(run_dir: RunDir) -> None:
    """With its jobs, settings and command, and the next number for the next one."""
    first = make(run_dir)
    again = Round.open(first.folder)
    assert (again.number, again.name, again.model) == (1, first.name, "hand")
    assert (again.settings, again.command) == (first.settings, first.command)
    assert len(again.jobs) == len(first.jobs)
    assert read_pasts(again.pasts) == {2: Past(1, {}, 1)}
    second = make(run_dir)
    assert (second.number, second.name == first.name) == (2, False)
    assert rounds(run_dir) == [first.folder, second.folder] == [round_folder(run_dir, n) for n in (1, 2)]
    assert (found := last_round(run_dir)) is not None
    assert found.name == second.name


def test_no_round_yet(run_dir: RunDir) -> None:
    """A run that was never submitted has none."""
    assert (rounds(run_dir), last_round(run_dir)) == ([], None)


def test_a_round_that_was_not_finished_is_none(run_dir: RunDir) -> None:
    """Whoever wrote it died before round.json was there: the next takes its place."""
    folder = make(run_dir).folder
    (folder / "round.json").unlink()
    assert last_round(run_dir) is None
    assert make(run_dir).folder == folder


def test_ticket_and_end(run_dir: RunDir) -> None:
    """Both are facts on disk, seen by whoever opens the round."""
    made = make(run_dir)
    assert (made.ticket, made.is_closed) == (None, False)
    made.write_ticket({"id": 17, "names": ["a", "b"]})
    made.close()
    made.close()
    again = Round.open(made.folder)
    assert (again.ticket, again.is_closed) == ({"id": 17, "names": ["a", "b"]}, True)


def test_commands(run_dir: RunDir) -> None:
    """A job and the closing job are the same program, told where the run is now."""
    made = make(run_dir)
    there = str(run_dir.path)
    begin = ("python", "-m", "qgexec")
    assert made.job_command("$J") == (*begin, "worker", there, "--round", "1", "--job", "$J")
    assert made.closing_command() == (*begin, "collect", there, "--round", "1")
    moved = run_dir.path.rename(run_dir.path.with_name("moved"))
    assert Round.open(moved / "batch" / "0001").run_dir == moved


def test_journals_lie_in_folders_of_a_thousand(run_dir: RunDir) -> None:
    """No folder gets a hundred thousand entries."""
    made = make(run_dir)
    names = [str(made.journal(job).relative_to(made.folder / "journals")) for job in (0, 999, 1000, 123_456)]
    assert names == ["000/000000", "000/000999", "001/001000", "123/123456"]


@pytest.mark.parametrize("name", ["round.json", "jobs.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"[]", b"{}"])
def test_damaged(run_dir: RunDir, name: str, content: bytes) -> None:
    """It is said which file is damaged, and what to do."""
    folder = make(run_dir).folder
    (folder / name).write_bytes(content)
    with pytest.raises(RunDirError, match=f"{name} is damaged") as caught:
        Round.open(folder)
    assert caught.value.hint == "Bring it back from a copy."


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_torn_jobs(run_dir: RunDir, part: float) -> None:
    """A file that was cut off on its way is damaged, wherever it was cut."""
    folder = make(run_dir).folder
    content = (folder / "jobs.npz").read_bytes()
    (folder / "jobs.npz").write_bytes(content[: int(part * len(content))])
    with pytest.raises(RunDirError, match=r"jobs\.npz is damaged"):
        Round.open(folder)


@pytest.mark.parametrize("content", ["", "[1]", "null", '"a"'])
def test_a_ticket_that_is_none(run_dir: RunDir, content: str) -> None:
    """It is named; nothing else is taken for one."""
    made = make(run_dir)
    (made.folder / "ticket.json").write_text(content)
    with pytest.raises(RunDirError, match=r"ticket\.json"):
        assert made.ticket


def test_versions(run_dir: RunDir) -> None:
    """A newer round is not guessed at; another format is no round."""
    path = make(run_dir).folder / "round.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"version": ROUND_VERSION + 1}))
    with pytest.raises(RunDirError, match=f"of version {ROUND_VERSION + 1}, but this qgexec reads up to"):
        Round.open(path.parent)
    path.write_text(json.dumps(values | {"format": "something", "version": 99}))
    with pytest.raises(RunDirError, match="damaged: its format is 'something'"):
        Round.open(path.parent)
    path.unlink()
    with pytest.raises(RunDirError, match="cannot read"):
        Round.open(path.parent)


def test_a_missing_part(run_dir: RunDir) -> None:
    """It is named itself."""
    folder = make(run_dir).folder
    (folder / "jobs.npz").unlink()
    with pytest.raises(RunDirError, match=r"jobs\.npz"):
        Round.open(folder)


def test_version_1(run_dir: RunDir) -> None:
    """The first version is read for good; settings that it does not know have their defaults."""
    folder = make(run_dir).folder
    text = (
        '{"format": "qgexec-round", "version": 1, "name": "qgexec-0123456789ab-1", "model": "slurm",'
        ' "command": ["/usr/bin/python3", "-m", "qgexec"], "settings": {"queue": "long"}}'
    )
    (folder / "round.json").write_text(text)
    found = Round.open(folder)
    assert (found.name, found.model) == ("qgexec-0123456789ab-1", "slurm")
    assert (found.settings.queue, found.settings.account) == ("long", None)


def test_no_room(run_dir: RunDir) -> None:
    """A round that cannot be written is an error that names the place; there is no half of one."""
    (run_dir.path / "batch").write_text("in the way")
    with pytest.raises(RunDirError, match="make"):
        make(run_dir)
    assert rounds(run_dir) == []
