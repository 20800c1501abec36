"""Options that only newer versions of upstream's graph builder have: there as pipetask's, else refused."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph_builder import QuantumGraphBuilder

from qgexec.errors import UsageError
from qgexec.rubin.compat import builder_arguments
from tests.kit.butler.repos import INPUT_CHAIN, N_QUANTA, OUTPUT, OUTPUT_RUN, MockRepository
from tests.kit.commands.builtgraphs import Arguments, both
from tests.kit.commands.pipetask import pipetask
from tests.kit.commands.qgexec import Command, call, one_message

NEWER: dict[str, object] = {"retained_dataset_types": ["a"], "prune_unanchored_quanta": ("isr", "final")}
HAS_THEM = NEWER.keys() <= inspect.signature(QuantumGraphBuilder).parameters.keys()

newer = pytest.mark.skipif(
    not HAS_THEM,
    reason="lsst-pipe-base has these options from 30.0.9 and 30.2026.2800 on (Python 3.12)",
)
older = pytest.mark.skipif(HAS_THEM, reason="about lsst-pipe-base before 30.0.9 and 30.2026.2800")

ALL = {"isr": 8, "calibrate": 8, "summary": 2, "final": 1}
SKIP: Arguments = ["--skip-existing-in", OUTPUT]
KEPT: Arguments = ["--retained-dataset-types", "kept.yaml"]

Done = Callable[..., None]


@pytest.fixture
def done(repository: MockRepository, folder: Path) -> Done:
    """Has the whole graph been executed; then takes datasets away, by type, here and there."""

    def do(lost: Collection[str], **where: int) -> None:
        run = ["run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
        result = call(*run, "--run-dir", folder.parent / "books")
        assert result.code == 0, result.err
        with repository.butler(writeable=True) as butler:
            for name in lost:
                data_id = {"instrument": "Cam1", **where}
                refs = butler.query_datasets(name, OUTPUT_RUN, data_id=data_id, find_first=False)
                butler.pruneDatasets(refs, purge=True, unstore=True, disassociate=True)

    return do


END = ("visit_summary_mock", "summary_metadata", "final_report", "final_metadata")
"""What the last two tasks have left, as far as it tells that they are done."""


@pytest.mark.parametrize("options", [{name: value} for name, value in NEWER.items()], ids=list(NEWER))
@older
def test_refused(options: dict[str, object], building: Arguments, folder: Path) -> None:
    """Where the installed version has them not, one message says so, and which versions have them."""
    (name,) = options
    (folder / "kept.yaml").write_text("['*']\n")
    given = "kept.yaml" if name.startswith("retained") else "isr:final"
    with pytest.raises(UsageError) as caught:
        builder_arguments(options)
    result = call("qgraph", *building, f"--{name.replace('_', '-')}", given, *SKIP)
    one_message(result, caught.value.message, "lsst-pipe-base", "30.0.9")


@newer
class TestRetainedDatasetTypes:
    """`--retained-dataset-types`: what makes the other types runs again where they are needed."""

    @pytest.mark.parametrize(
        ("kept", "tasks"),
        [
            (None, ["summary", "final"]),
            ("['*']", ["summary", "final"]),
            ("[calibrated]", ["summary", "final"]),
            ("- cal*\n- nothing", ["summary", "final"]),
            ("[post_isr]", ["calibrate", "summary", "final"]),
            ("[nothing, 'such*']", ["isr", "calibrate", "summary", "final"]),
        ],
    )
    def test_graphs(
        self, kept: str | None, tasks: list[str], building: Arguments, folder: Path, done: Done
    ) -> None:
        """The graphs are pipetask's: with nothing said all was kept, and else only what matches."""
        done(END)
        options = list(SKIP)
        if kept is not None:
            (folder / "kept.yaml").write_text(kept)
            options += KEPT
        graph = both(folder, *building, *options)
        assert graph["tasks"] == {label: ALL[label] for label in tasks}
        assert graph["metadata"].get("retained_dataset_types") == (None if kept is None else "kept.yaml")

    def test_only_what_is_needed(self, building: Arguments, folder: Path, done: Done) -> None:
        """Quanta that nothing needs which runs again are still skipped."""
        done(("visit_summary_mock", "summary_metadata"), visit=1)
        (folder / "kept.yaml").write_text("[visit_summary_mock]")
        assert both(folder, *building, *SKIP, *KEPT)["tasks"] == {"isr": 4, "calibrate": 4, "summary": 1}

    def test_nothing_done(self, building: Arguments, folder: Path) -> None:
        """Where nothing has been done yet, in collections that are there or not, all is built."""
        (folder / "kept.yaml").write_text("[calibrated]")
        for options in (
            ["--skip-existing-in", "no/such"],
            ["--skip-existing-in", INPUT_CHAIN],
            ["--skip-existing"],
        ):
            assert len(both(folder, *building, *options, *KEPT)["quanta"]) == N_QUANTA

    def test_run(self, building: Arguments, folder: Path, repository: MockRepository, done: Done) -> None:
        """What was not kept is made again in a new RUN: the same datasets as pipetask makes."""
        done([*END, "calibrated"])
        (folder / "kept.yaml").write_text("[post_isr]")
        copy = folder / "copy"
        shutil.copytree(repository.root, copy)
        made = []
        for run, root in ((call, repository.root), (pipetask, copy)):
            again: Arguments = ["run", "-b", root, *building[2:], "--output-run", "u/me/run", *SKIP, *KEPT]
            result = run(*again, "--register-dataset-types")
            assert result.code == 0, (result.out, result.err)
            with Butler.from_config(str(root)) as butler:
                refs = butler.query_all_datasets("u/me/run", name="*", find_first=False)
                assert all(butler.stored(ref) for ref in refs)
                made.append(sorted((ref.datasetType.name, str(ref.dataId)) for ref in refs))
        assert made[0] == made[1]
        names = [name for name, _ in made[0]]
        assert (names.count("post_isr"), names.count("calibrated"), names.count("final_report")) == (0, 8, 1)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "kept.yaml holds no list"),
            ("[]", "kept.yaml holds no list"),
            ("post_isr", "kept.yaml holds no list"),
            ("post_isr: true", "kept.yaml holds no list"),
            ("[1, 2]", "kept.yaml holds no list"),
            ("[", "kept.yaml cannot be read"),
            ("\0", "kept.yaml cannot be read"),
            (None, "kept.yaml cannot be read: No such file or directory"),
        ],
    )
    def test_bad_files(self, content: str | None, said: str, building: Arguments, folder: Path) -> None:
        """One message names the file and what is wrong; pipetask refuses them, too."""
        if content is not None:
            (folder / "kept.yaml").write_text(content)
        one_message(call("qgraph", *building, *SKIP, *KEPT, "-q", "ours.qg"), said)
        assert pipetask("qgraph", *building, *SKIP, *KEPT, "-q", "theirs.qg").code == 1
        assert not [*folder.glob("*.qg")]

    @pytest.mark.parametrize("command", ["qgraph", "run"])
    def test_without_skipping(self, command: str, building: Arguments, folder: Path) -> None:
        """Where no quanta are skipped it can mean nothing: refused here and by pipetask."""
        (folder / "kept.yaml").write_text("[post_isr]")
        one_message(call(command, *building, *KEPT), "no quanta are skipped", "--skip-existing-in")
        assert pipetask(command, *building, *KEPT).code == 1


@newer
class TestPruneUnanchoredQuanta:
    """`--prune-unanchored-quanta`: quanta that lead to none of another task are left out."""

    @pytest.mark.parametrize(
        ("pair", "tasks"),
        [
            ("isr:final", ["isr", "calibrate", "summary", "final"]),
            ("summary:calibrate", ["isr", "calibrate"]),
            ("calibrate:no_such_task", ["isr"]),
            ("no_such_task:isr", ["isr", "calibrate", "summary", "final"]),
            ("a:b:c", ["isr", "calibrate", "summary", "final"]),
        ],
    )
    def test_graphs(self, pair: str, tasks: list[str], building: Arguments, folder: Path) -> None:
        """The graphs are pipetask's, also where there is no task of a name."""
        graph = both(folder, *building, "--prune-unanchored-quanta", pair)
        assert graph["tasks"] == {label: ALL[label] for label in tasks}

    def test_some_of_a_task(
        self, building: Arguments, folder: Path, done: Done, repository: MockRepository
    ) -> None:
        """Quanta without an anchor go, and what follows them; others of their task stay."""
        done(["post_isr", "isr_metadata"], detector=1)
        with repository.butler(writeable=True) as butler:
            for name in ("visit_summary_mock", "summary_metadata"):
                refs = butler.query_datasets(
                    name, OUTPUT_RUN, data_id={"instrument": "Cam1", "visit": 2}, find_first=False
                )
                butler.pruneDatasets(refs, purge=True, unstore=True, disassociate=True)
        assert both(folder, *building, *SKIP)["tasks"] == {"isr": 2, "summary": 1}
        graph = both(folder, *building, *SKIP, "--prune-unanchored-quanta", "isr:summary")
        assert graph["tasks"] == {"summary": 1}

    def test_mocks(self, building: Arguments, folder: Path) -> None:
        """Mocks have labels of their own."""
        mock = ["--mock", "--unmocked-dataset-types", "raw_mock,flat_mock", "--prune-unanchored-quanta"]
        assert len(both(folder, *building, *mock, "isr:no_such_task")["quanta"]) == N_QUANTA
        assert len(both(folder, *building, *mock, "_mock_summary:_mock_isr")["quanta"]) == 16

    @pytest.mark.parametrize("pair", ["isr:no_such_task", "isr:isr"])
    def test_nothing_left(self, pair: str, building: Arguments, folder: Path) -> None:
        """Where all is taken out, the message says what may have done it."""
        prune = ["--prune-unanchored-quanta", pair]
        one_message(call("qgraph", *building, *prune), "has no quanta", " ".join(prune))
        assert pipetask("qgraph", *building, *prune).code == 1

    @pytest.mark.parametrize("pair", ["isr", "isr:", ":isr", ":", ""])
    def test_bad_pairs(self, pair: str, building: Arguments, folder: Path) -> None:
        """What is no pair is refused, by pipetask too."""
        arguments: Arguments = ["qgraph", *building, "--prune-unanchored-quanta", pair]
        one_message(call(*arguments), f"{pair!r} is not of the form SOURCE:ANCHOR")
        assert pipetask(*arguments).code == 2


@newer
def test_warnings(
    building: Arguments, folder: Path, start: Callable[..., Command], repository: MockRepository
) -> None:
    """Tasks and dataset types that there are not are named, though nothing was said of a log."""
    (folder / "kept.yaml").write_text("[nothing, 'no*']")
    more = ["--skip-existing", *KEPT, "--prune-unanchored-quanta", "no_such_task:isr"]
    result = start("qgraph", *building, *more).finish()
    assert result.code == 0, result.err
    assert "source label no_such_task is not present" in result.err
    assert "'nothing' not found" in result.err
    assert "'no*' matches no dataset types" in result.err


def test_same_arguments() -> None:
    """All that upstream has of them is handed on as it is; what was not asked for is not."""
    asked: dict[str, Any] = {name: value for name, value in NEWER.items() if HAS_THEM}
    assert builder_arguments(dict.fromkeys(NEWER) | asked) == asked
