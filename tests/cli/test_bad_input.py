"""`qgexec run` with bad input: one clear message, exit code 2, and nothing has changed."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from lsst.daf.butler import DatasetType, DimensionConfig

from tests.kit.butler.repos import INPUT_CHAIN, OUTPUT_RUN, MockRepository, dump_repository, open_repository
from tests.kit.commands.qgexec import Result, call, call_as_mortal, one_message, rewrite_graph

Refused = Callable[..., str]


@pytest.fixture
def refused(repository: MockRepository, folder: Path, tmp_path: Path) -> Refused:
    """Run a command that is refused with one message; repository and current folder stay as they were."""

    def refused(*arguments: object, said: Sequence[str] = (), call: Callable[..., Result] = call) -> str:
        copy = tmp_path / "before"
        shutil.copytree(repository.root, copy)
        before = _files(folder)
        result = call(*arguments)
        one_message(result, *said)
        assert _files(folder) == before
        # Merely opening a butler for writing touches its database: what it says is compared then.
        assert _files(repository.root) == _files(copy) or repository.dump() == dump_repository(copy)
        return result.err

    return refused


def _files(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def _with_graph(repository: MockRepository, *options: object) -> tuple[object, ...]:
    return "run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types", *options


def _with_pipeline(repository: MockRepository, *options: object) -> tuple[object, ...]:
    pipeline = repository.graph.with_name("pipeline.yaml")
    return (
        "run",
        "-b",
        repository.root,
        "-p",
        pipeline,
        "-i",
        INPUT_CHAIN,
        "-o",
        "u/me",
        *options,
        "--register-dataset-types",
    )


class TestGraphFile:
    def test_missing(self, repository: MockRepository, refused: Refused) -> None:
        """A graph file that is not there."""
        refused("run", "-b", repository.root, "-g", "no.qg", said=("no.qg", "does not exist"))

    def test_old_format_missing(self, repository: MockRepository, refused: Refused) -> None:
        """An old graph file that is not there."""
        refused("run", "-b", repository.root, "-g", "no.qgraph", said=("no.qgraph", "does not exist"))

    def test_folder(self, repository: MockRepository, refused: Refused, tmp_path: Path) -> None:
        """A folder in place of the graph file."""
        (tmp_path / "folder.qg").mkdir()
        refused("run", "-b", repository.root, "-g", tmp_path / "folder.qg", said=("folder.qg",))

    @pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
    def test_truncated(self, repository: MockRepository, refused: Refused, part: float) -> None:
        """A graph file of which the end is missing."""
        content = repository.graph.read_bytes()
        repository.graph.write_bytes(content[: int(part * len(content))])
        refused(*_with_graph(repository), said=("graph.qg",))

    @pytest.mark.parametrize("name", ["bad.qgraph", "bad.qg", "bad.yaml"])
    def test_other_type(
        self, repository: MockRepository, refused: Refused, tmp_path: Path, name: str
    ) -> None:
        """A file that is no graph, by content or by name."""
        (tmp_path / name).write_text("tasks: {}\n")
        refused("run", "-b", repository.root, "-g", tmp_path / name, said=(name,))

    def test_other_zip(self, repository: MockRepository, refused: Refused) -> None:
        """A zip file that is no graph."""
        with zipfile.ZipFile(repository.graph, "w") as file:
            file.writestr("header", "{}")
        refused(*_with_graph(repository), said=("graph.qg",))

    def test_empty(self, repository: MockRepository, refused: Refused) -> None:
        """A graph without quanta."""
        rewrite_graph(repository.graph, header={"n_quanta": 0})
        refused(*_with_graph(repository), said=("graph.qg has no quanta",))

    def test_newer(self, repository: MockRepository, refused: Refused) -> None:
        """A graph file of a version that is not known."""
        rewrite_graph(repository.graph, header={"version": 99})
        refused(*_with_graph(repository), said=("graph.qg has format version 99",))

    def test_task_does_not_import(self, repository: MockRepository, refused: Refused) -> None:
        """A graph whose task class is not to be found; label and class are named."""
        rewrite_graph(
            repository.graph, pipeline=(b"tests.kit.tasks.moodytask.MoodyTask", b"no.such.package.Task")
        )
        said = refused(*_with_graph(repository), said=("no.such.package.Task", "'isr'", "PYTHONPATH"))
        assert "does not import" in said

    def test_other_universe(self, repository: MockRepository, refused: Refused) -> None:
        """A graph built for another dimension universe; both are named."""
        dimensions = DimensionConfig()
        dimensions["version"] = 99
        shutil.rmtree(repository.root)
        with open_repository(repository.root, dimensions=dimensions):
            pass
        refused(*_with_graph(repository), said=("dimension universe daf_butler version", "version 99"))


class TestRepository:
    def test_missing(self, repository: MockRepository, refused: Refused) -> None:
        refused("run", "-b", "nowhere", "-g", repository.graph, said=("nowhere", "-b"))

    def test_empty_folder(self, repository: MockRepository, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        refused("run", "-b", tmp_path / "empty", "-g", repository.graph, said=("empty",))

    def test_not_configuration(self, repository: MockRepository, refused: Refused, tmp_path: Path) -> None:
        refused("run", "-b", repository.graph, "-g", repository.graph, said=("graph.qg",))

    @pytest.mark.parametrize("which", ["gen3.sqlite3", "."])
    def test_read_only(self, repository: MockRepository, refused: Refused, which: str) -> None:
        place = repository.root / which
        mode = place.stat().st_mode
        place.chmod(mode & ~0o222)
        try:
            refused(*_with_graph(repository), call=call_as_mortal, said=("read-only", str(place)))
        finally:
            place.chmod(mode)

    def test_not_the_graphs(self, repository: MockRepository, refused: Refused, tmp_path: Path) -> None:
        other = tmp_path / "other"
        with open_repository(other) as repo:
            repo.butler.collections.register(INPUT_CHAIN)
        shutil.rmtree(repository.root)
        shutil.copytree(other, repository.root)
        refused(*_with_graph(repository), said=("repository",))

    def test_dataset_type_clash(self, repository: MockRepository, refused: Refused) -> None:
        with repository.butler(writeable=True) as butler:
            butler.registry.registerDatasetType(
                DatasetType("post_isr", ["visit"], "StructuredDataDict", universe=butler.dimensions)
            )
        refused(*_with_graph(repository), said=("post_isr",))

    def test_unregistered(self, repository: MockRepository, refused: Refused) -> None:
        refused(
            "run",
            "-b",
            repository.root,
            "-g",
            repository.graph,
            said=("post_isr", "--register-dataset-types"),
        )

    def test_run_exists(self, repository: MockRepository, refused: Refused) -> None:
        with repository.butler(writeable=True) as butler:
            butler.collections.register(OUTPUT_RUN)
        refused(*_with_graph(repository), said=(OUTPUT_RUN, "--extend-run"))


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("-j", "0"), "-j"),
            (("-j", "-1"), "-j"),
            (("-j", "many"), "-j"),
            (("--model", "poool"), "Did you mean pool?"),
            (("--memory-per-quantum", "lots"), "4GB"),
            (("--memory-per-quantum", "-4GB"), "4GB"),
            (("--memory-per-quantum", "0"), "memory"),
            (("--memory-per-quantum", "4PB"), "4GB"),
            (("-n", "0"), "-n"),
            (("--timeout", "0"), "--timeout"),
            (("--timeout", "soon"), "--timeout"),
            (("--timeout", "nan"), "--timeout"),
            (("-p", "pipeline.yaml"), "-p"),
            (("-d", "visit = 1"), "--data-query"),
            (("-c", "isr:a=1"), "--config"),
            (("--save-qgraph", "x.qgraph"), "--save-qgraph"),
            (("--output-run", "u/other"), "u/other"),
            (("--extend-run",), "does not exist"),
            (("-i", "nothing/here"), "nothing/here"),
            (("-o", "input_run"), "input_run"),
            (("--frobnicate",), "--frobnicate"),
            (("stray",), "stray"),
            (("--run-dir", "/proc/books"), "/proc/books"),
            (("--run-dir", "/dev/null"), "/dev/null"),
            (("--run-dir", "/dev/null/books"), "/dev/null/books"),
            (("--summary", "/proc/summary.json"), "/proc/summary.json"),
            (("--summary", "/nowhere/summary.json"), "/nowhere/summary.json"),
            (("--summary", "/proc"), "/proc"),
            (("--summary", ""), "--summary"),
            (("-g", ""), "-g"),
            (("-b", ""), "-b"),
            (("--run-dir", ""), "--run-dir"),
            (("--model", ""), "--model"),
            (("--init-only", "--summary", "x.json"), "--summary"),
        ],
    )
    def test_refused(
        self, repository: MockRepository, refused: Refused, options: tuple[str, ...], said: str
    ) -> None:
        refused(*_with_graph(repository, *options), said=(said,))

    def test_nothing(self, repository: MockRepository, refused: Refused) -> None:
        refused("run", "-b", repository.root, said=("-g", "-p"))

    def test_run_dir_taken(self, repository: MockRepository, refused: Refused, folder: Path) -> None:
        (folder / "books").mkdir()
        (folder / "books" / "run.json").write_text("{}")
        refused(*_with_graph(repository, "--run-dir", "books"), said=("books", "--run-dir"))

    def test_run_dir_not_writable(self, repository: MockRepository, refused: Refused, folder: Path) -> None:
        (folder / "locked").mkdir(mode=0o555)
        refused(
            *_with_graph(repository, "--run-dir", "locked/books"),
            call=call_as_mortal,
            said=("locked/books", "--run-dir"),
        )

    def test_summary_not_writable(self, repository: MockRepository, refused: Refused, folder: Path) -> None:
        (folder / "locked").mkdir(mode=0o555)
        refused(
            *_with_graph(repository, "--summary", "locked/s.json"),
            call=call_as_mortal,
            said=("locked/s.json", "--summary"),
        )


class TestBuilding:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("-p", "no.yaml"), ("no.yaml", "-p")),
            (("-c", "isrr:int_value=1"), ("isrr",)),
            (("-c", "isr:no_such_key=1"), ("no_such_key",)),
            (("-c", "isr:int_value=pear"), ("int_value",)),
            (("-c", "isr"), ("LABEL:KEY=VALUE",)),
            (("-c", "isr:int_value"), ("LABEL:KEY=VALUE",)),
            (("-C", "isr:no.py"), ("no.py",)),
            (("-C", "isr"), ("LABEL:FILE",)),
            (("-d", "visit = "), ("visit =",)),
            (("-d", "vist = 1"), ("vist",)),
            (("-d", "visit = 77"), ("no quanta",)),
            (("-i", "nothing/here"), ("nothing/here",)),
            (("-o", INPUT_CHAIN + "/x", "--output-run", "input_run"), ("input_run",)),
            (("--save-qgraph", "/proc/graph.qg"), ("/proc/graph.qg",)),
            (("--save-qgraph", "/dev/null/graph.qg"), ("/dev/null/graph.qg",)),
            (("--save-qgraph", "graph.txt"), (".qg",)),
        ],
    )
    def test_refused(
        self, repository: MockRepository, refused: Refused, options: tuple[str, ...], said: tuple[str, ...]
    ) -> None:
        refused(*_with_pipeline(repository, *options), said=said)

    def test_no_output(self, repository: MockRepository, refused: Refused) -> None:
        pipeline = repository.graph.with_name("pipeline.yaml")
        refused("run", "-b", repository.root, "-p", pipeline, "-i", INPUT_CHAIN, said=("-o",))

    def test_not_pipeline(self, repository: MockRepository, refused: Refused) -> None:
        refused(*_with_pipeline(repository, "-p", repository.graph), said=("graph.qg",))

    def test_task_does_not_import(self, repository: MockRepository, refused: Refused, tmp_path: Path) -> None:
        file = tmp_path / "p.yaml"
        file.write_text("description: x\ntasks:\n  isr:\n    class: no.such.Task\n")
        refused(*_with_pipeline(repository, "-p", file), said=("no.such.Task",))

    def test_save_not_writable(self, repository: MockRepository, refused: Refused, folder: Path) -> None:
        (folder / "locked").mkdir(mode=0o555)
        refused(
            *_with_pipeline(repository, "--save-qgraph", "locked/g.qg"),
            call=call_as_mortal,
            said=("locked/g.qg",),
        )

    def test_graph_outlives_what_comes_after_it(self, repository: MockRepository, folder: Path) -> None:
        """Where only the registry is in the way, the graph that was built is kept, and its name is said."""
        before = repository.dump()
        pipeline = repository.graph.with_name("pipeline.yaml")
        result = call("run", "-b", repository.root, "-p", pipeline, "-i", INPUT_CHAIN, "-o", "u/me")
        one_message(result, "dataset types are not registered", "--register-dataset-types")
        (kept,) = (name for name, content in _files(folder).items() if content is not None)
        assert f"The graph is saved as {kept}" in result.err
        assert repository.dump() == before
