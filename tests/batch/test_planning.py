"""From the attempts that are left to a round on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgexec.batch.past import read_pasts
from qgexec.batch.planning import make_round
from qgexec.batch.rounds import Round, rounds
from qgexec.books.rundir import RunDir
from qgexec.clustering.rules import ClusterRules, NamedCluster
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import RunDirError
from tests.kit.batch.roundwork import PLAN, attempt, jobs_of


def test_names_are_unlike_any_other(tmp_path: Path) -> None:
    """Of the same run and of another; with what every batch system takes in a name."""
    made = [
        make_round(RunDir.create(tmp_path / name), "hand", jobs_of(PLAN), BatchSettings(), (), {})
        for name in "ab"
    ]
    names = {each.name for each in made}
    assert len(names) == 2
    assert all(
        name.isascii() and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for name in names
    )


def test_folders_are_there_before_the_round_is(tmp_path: Path) -> None:
    """Whoever sees round.json can write logs and journals."""
    made = make_round(RunDir.create(tmp_path / "run"), "hand", jobs_of(PLAN), BatchSettings(), (), {})
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "jobs.npz",
        "journals",
        "logs",
        "past.json",
        "round.json",
    ]
    assert read_pasts(made.pasts) == {}


@pytest.mark.parametrize("n_bytes", [0, 1, 100, 1000])
def test_a_full_disk(tmp_path: Path, room_for: object, n_bytes: int) -> None:
    """There is no round then, and the next attempt at one finds nothing in its way."""
    run_dir = RunDir.create(tmp_path / "run")
    with room_for(n_bytes), pytest.raises(RunDirError, match="write"):  # type: ignore[operator]
        make_round(run_dir, "hand", jobs_of(PLAN), BatchSettings(), (), {})
    assert rounds(run_dir) == []
    assert make_round(run_dir, "hand", jobs_of(PLAN), BatchSettings(), (), {}).number == 1
    assert Round.open(rounds(run_dir)[0]).number == 1


@pytest.mark.parametrize(("walltime_s", "asked_s"), [(600.0, 600.0), (None, 2 * 30.0 + 120.0)])
def test_time_of_a_named_cluster(walltime_s: float | None, asked_s: float) -> None:
    """It is that of the whole job; where it says none, that of its quanta is added up."""
    both = NamedCluster(pipetasks=("coadd", "stack"), walltime_s=walltime_s)
    rules = ClusterRules(clusters={"both": both})
    limited = [attempt(PLAN, index, timeout_s=30.0) for index in range(len(PLAN))]
    jobs = jobs_of(PLAN, rules, *limited, clustering=rules)
    assert {jobs.name(job): jobs.request(job).walltime_s for job in jobs} == {"isr": 150.0, "both": asked_s}
