"""`qgexec.otherruns`: which runs go on, and which of two that write the same RUN is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qgexec.batch.planning import make_round
from qgexec.books.holder import this_process
from qgexec.books.journal import Journal, Writer
from qgexec.books.rundir import RunDir
from qgexec.books.runlist import RunEntry, RunList
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import RunHeldError
from qgexec.events import EndReason, RunEnded
from qgexec.otherruns import goes_on, list_run, other_runs
from qgexec.testing import make_plan
from tests.kit.batch.roundwork import PLAN as ROUND_PLAN
from tests.kit.batch.roundwork import jobs_of

PLAN = make_plan("a -> b")
OTHERS = make_plan("c -> d")
"""No quantum of it is in the other."""


@pytest.fixture
def runs(tmp_path: Path) -> RunList:
    return RunList(tmp_path / "state")


def _begin(folder: Path, writer: Writer | None = None) -> tuple[RunEntry, Journal]:
    """Begin a run, as this process if no other is named; return what the list says of it, and its journal."""
    run_dir = RunDir.create(folder)
    run_dir.save_plan(PLAN)
    entry = RunEntry(
        str(folder), "u/me/run", registry="sqlite:////repo/gen3.sqlite3", root="/repo", began_at=1.0, pid=1
    )
    return entry, Journal.create(run_dir.journal, writer=writer or this_process())


def _dead() -> Writer:
    """Return a process of this host that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(this_process(), pid=process.pid)


class TestGoesOn:
    """Whether a run goes on."""

    def test_while_its_driver_lives(self, tmp_path: Path) -> None:
        """From the first moment, when nothing is recorded yet, to the last."""
        entry, journal = _begin(tmp_path / "run")
        assert goes_on(entry)
        journal.append(RunEnded(1.0, EndReason.COMPLETED))
        assert goes_on(entry) is False
        journal.close()

    def test_not_when_its_driver_was_killed(self, tmp_path: Path) -> None:
        """Its books are open, but nobody is there."""
        entry, journal = _begin(tmp_path / "run", _dead())
        journal.close()
        assert goes_on(entry) is False

    def test_while_a_batch_system_has_jobs_of_it(self, tmp_path: Path) -> None:
        """Its driver went away; until its round is closed, jobs may write."""
        entry, journal = _begin(tmp_path / "run")
        journal.append(RunEnded(1.0, EndReason.COMPLETED))
        journal.close()
        made = make_round(RunDir(tmp_path / "run"), "hand", jobs_of(ROUND_PLAN), BatchSettings(), ("q",), {})
        assert goes_on(entry)
        made.close()
        assert goes_on(entry) is False

    def test_of_another_host(self, tmp_path: Path) -> None:
        """Its heartbeat proves that it lives; silence of many minutes counts as its end here."""
        entry, journal = _begin(tmp_path / "run", Writer("another-host", 1, 1.0))
        assert goes_on(entry)
        journal.close()
        os.utime(journal.path, (1.0, 1.0))
        assert goes_on(entry) is False

    def test_what_cannot_be_seen(self, tmp_path: Path) -> None:
        """A run directory that is not here is gone, unless it is another host's."""
        gone = RunEntry(str(tmp_path / "gone"), "u/me/run")
        assert goes_on(gone) is False
        assert goes_on(replace(gone, host="another-host")) is None

    def test_damage(self, tmp_path: Path) -> None:
        """A journal that cannot be read tells nothing."""
        entry, journal = _begin(tmp_path / "run")
        journal.close()
        journal.path.write_bytes(b"{}\n")
        assert goes_on(entry) is None


class TestList:
    """Which run is refused."""

    @pytest.fixture
    def living(self, runs: RunList, tmp_path: Path) -> RunEntry:
        """A run on the list whose driver is this process."""
        entry, _ = _begin(tmp_path / "living")
        list_run(runs, entry, PLAN)
        return entry

    @pytest.fixture
    def second(self, living: RunEntry, tmp_path: Path) -> RunEntry:
        """Another one, which is not on the list."""
        entry, _ = _begin(tmp_path / "second")
        return entry

    def test_same_run(self, runs: RunList, living: RunEntry, second: RunEntry) -> None:
        """The second is refused, and leaves no trace; the message names the first, and what to do."""
        with pytest.raises(RunHeldError, match="'u/me/run' of this repository") as refused:
            list_run(runs, second, PLAN)
        assert living.run_dir in refused.value.message
        assert f"qgexec status {living.run_dir}" in refused.value.hint
        assert "--force" in refused.value.hint
        assert runs.entries() == [living]

    @pytest.mark.parametrize(
        "change",
        [
            {"output_run": "u/me/other"},
            {"registry": "sqlite:////x", "root": "/x"},
            {"registry": "", "root": ""},
        ],
    )
    def test_another_run(self, runs: RunList, second: RunEntry, change: dict[str, str]) -> None:
        """Another RUN, or the same name elsewhere, is nobody else's affair."""
        list_run(runs, replace(second, **change), PLAN)  # type: ignore[arg-type]
        assert len(runs.entries()) == 2

    @pytest.mark.parametrize("change", [{"registry": "sqlite:////x"}, {"root": "/x"}])
    def test_same_by_registry_or_root(self, runs: RunList, second: RunEntry, change: dict[str, str]) -> None:
        """Two registries over one datastore write the same files; one registry has one RUN of a name."""
        with pytest.raises(RunHeldError):
            list_run(runs, replace(second, **change), PLAN)  # type: ignore[arg-type]

    def test_other_quanta(
        self, runs: RunList, second: RunEntry, living: RunEntry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Runs that have no quantum in common may write one RUN together; it is said."""
        list_run(runs, second, OTHERS)
        assert f"The run in {living.run_dir}" in caplog.text
        assert "other quanta of the output RUN 'u/me/run'" in caplog.text

    def test_by_force(
        self, runs: RunList, second: RunEntry, living: RunEntry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is only said then."""
        list_run(runs, second, PLAN, force=True)
        assert living.run_dir in caplog.text
        assert {entry.run_dir for entry in runs.entries()} == {living.run_dir, second.run_dir}

    def test_what_is_to_be_removed(self, runs: RunList, second: RunEntry) -> None:
        """Nobody may write to a RUN that is to be pruned, whatever quanta they are."""
        other = replace(second, output_run="u/me/new")
        with pytest.raises(RunHeldError, match="'u/me/run'"):
            list_run(runs, other, OTHERS, removes="u/me/run")
        list_run(runs, other, OTHERS)

    def test_after_the_first_has_ended(self, runs: RunList, tmp_path: Path) -> None:
        """It stays on the list, and is in nobody's way."""
        entry, journal = _begin(tmp_path / "first", _dead())
        journal.close()
        list_run(runs, entry, PLAN)
        second, _ = _begin(tmp_path / "second")
        list_run(runs, second, PLAN)
        assert len(runs.entries()) == 2

    def test_going_on_with_it(self, runs: RunList, living: RunEntry) -> None:
        """A run is not in its own way."""
        list_run(runs, replace(living, driver_began_at=living.driver_began_at + 1), PLAN)

    def test_after_one_that_broke_off(self, runs: RunList, living: RunEntry, second: RunEntry) -> None:
        """One process drives one run at a time: another run of its own is over, whatever its journal says."""
        runs.add(replace(living, pid=os.getpid()))
        list_run(runs, second, PLAN)

    def test_going_on_with_it_elsewhere(self, runs: RunList, living: RunEntry, tmp_path: Path) -> None:
        """Nor where its run directory is found in another way, as by another mount."""
        (tmp_path / "link").symlink_to(living.run_dir)
        list_run(runs, replace(living, run_dir=str(tmp_path / "link")), PLAN)

    def test_plan_that_is_not_there(self, runs: RunList, second: RunEntry, living: RunEntry) -> None:
        """What quanta it has is not known then: it may have any."""
        RunDir(Path(living.run_dir)).plan_file.unlink()
        with pytest.raises(RunHeldError):
            list_run(runs, second, OTHERS)

    def test_on_another_host_that_shares_the_list(
        self, runs: RunList, second: RunEntry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where its run directory cannot be seen, nobody is refused for it; it is said."""
        runs.add(replace(second, run_dir="/scratch/run", host="another-host"))
        list_run(runs, second, PLAN, force=True)
        assert "may be written by the run in /scratch/run of another-host" in caplog.text

    def test_two_at_the_same_time(self, runs: RunList, living: RunEntry, second: RunEntry) -> None:
        """Both are listed before either looks: the one that was listed last finds the other, and only it."""
        first, last = runs.add(living), runs.add(second)
        if first.written_ns == last.written_ns:  # a coarse clock: then both find each other
            last = replace(last, written_ns=last.written_ns + 1)
        assert [other.entry for other in other_runs(runs, last, PLAN)] == [living]

    def test_no_list(self, second: RunEntry) -> None:
        """Without a place for one no run is refused."""
        list_run(RunList(None), second, PLAN)
        list_run(RunList(Path("/dev/null/x")), second, PLAN)
