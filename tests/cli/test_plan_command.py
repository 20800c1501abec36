"""`qgexec plan`, and runs of a part of the graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.kit.butler.repos import N_QUANTA, MockRepository
from tests.kit.commands.qgexec import Moods, call, datasets, one_message


@pytest.fixture
def given(repository: MockRepository, folder: Path) -> list[object]:
    """The options that name repository and graph."""
    assert folder.is_dir()
    return ["-b", repository.root, "-g", repository.graph, "--register-dataset-types"]


class TestPlan:
    """What is said, and that nothing is done."""

    def test_before_the_run(self, given: list[object], repository: MockRepository, folder: Path) -> None:
        """Quanta, what they ask for, and that nothing is wrong."""
        before = repository.dump()
        done = call("plan", *given, "-j", "3", "--memory-per-quantum", "2GB", "--timeout", "600")
        assert done.code == 0, done.err
        lines = [line.split() for line in done.out.splitlines()]
        assert ["isr", "8", "1", "2.0", "GB", "10.0", "min"] in lines
        assert f"Would run      {N_QUANTA} on pool, 3 cores" in done.out
        assert "unknown for isr, calibrate, summary, final" in done.out
        assert "WRONG" not in done.out
        assert repository.dump() == before
        assert list(folder.iterdir()) == []

    @pytest.mark.thorough
    def test_after_an_earlier_run(self, given: list[object]) -> None:
        """Run times and what is done are taken from it, and the longest path is told."""
        assert call("run", *given, "--run-dir", "books", "--only", "isr").code == 0
        known = call("plan", *given, "--extend-run", "--run-times", "books", "--only", "isr", "-j", "2")
        assert "nothing is left to do" in known.out
        others = call("plan", *given, "--extend-run", "--run-times", "books").out
        assert "unknown for calibrate, summary, final: name an earlier run of these tasks" in " ".join(
            others.split()
        )
        assert call("run", *given, "--run-dir", "more", "--extend-run").code == 0
        found = call("plan", *given, "--extend-run", "--run-times", "more", "--json")
        values = json.loads(found.out)
        assert {task["label"]: task["n_done"] for task in values["tasks"]} == {
            task["label"]: task["n_quanta"] for task in values["tasks"]
        }

    def test_expected_times(self, given: list[object], repository: MockRepository, tmp_path: Path) -> None:
        """With the run times of all tasks: of all, of the longest path, and on so many cores."""
        other = shutil.copytree(repository.root, tmp_path / "other")
        assert call("run", "-b", other, *given[2:], "--run-dir", "books").code == 0
        values = json.loads(call("plan", *given, "--run-times", "books", "-j", "2", "--json").out)
        outlook = values["outlook"]
        assert outlook["critical_path"] == ["isr", "calibrate", "summary", "final"]
        assert outlook["critical_path_s"] <= outlook["wall_s"] <= outlook["total_s"]
        text = call("plan", *given, "--run-times", "books", "-j", "2").out
        assert "isr, calibrate, summary, final" in text
        assert "from beginning to end" in text

    def test_outputs_that_are_in_the_way(self, given: list[object], moods: Moods) -> None:
        """What failed would fail again unless its outputs may be removed: a run refuses that, too."""
        moods.set({"isr 1,3": "raise"})
        assert call("run", *given, "--run-dir", "books").code == 1
        moods.set({})
        found = call("plan", *given, "--extend-run", "--only", "isr")
        assert found.code == 2
        assert "WRONG  outputs: one quantum (1 of isr) failed in this RUN" in " ".join(found.out.split(" "))
        refused = call("run", *given, "--run-dir", "again", "--extend-run", "--only", "isr")
        one_message(refused, "one quantum (1 of isr) failed in this RUN", "--clobber-outputs")
        assert not Path("again").exists()
        clobbering = [*given, "--extend-run", "--only", "isr", "--clobber-outputs"]
        assert call("plan", *clobbering).code == 0
        assert call("run", *clobbering, "--run-dir", "repaired").code == 0

    def test_every_problem_at_once(self, given: list[object], repository: MockRepository) -> None:
        """Each with what to do; the exit code says that there are some."""
        arguments = [*given[:-1], "--extend-run", "-i", "nowhere"]
        found = call("plan", *arguments)
        assert found.code == 2
        assert found.out.count("WRONG") == 2, found.out
        for words in ("does not exist and cannot be extended", "--register-dataset-types to register them"):
            assert words in " ".join(found.out.split())
        assert "Traceback" not in found.out + found.err

    @pytest.mark.parametrize(
        ("name", "said"), [("nowhere.qg", "does not exist"), ("empty.qg", "is not a quantum graph")]
    )
    def test_no_graph(self, given: list[object], folder: Path, name: str, said: str) -> None:
        """That is a problem among the others."""
        (folder / "empty.qg").touch()
        found = call("plan", *given[:2], "-g", name, *given[4:])
        assert found.code == 2
        assert "ok     repository" in found.out
        assert "WRONG  graph" in found.out
        assert said in " ".join(found.out.split())

    def test_a_batch_system_that_is_not_there(
        self, given: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is asked, as a submission would."""
        monkeypatch.setenv("PATH", str(tmp_path))
        found = call("plan", *given, "--model", "slurm")
        assert found.code == 2
        assert "WRONG  execution model" in found.out


class TestParts:
    """Runs of a part of the graph."""

    @pytest.mark.thorough
    def test_one_part_after_another(self, given: list[object], repository: MockRepository) -> None:
        """What a part needs of another is there by then; in the end everything is, once."""
        assert call("run", *given, "--run-dir", "1", "--only", "isr").code == 0
        assert len(datasets(repository, "post_isr")) == 8
        assert not datasets(repository, "calibrated")
        part = ["--only", "calibrate{visit: 1}", "--with-descendants"]
        assert call("run", *given, "--run-dir", "2", "--extend-run", *part, "-j", "2").code == 0
        assert len(datasets(repository, "calibrated")) == 4
        assert call("run", *given, "--run-dir", "3", "--extend-run").code == 0
        assert len(datasets(repository, "calibrated")) == 8
        assert json.loads(call("report", "3", "--json").out)["total"]["skipped"] == 14

    def test_a_part_that_is_resumed(self, given: list[object], moods: Moods) -> None:
        """It stays the part."""
        moods.set({"isr 1,3": "raise"})
        part = ["--only", "calibrate{visit: 1, detector: 3}", "--with-ancestors"]
        assert call("run", *given, "--run-dir", "books", *part).code == 1
        moods.set({})
        assert call("resume", "books").code == 0
        total = json.loads(call("report", "books", "--json").out)["total"]
        assert (total["n_quanta"], total["succeeded"]) == (2, 2)

    def test_failures_of_an_earlier_run(
        self, given: list[object], moods: Moods, repository: MockRepository
    ) -> None:
        """Only what failed, and what that blocked; what that takes need not be said."""
        moods.set({"isr 1,3": "raise"})
        assert call("run", *given, "--run-dir", "books").code == 1
        moods.set({})
        assert call("run", *given, "--run-dir", "again", "--only-failures-of", "books").code == 0
        total = json.loads(call("report", "again", "--json").out)["total"]
        before = json.loads(call("report", "books", "--json").out)["total"]
        assert total["n_quanta"] == before["failed"] + before["blocked"] > 1
        assert len(datasets(repository, "calibrated")) == 8
        assert datasets(repository, "final_report")

    @pytest.mark.every(3)
    @pytest.mark.parametrize(
        ("part", "said"),
        [
            (["--with-ancestors"], "none are named"),
            (["--only", "irs"], "Is it isr?"),
            (["--only", "isr{visit: 77}"], "no quantum with that data ID"),
            (["--only", "19"], "no quantum 19"),
            (["--only-failures-of", "nowhere"], "nowhere"),
        ],
    )
    def test_no_such_part(
        self, given: list[object], repository: MockRepository, folder: Path, part: list[str], said: str
    ) -> None:
        """One message, and nothing has changed."""
        before = repository.dump()
        one_message(call("run", *given, *part), said)
        assert repository.dump() == before
        assert list(folder.rglob("*.json")) == []
