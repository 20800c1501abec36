"""`qgexec qgraph`, and building with `qgexec run`: the graphs and what is shown of them are pipetask's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from tests.kit.butler.repos import (
    INPUT_CHAIN,
    INPUT_RUN,
    N_QUANTA,
    OUTPUT,
    OUTPUT_RUN,
    MockRepository,
    dump_repository,
)
from tests.kit.butler.sites import make_composite
from tests.kit.commands.builtgraphs import Arguments, both, contents
from tests.kit.commands.pipetask import pipetask
from tests.kit.commands.qgexec import Command, Result, call, one_message, report_of


class TestBuilding:
    """Options that decide what is in a graph."""

    def test_plain(self, building: Arguments, folder: Path, repository: MockRepository) -> None:
        """The whole graph; the repository is only read, and the numbers of quanta are printed."""
        before = repository.dump()
        assert len(both(folder, *building)["quanta"]) == N_QUANTA
        assert repository.dump() == before
        result = call("qgraph", *building)
        assert [line.split() for line in result.out.splitlines()] == [
            ["isr", "8"], ["calibrate", "8"], ["summary", "2"], ["final", "1"], ["in", "all", "19"],
        ]  # fmt: skip
        assert "not saved" in result.err
        assert sorted(path.name for path in folder.iterdir()) == ["ours.qg", "theirs.qg"]

    @pytest.mark.every(3)
    @pytest.mark.parametrize(
        ("options", "n_quanta"),
        [
            (["-d", "visit = 1 and detector < 3"], 6),
            (["--select-tasks", "isr | calibrate"], 16),
            (["--select-tasks", "< summary"], 16),
            (["--delete", "final", "--delete", "summary"], 16),
            (["-c", "isr:int_value=3", "-c", "final:str_value=a"], N_QUANTA),
            (["--dataset-query-constraint", "off"], N_QUANTA),
            (["--dataset-query-constraint", "raw_mock,flat_mock"], N_QUANTA),
        ],
    )
    def test_options(self, options: list[str], n_quanta: int, building: Arguments, folder: Path) -> None:
        """What selects data, tasks and configuration."""
        assert len(both(folder, *building, *options)["quanta"]) == n_quanta

    def test_without_datastore_records(self, building: Arguments, folder: Path) -> None:
        """No quantum has any."""
        file = folder / "bare.qg"
        assert call("qgraph", *building, "--no-qgraph-datastore-records", "-q", file).code == 0
        assert [bool(quantum[4]) for quantum in contents(file)["quanta"]] == [False] * N_QUANTA

    def test_data_id_tables(self, building: Arguments, folder: Path) -> None:
        """Tables of data IDs are joined in."""
        (folder / "visits.csv").write_text("instrument,visit\nCam1,2\n")
        rows = ["# %ECSV 1.0", "# ---", "# datatype:", "# - {name: instrument, datatype: string}"]
        rows += ["# - {name: detector, datatype: int64}", "instrument detector", "Cam1 1", "Cam1 4"]
        (folder / "detectors.ecsv").write_text("\n".join(rows))
        tables = ["--data-id-table", "visits.csv", "--data-id-table", "detectors.ecsv"]
        assert len(both(folder, *building, *tables)["quanta"]) == 6

    def test_skipping(
        self,
        building: Arguments,
        folder: Path,
        repository: MockRepository,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """--skip-existing-in leaves out what is done there, --extend-run what the RUN has."""
        done = ["run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
        assert call(*done).code == 0
        other = ["--skip-existing-in", f"{OUTPUT},{INPUT_RUN}", "-c", "isr:int_value=1"]
        one_message(call("qgraph", *building, *other), "has no quanta")
        with Butler.from_config(str(repository.root), writeable=True) as butler:
            refs = butler.query_datasets(
                "summary_metadata", OUTPUT, data_id={"instrument": "Cam1", "visit": 1}
            )
            butler.pruneDatasets(refs, purge=True, unstore=True, disassociate=True)
        assert [quantum[0] for quantum in both(folder, *building, *other)["quanta"]] == [
            "tests.kit.tasks.moodytask.MoodyTask"
        ]
        misspelt = call(
            "qgraph", *building, *other[2:], "--skip-existing-in", f"nowhere,{OUTPUT[:-1]}*", "-q", "m.qg"
        )
        assert "no collection nowhere" in caplog.text
        assert misspelt.out.split()[-1] == "1"  # pipetask would skip nothing
        extend: Arguments = [*building[:-1], OUTPUT, "--extend-run", "--clobber-outputs"]
        files = folder / "ours.qg", folder / "theirs.qg"
        for run, file in zip((call, pipetask), files, strict=True):
            assert run("qgraph", *extend, "--qgraph-datastore-records", "-q", file).code == 0
        ours, theirs = map(contents, files)
        assert ours == theirs
        assert ours["header"][2] == OUTPUT_RUN
        assert len(ours["quanta"]) == 1

    def test_mock(self, building: Arguments, folder: Path, repository: MockRepository) -> None:
        """Mocks of all tasks, of which some fail as told, run to the same end."""
        options = [
            *("--mock", "--unmocked-dataset-types", "raw_mock,flat_mock"),
            *("--mock-failure", "isr:lsst.pipe.base.RepeatableQuantumError:visit=1 and detector=2"),
            *("--mock-failure", "calibrate::detector=3:4 GB"),
        ]
        graph = both(folder, *building, *options)
        assert len(graph["quanta"]) == N_QUANTA
        assert "fail_condition='visit=1 and detector=2'" in graph["configs"]["_mock_isr"]
        done = call(
            *("run", *building, *options, "--register-dataset-types", "--run-dir", "books", "-j", 2),
            *("--memory-per-quantum", "1GB"),
        )
        assert done.code == 1, done.err
        report = report_of(folder / "books")
        assert {task["label"]: (task["succeeded"], task["failed"]) for task in report["tasks"]} == {
            "_mock_isr": (7, 1), "_mock_calibrate": (5, 2), "_mock_summary": (0, 0), "_mock_final": (0, 0),
        }  # fmt: skip


class TestLookingAt:
    """What is shown, drawn and counted of a graph."""

    @pytest.mark.every(3)
    @pytest.mark.parametrize("show", ["graph", "workflow", "uri"])
    def test_show(self, show: str, repository: MockRepository) -> None:
        """Each thing that can be shown of a graph is shown as pipetask shows it."""
        arguments: Arguments = ["qgraph", "-b", repository.root, "-g", repository.graph, "--show", show]
        before = call(*arguments)
        registered = call("init", *arguments[1:5], "--register-dataset-types")
        assert (before.code, registered.code) == (0, 0), (before.err, registered.err)
        ours, theirs = call(*arguments), pipetask(*arguments)
        assert (ours.code, theirs.code) == (0, 0), (ours.err, theirs.err)
        # The order of a quantum's prerequisites is that of a set.
        assert (
            sorted(ours.out.splitlines())
            == sorted(theirs.out.splitlines())
            == sorted(before.out.splitlines())
        )
        assert ours.out.count("Quantum ") >= N_QUANTA
        assert ours.err == ""

    @pytest.mark.parametrize("option", ["--qgraph-dot", "--qgraph-mermaid"])
    def test_drawings(self, option: str, repository: MockRepository, folder: Path) -> None:
        """DOT and Mermaid are the same files."""
        arguments: Arguments = ["qgraph", "-b", repository.root, "-g", repository.graph, option]
        assert call(*arguments, "ours").code == pipetask(*arguments, "theirs").code == 0
        assert Path("ours").read_text() == Path("theirs").read_text()
        assert "calibrate" in Path("ours").read_text()

    def test_summary(self, repository: MockRepository, folder: Path) -> None:
        """The JSON summary is the same."""
        arguments: Arguments = ["qgraph", "-b", repository.root, "-g", repository.graph, "--summary"]
        assert call(*arguments, "ours.json").code == pipetask(*arguments, "theirs.json").code == 0
        ours, theirs = (json.loads(Path(name).read_text()) for name in ("ours.json", "theirs.json"))
        assert ours | {"cmdLine": theirs["cmdLine"]} == theirs
        assert ours["qgraphSummary"]["qgraphTaskSummaries"]["isr"]["numQuanta"] == 8

    def test_only_some_quanta(self, repository: MockRepository, folder: Path) -> None:
        """--qgraph-node-id reads and saves no others; what is no quantum of the graph is named."""
        graph: Arguments = ["qgraph", "-g", repository.graph]
        lines = call(*graph, "--show", "workflow").out.splitlines()
        ids = [line.split()[1].rstrip(":") for line in lines if line.startswith("Quantum ")]
        some = call(
            *graph, "--qgraph-node-id", ",".join(ids[:2]), "--qgraph-node-id", ids[2], "-q", "part.qg"
        )
        assert some.out.splitlines()[-1].split() == ["in", "all", "3"]
        assert len(contents(Path("part.qg"))["quanta"]) == 3
        one_message(call(*graph, "--qgraph-node-id", "3"), "'3' is no UUID")
        other = "00000000-0000-0000-0000-000000000000"
        one_message(call(*graph, "--qgraph-node-id", other), "graph.qg has not all of these quanta")

    def test_pipeline_needs_no_repository(self, repository: MockRepository, folder: Path) -> None:
        """What can be shown of the pipeline is, and no graph is built; with more, it is."""
        pipeline = repository.graph.with_name("pipeline.yaml")
        shown = call("qgraph", "-p", pipeline, "--show", "tasks")
        assert shown == Result(0, call("build", "-p", pipeline, "--show", "tasks").out, "")
        asked = call("qgraph", "-p", pipeline, "--show", "tasks", "-q", "not.qg", "--summary", "not.json")
        assert (asked.code, asked.out) == (0, shown.out)
        assert "No graph was built" in asked.err
        assert "--save-qgraph, --summary" in asked.err
        assert not list(Path().glob("not.*"))

    def test_run_shows_and_does_not_execute(
        self, building: Arguments, repository: MockRepository, folder: Path
    ) -> None:
        """`run --show` is `qgraph --show`: nothing is executed, nothing is written."""
        before = repository.dump()
        for show, n_quanta in (("pipeline", 0), ("workflow", N_QUANTA)):
            shown = call("run", *building, "--show", show)
            assert (shown.code, shown.err) == (0, "")
            assert sum(line.startswith("Quantum ") for line in shown.out.splitlines()) == n_quanta
        assert repository.dump() == before
        assert list(folder.iterdir()) == []


class TestExecuting:
    """`run` with the same options."""

    def test_part_of_a_graph(self, repository: MockRepository, folder: Path) -> None:
        """Of a graph only the quanta that are named are executed; `run` draws, saves and executes at once."""
        graph = PredictedQuantumGraph.read_execution_quanta(str(repository.graph))
        isr = [str(quantum_id) for quantum_id in graph.quanta_by_task["isr"].values()]
        result = call(
            *("run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types"),
            *("--qgraph-node-id", ",".join(isr[:3]), "--qgraph-dot", "part.dot", "--run-dir", "books"),
        )
        assert result.code == 0, result.err
        tasks = report_of(Path("books"))["tasks"]
        assert {task["label"]: task["succeeded"] for task in tasks if task["succeeded"]} == {"isr": 3}
        assert Path("part.dot").read_text().count("isr") >= 3

    @pytest.mark.thorough
    def test_replacing(self, building: Arguments, repository: MockRepository, folder: Path) -> None:
        """--replace-run takes the newest RUN out of the chain; --prune-replaced removes what was in it."""

        def run(name: str, *options: object) -> None:
            arguments = [*building[:4], "-o", "u/me", "--output-run", f"u/me/{name}", *options]
            inputs = ["-i", INPUT_CHAIN] if name == "a" else []
            result = call("run", *arguments, *inputs, "--register-dataset-types")
            assert result.code == 0, result.err

        def members() -> list[str]:
            with repository.butler() as butler:
                return list(butler.collections.get_info("u/me").children)

        def files(name: str) -> list[bool]:
            with repository.butler() as butler:
                refs = butler.query_all_datasets(f"u/me/{name}", name="*", find_first=False)
                return [
                    butler.stored(ref) for ref in sorted(refs) if not ref.datasetType.name.endswith("_config")
                ]

        run("a")
        run("b", "--replace-run")
        assert members() == ["u/me/b", INPUT_RUN]
        assert all(files("a"))
        assert len(files("a")) > N_QUANTA
        run("c", "--replace-run", "--prune-replaced=unstore")
        assert members() == ["u/me/c", INPUT_RUN]
        assert sum(files("b")) == 2, "what was written beforehand stays: a schema and the package versions"
        assert len(files("b")) == len(files("a"))
        run("d", "--replace-run", "--prune-replaced", "purge")
        assert members() == ["u/me/d", INPUT_RUN]
        with repository.butler() as butler:
            assert set(butler.collections.query("u/me/*")) == {"u/me/a", "u/me/b", "u/me/d"}

    @pytest.mark.every(4)
    @pytest.mark.parametrize(
        "options",
        [
            ["--replace-run"],
            ["--replace-run", "--prune-replaced", "unstore"],
            ["--replace-run", "--prune-replaced", "purge"],
            ["-i", "other,input_chain", "--rebase"],
        ],
        ids=lambda options: options[-1],
    )
    def test_collections_are_pipetasks(
        self, options: list[str], building: Arguments, repository: MockRepository, folder: Path
    ) -> None:
        """After a second run into the same collection, repositories that either has served are equal."""
        with repository.butler(writeable=True) as butler:
            butler.collections.register("other")
        copy = folder / "copy"
        shutil.copytree(repository.root, copy)
        query = ["-d", "visit = 1 and detector = 2", "--select-tasks", "isr"]
        dumps = []
        for run, root in ((call, repository.root), (pipetask, copy)):
            again: Arguments = ["run", "-b", root, *building[2:4], "-o", "u/me", *query, "--output-run"]
            for more in (["u/me/a", "-i", INPUT_CHAIN], ["u/me/b", *options]):
                done = run(*again, *more, "--register-dataset-types")
                assert done.code == 0, (done.out, done.err)
            with Butler.from_config(str(root)) as butler:
                refs = butler.query_all_datasets("u/me/*", name="*", find_first=False)
                stored = sorted((ref.run, ref.datasetType.name, butler.stored(ref)) for ref in refs)
            dumps.append((dump_repository(root)["collections"], stored))
        assert dumps[0] == dumps[1]

    @pytest.mark.thorough
    def test_rebase(self, building: Arguments, repository: MockRepository, folder: Path) -> None:
        """An output collection made from other inputs is refused, and takes them in when asked to."""
        with repository.butler(writeable=True) as butler:
            butler.collections.register("other")
        assert call("run", *building, "--register-dataset-types").code == 0
        again = [
            *building[:4],
            "-i",
            f"other,{INPUT_CHAIN}",
            "-o",
            "u/me",
            "-c",
            "isr:int_value=2",
            "--output-run",
            "u/me/z",
        ]
        one_message(call("run", *again), "--rebase puts these into it")
        result = call("run", *again, "--rebase")
        assert result.code == 0, result.err
        with repository.butler() as butler:
            first, second, *rest = butler.collections.get_info("u/me").children
        assert first == "u/me/z"
        assert second.startswith("u/me/20")
        assert rest == ["other", INPUT_RUN]

    @pytest.mark.thorough
    def test_mocks_of_what_only_the_repository_defines(
        self, start: Callable[..., Command], tmp_path: Path, folder: Path
    ) -> None:
        """Drivers and workers know a storage class before they read a graph whose own is named after it."""
        made = make_composite(tmp_path / "composite")
        pipeline = folder / "pipeline.yaml"
        pipeline.write_text(
            "description: two tasks\n"
            "tasks:\n"
            "  measure: tests.kit.butler.composites.MeasureTask\n"
            "  digest: tests.kit.butler.composites.DigestTask\n"
        )
        collections = ["-i", INPUT_CHAIN, "-o", "u/me", "--register-dataset-types"]
        mocks = ["--mock", "--mock-failure", "measure::visit=1 and detector=1"]
        given = ["run", "-b", made.root, "-p", pipeline, *collections, *mocks]
        one_message(
            start(*given).finish(), "Mocks read what mocks wrote", "--unmocked-dataset-types raw_mock"
        )
        run = start(*given, "--unmocked-dataset-types", "raw_mock", "-j", 2, "--run-dir", "books").finish()
        assert run.code == 1, run.err
        again = start("resume", "books").finish()
        assert again.code == 1, again.err
        total = report_of(folder / "books")["total"]
        assert (total["failed"], total["blocked"]) == (1, 1)
        assert total["succeeded"] == total["n_quanta"] - 2

    def test_options_file(self, building: Arguments, repository: MockRepository, folder: Path) -> None:
        """`run -@` takes all options from a file, also those of execution."""
        options = {
            "butler-config": str(repository.root),
            "pipeline": str(building[3]),
            "input": [INPUT_CHAIN],
            "output-run": "u/me/run",
            "register-dataset-types": True,
            "processes": 2,
            "data-query": "visit = 1",
            "run-dir": "books",
        }
        text = yaml.safe_dump({"run": options})
        (folder / "options.yaml").write_text(text)
        result = call("run", "-@", "options.yaml", "-j", 1)
        assert result.code == 0, result.err
        assert "10 quanta on execution model inprocess" in result.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replace-run", "--extend-run"], "exclude each other"),
        (["--prune-replaced", "purge"], "no RUN is replaced"),
        (["--mock-failure", "isr::visit=1"], "nothing is mocked"),
        (["--mock", "--mock-failure", "isr:visit=1"], "is not of the form LABEL:EXCEPTION:WHERE"),
        (["--qgraph-id", "a"], "there is no graph file"),
        (["-q", "a.qgraph"], "does not end in .qg"),
        (["--prune-unanchored-quanta", "isr"], "is not of the form SOURCE:ANCHOR"),
        (["-g", "a.qg"], "-g and -p exclude each other"),
        (["--summary", "no/folder/a.json"], "--summary no/folder/a.json cannot be written"),
    ],
)
@pytest.mark.parametrize("command", ["qgraph", "run"])
def test_wrong_use(command: str, options: list[str], said: str, building: Arguments, folder: Path) -> None:
    """One message says what is wrong; nothing is written."""
    one_message(call(command, *building, *options), said)
    assert list(folder.iterdir()) == []


def test_summary_on_a_full_disk(repository: MockRepository, folder: Path) -> None:
    """It is said which file cannot be written."""
    result = call("qgraph", "-g", repository.graph, "--summary", "/dev/full")
    one_message(result, "--summary /dev/full cannot be written: No space left on device")


@pytest.mark.parametrize("run", ["../escaped", "/nowhere/escaped"])
def test_graph_is_kept_nowhere_else(run: str, building: Arguments, folder: Path) -> None:
    """A RUN whose name leads out of the current folder is refused before a graph is built and kept."""
    one_message(call("plan", *building[:-2], "--output-run", run), f"{run!r} cannot name a folder", "-q")
    assert list(folder.parent.rglob("escaped*")) == []
    assert list(folder.iterdir()) == []


def test_pattern_without_a_collection(building: Arguments, folder: Path) -> None:
    """Inputs that are patterns, and match nothing, are named."""
    one_message(call("qgraph", *building[:4], "-i", "nothing*", "-o", "u/me"), "nothing is called nothing*")


@pytest.mark.parametrize(
    "options",
    ["-d visit=1", "-c isr:a=1", "--select-tasks isr", "--mock", "--show tasks", "-s a", "--data-id-table a"],
)
def test_built_graphs_are_not_built_again(options: str, repository: MockRepository, folder: Path) -> None:
    """What only means something for building is refused where the graph is given."""
    said = "only for building a graph"
    graph: Arguments = ["-b", repository.root, "-g", repository.graph]
    one_message(call("qgraph", *graph, *options.split()), said)
    one_message(call("run", *graph, *options.split()), said)
    assert list(folder.iterdir()) == []
