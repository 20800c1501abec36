"""`qgexec.rubin.preexec`: the registry before a run, in real repositories, and as pipetask leaves it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler, CollectionType, DatasetType
from lsst.daf.butler.direct_butler._direct_butler_collections import DirectButlerCollections
from lsst.pipe.base import TaskMetadata
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask

from qgexec.config.buildoptions import PipelineOptions
from qgexec.errors import CollectionError, DatasetTypeError, InitOutputsError, QgexecError, RepositoryError
from qgexec.rubin import preexec
from qgexec.rubin.build import build_graph, make_graph
from qgexec.rubin.collections import RunCollections
from qgexec.rubin.graphfile import GraphFile, prepare_graph
from qgexec.rubin.initoutputs import InitOutputs
from qgexec.rubin.pipelines import BuiltPipeline
from qgexec.rubin.preexec import Begun, Preparation, Prepared, prepare_run
from tests.kit.butler.repos import (
    INPUT_CHAIN,
    INPUT_RUN,
    OUTPUT,
    OUTPUT_RUN,
    MockRepository,
    add_standard_tasks,
    dump_repository,
    open_repository,
    pipeline_yaml,
    save_graph,
    task_config,
)
from tests.kit.crash.faults import at_call
from tests.kit.crash.starts import within_register
from tests.kit.processes import warm
from tests.kit.processes.kills import dies, killed_at_commit

REGISTER = Preparation(register_dataset_types=True)
AGAIN = Preparation(register_dataset_types=True, extend_run=True)
UNPRIVILEGED = 65534

Refused = Callable[..., str]


@pytest.fixture
def graph(repository: MockRepository) -> GraphFile:
    return prepare_graph(repository.graph, repository.root, None)


@pytest.fixture
def refused(repository: MockRepository, graph: GraphFile) -> Refused:
    """Prepare, and return the message of the error; nothing in the repository has changed."""

    def refused(error: type[QgexecError], preparation: Preparation, given: GraphFile = graph) -> str:
        before = repository.dump()
        with pytest.raises(error) as raised:
            prepare_run(str(repository.root), given, preparation)
        assert repository.dump() == before
        return str(raised.value)

    return refused


class RefusingTask(DynamicTestPipelineTask):
    """A task whose constructor raises."""

    def __init__(self, **kwargs: Any) -> None:
        raise RuntimeError("no such filter curve")


class TestWritten:
    """What a preparation leaves in the repository."""

    def test_same_as_pipetask(self, repository: MockRepository, graph: GraphFile, tmp_path: Path) -> None:
        """Collections, dataset types and datasets are those that ``pipetask run --init-only`` makes."""
        twin = tmp_path / "twin"
        shutil.copytree(repository.root, twin)
        options = ["--register-dataset-types", "--init-only", "-i", INPUT_CHAIN, "-o", OUTPUT]
        warm.run(
            [Path(sys.executable).with_name("pipetask"), "run", "-b", twin, "-g", repository.graph, *options],
            check=True,
            capture_output=True,
            timeout=120,
        )
        prepared = prepare_run(str(repository.root), graph, REGISTER)
        assert prepared == Prepared(OUTPUT_RUN, OUTPUT, (INPUT_RUN,), fresh=True)
        assert repository.dump() == dump_repository(twin)

    def test_inputs_are_visible_from_the_output(self, repository: MockRepository, graph: GraphFile) -> None:
        """The output collection has the RUN first, then the flattened inputs."""
        prepare_run(str(repository.root), graph, REGISTER)
        with repository.butler(collections=OUTPUT) as butler:
            assert butler.collections.get_info(OUTPUT).children == (OUTPUT_RUN, INPUT_RUN)
            assert butler.get("raw_mock", instrument="Cam1", visit=1, detector=1)
            assert butler.get("isr_schema").run is None
            assert butler.get("isr_config").dimensions == ["visit", "detector"]
            assert "numpy" in butler.get("packages")

    @pytest.mark.parametrize(
        ("left_out", "names"),
        [
            (Preparation(register_dataset_types=True, init_writes=False), set()),
            (
                Preparation(register_dataset_types=True, versions=False),
                {"isr_schema", *(f"{t}_config" for t in ("isr", "calibrate", "summary", "final"))},
            ),
        ],
    )
    def test_parts_can_be_left_out(
        self, repository: MockRepository, graph: GraphFile, left_out: Preparation, names: set[str]
    ) -> None:
        """Without init-outputs nothing is written but collections; without versions no packages."""
        prepare_run(str(repository.root), graph, left_out)
        with repository.butler() as butler:
            refs = butler.query_all_datasets(OUTPUT_RUN, find_first=False)
            assert {ref.datasetType.name for ref in refs} == names

    def test_only_a_run(self, tmp_path: Path) -> None:
        """A graph without an output collection gets its RUN alone."""
        with open_repository(tmp_path / "repo") as repo:
            add_standard_tasks(repo)
            graph = prepare_graph(save_graph(repo, tmp_path / "graph.qg", output=None), tmp_path, None)
            prepared = prepare_run(repo.butler, graph)
            assert prepared.output is None
            assert set(repo.butler.collections.query("*")) == {INPUT_RUN, INPUT_CHAIN, OUTPUT_RUN}

    def test_without_the_chain(self, repository: MockRepository, graph: GraphFile) -> None:
        """The output collection of a graph can be left alone."""
        prepared = prepare_run(
            str(repository.root), graph, Preparation(register_dataset_types=True, chain=False)
        )
        assert prepared.output is None
        with repository.butler() as butler:
            assert OUTPUT_RUN in butler.collections.query("*")
            assert OUTPUT not in butler.collections.query("*")

    @pytest.mark.thorough
    def test_second_run_of_one_output(self, repository: MockRepository, graph: GraphFile) -> None:
        """A new RUN comes before the older ones of its output collection."""
        prepare_run(str(repository.root), graph, REGISTER)
        yaml = pipeline_yaml(graph.pipeline_graph, repository.root / "p.yaml")
        path = repository.root / "second.qg"
        build_graph(str(repository.root), str(yaml), output=OUTPUT, output_run="second", save_to=path)
        prepare_run(str(repository.root), prepare_graph(path, repository.root, None))
        with repository.butler() as butler:
            assert butler.collections.get_info(OUTPUT).children == ("second", OUTPUT_RUN, INPUT_RUN)

    def test_given_collections_win(self, repository: MockRepository, graph: GraphFile) -> None:
        """Collections that are given replace the graph's own."""
        given = Preparation(inputs=(INPUT_RUN,), output="mine", register_dataset_types=True)
        assert prepare_run(str(repository.root), graph, given).output == "mine"
        with repository.butler() as butler:
            assert butler.collections.get_info("mine").children == (OUTPUT_RUN, INPUT_RUN)
            assert OUTPUT not in butler.collections.query("*", include_chains=True)


class TestAgain:
    """A RUN that exists."""

    @pytest.fixture(autouse=True)
    def first(self, repository: MockRepository, graph: GraphFile) -> None:
        prepare_run(str(repository.root), graph, REGISTER)

    def test_needs_to_be_asked_for(self, refused: Refused) -> None:
        """A RUN that exists is refused without --extend-run."""
        message = refused(CollectionError, REGISTER)
        assert OUTPUT_RUN in message
        assert "--extend-run" in message

    def test_changes_nothing(self, repository: MockRepository, graph: GraphFile) -> None:
        """Preparing again what is there compares it, and writes nothing."""
        before = repository.dump()
        assert prepare_run(str(repository.root), graph, AGAIN).fresh is False
        assert repository.dump() == before

    def test_inputs_that_grew_meanwhile(self, repository: MockRepository, graph: GraphFile) -> None:
        """A run goes on although its input chain grew; inputs that are asked for must agree."""
        with repository.butler(writeable=True) as butler:
            butler.collections.register("new_data")
            butler.collections.prepend_chain(INPUT_CHAIN, "new_data")
        prepare_run(str(repository.root), graph, AGAIN)
        with pytest.raises(CollectionError, match="made from other inputs"):
            prepare_run(str(repository.root), graph, Preparation(inputs=(INPUT_CHAIN,), extend_run=True))

    def test_what_is_missing_is_written(self, repository: MockRepository, graph: GraphFile) -> None:
        """Init-outputs that an interrupted preparation did not write are written the next time."""
        before = repository.dump()
        with repository.butler(writeable=True, run=OUTPUT_RUN) as butler:
            refs = [butler.find_dataset(name) for name in ("isr_schema", "summary_config", "packages")]
            butler.pruneDatasets([ref for ref in refs if ref], unstore=True, purge=True, disassociate=True)
        prepare_run(str(repository.root), graph, AGAIN)
        assert repository.dump() == before

    def test_other_config(self, repository: MockRepository, refused: Refused, tmp_path: Path) -> None:
        """Another config under the same RUN is refused; label and field are named."""
        with Butler.from_config(str(repository.root), writeable=True, run=OUTPUT_RUN) as butler:
            ref = butler.find_dataset("isr_config")
            assert ref is not None
            config = butler.get(ref)
            config.int_value = 5
            butler.pruneDatasets([ref], unstore=True, purge=True, disassociate=True)
            butler.put(config, ref)
        message = refused(InitOutputsError, AGAIN)
        assert "'isr'" in message
        assert "int_value" in message

    def replace_packages(self, repository: MockRepository, **versions: str) -> None:
        with Butler.from_config(str(repository.root), writeable=True, run=OUTPUT_RUN) as butler:
            ref = butler.find_dataset("packages")
            assert ref is not None
            packages = butler.get(ref)
            packages.pop("numpy")
            packages.update(versions)
            butler.pruneDatasets([ref], unstore=True, purge=True, disassociate=True)
            butler.put(packages, ref)

    def test_other_versions(self, repository: MockRepository, graph: GraphFile, refused: Refused) -> None:
        """Another version of a package is refused, and both are named; it can be told to ignore them."""
        self.replace_packages(repository, numpy="0.0.1")
        message = refused(InitOutputsError, AGAIN)
        assert "numpy" in message
        assert "was 0.0.1" in message
        prepare_run(str(repository.root), graph, Preparation(extend_run=True, versions=False))

    def test_new_packages_are_added(self, repository: MockRepository, graph: GraphFile) -> None:
        """Packages that were not there before are added to those in the RUN."""
        self.replace_packages(repository, old_one="1.0")
        prepare_run(str(repository.root), graph, AGAIN)
        with repository.butler(collections=OUTPUT_RUN) as butler:
            packages = butler.get("packages")
        assert packages["old_one"] == "1.0"
        assert "numpy" in packages

    def test_graph_that_was_not_built_to_extend(self, repository: MockRepository, refused: Refused) -> None:
        """A graph with other dataset IDs for what the RUN has is refused before anything is written."""
        other = prepare_graph(repository.bare_graph, repository.root, None)
        assert "not built to extend" in refused(InitOutputsError, AGAIN, other)


class TestBegun:
    """A preparation that is brought to its end after it was killed."""

    @pytest.mark.every(3)
    @pytest.mark.parametrize("place", ["register", "define", "write"])
    def test_in_a_chain_that_is_there(self, repository: MockRepository, graph: GraphFile, place: str) -> None:
        """The chain gets the new RUN, wherever it was cut off, and the RUN still counts as new."""
        prepare_run(str(repository.root), graph, REGISTER)
        yaml = pipeline_yaml(graph.pipeline_graph, repository.root / "p.yaml")
        path = repository.root / "second.qg"
        build_graph(str(repository.root), str(yaml), output=OUTPUT, output_run="second", save_to=path)
        second = prepare_graph(path, repository.root, None)
        owner, when = {
            "register": (DirectButlerCollections, "after"),
            "define": (RunCollections, "after"),
            "write": (InitOutputs, "after"),
        }[place]

        def cut_off() -> None:
            at_call(owner, place, when)()
            prepare_run(str(repository.root), second)

        dies(cut_off)
        prepared = prepare_run(str(repository.root), second, begun=Begun(fresh=True))
        assert prepared == Prepared("second", OUTPUT, (OUTPUT_RUN, INPUT_RUN), fresh=True)
        with repository.butler() as butler:
            assert butler.collections.get_info(OUTPUT).children == ("second", OUTPUT_RUN, INPUT_RUN)

    @pytest.mark.every(7)
    @pytest.mark.parametrize(
        ("place", "prune"),
        [
            ("register", "unstore"),
            ("define", None),
            ("define", "purge"),
            ("write", None),
            ("write", "unstore"),
            ("prune_replaced", "purge"),
            ("prune_replaced", "unstore"),
        ],
    )
    def test_replacing(
        self, repository: MockRepository, graph: GraphFile, place: str, prune: str | None
    ) -> None:
        """Wherever it was cut off, the RUN that was to be replaced is, and no other one."""
        prepare_run(str(repository.root), graph, REGISTER)
        made = BuiltPipeline(
            PipelineOptions(str(pipeline_yaml(graph.pipeline_graph, repository.root / "p.yaml")))
        )
        components = make_graph(
            str(repository.root), made, output=OUTPUT, output_run="second", replace_run=True
        )
        second = prepare_graph(components.assemble(), repository.root, None)
        asked = Preparation(replace_run=True, prune_replaced=prune)
        owner = {
            "register": DirectButlerCollections,
            "define": RunCollections,
            "write": InitOutputs,
            "prune_replaced": preexec,
        }[place]

        def cut_off() -> None:
            at_call(owner, place, "after")()
            prepare_run(str(repository.root), second, asked)

        dies(cut_off)
        again = replace(asked, replaced=OUTPUT_RUN)
        prepared = prepare_run(str(repository.root), second, again, begun=Begun(fresh=True))
        assert prepared.replaced == OUTPUT_RUN
        with repository.butler() as butler:
            assert butler.collections.get_info(OUTPUT).children == ("second", INPUT_RUN)
            assert (OUTPUT_RUN in butler.collections.query("*")) == (prune != "purge")
            assert butler.query_datasets("raw_mock", INPUT_RUN)

    def test_half_of_a_run_is_made_whole(self, repository: MockRepository, graph: GraphFile) -> None:
        """A RUN of which upstream has written the first half keeps its place in collections, and its doc."""

        def cut_off() -> None:
            within_register()
            with repository.butler(writeable=True) as butler:
                butler.collections.register(OUTPUT_RUN, doc="mine")

        dies(cut_off)
        with repository.butler(writeable=True) as butler:
            for name, members in (("before", [OUTPUT_RUN, INPUT_RUN]), ("behind", [INPUT_RUN, OUTPUT_RUN])):
                butler.collections.register(name, CollectionType.CHAINED)
                butler.collections.redefine_chain(name, members)
        prepare_run(str(repository.root), graph, AGAIN)
        with repository.butler() as butler:
            assert butler.collections.get_info("before").children == (OUTPUT_RUN, INPUT_RUN)
            assert butler.collections.get_info("behind").children == (INPUT_RUN, OUTPUT_RUN)
            assert butler.registry.getCollectionDocumentation(OUTPUT_RUN) == "mine"
            assert butler.get("isr_config", collections=OUTPUT_RUN).dimensions == ["visit", "detector"]

    @pytest.mark.thorough
    @pytest.mark.timeout(900)
    def test_killed_before_any_commit(self, repository: MockRepository, graph: GraphFile) -> None:
        """Whichever transaction a start is killed in, to prepare once more ends as if it had not been."""
        twin = repository.root.with_name("twin")
        shutil.copytree(repository.root, twin)
        prepare_run(str(twin), graph, REGISTER)
        undisturbed = dump_repository(twin)
        number = 0
        while True:
            number += 1
            shutil.rmtree(twin)
            shutil.copytree(repository.root, twin)
            if not killed_at_commit(number, lambda: prepare_run(str(twin), graph, REGISTER)):
                break
            prepare_run(str(twin), graph, REGISTER, begun=Begun(fresh=True))
            assert dump_repository(twin) == undisturbed, f"killed before commit {number}"
        assert number > len(undisturbed["dataset types"])  # type: ignore[arg-type]

    def test_what_others_have_run_is_not_ours(self, repository: MockRepository, graph: GraphFile) -> None:
        """A RUN that holds outputs of quanta by now was not made by the start that was killed."""
        prepare_run(str(repository.root), graph, REGISTER)
        with repository.butler(writeable=True, run=OUTPUT_RUN) as butler:
            butler.put(TaskMetadata(), "final_metadata", instrument="Cam1")
        with pytest.raises(CollectionError, match="exists already"):
            prepare_run(str(repository.root), graph, REGISTER, begun=Begun(fresh=True))

    def test_is_kept_as_plain_values(self) -> None:
        """What is to be done is the same when it was written and read."""
        for asked in (
            Preparation(),
            Preparation(inputs=("a", "b"), output="c", extend_run=None, chain=False),
        ):
            assert Preparation.from_json(json.loads(json.dumps(asked.to_json()))) == asked


class TestRefused:
    """What stands in the way is named, and nothing has changed."""

    def test_missing_dataset_types(self, refused: Refused) -> None:
        """All that are missing are named at once, with the option that registers them."""
        message = refused(DatasetTypeError, Preparation())
        for text in ("post_isr", "isr_config", "final_report", "packages", "--register-dataset-types"):
            assert text in message
        assert "raw_mock" not in message

    @pytest.mark.every(2)
    @pytest.mark.parametrize("register", [True, False])
    def test_dataset_type_clash(self, repository: MockRepository, refused: Refused, register: bool) -> None:
        """Both definitions are in the message."""
        with repository.butler(writeable=True) as butler:
            group = butler.dimensions.conform(["instrument"])
            butler.registry.registerDatasetType(DatasetType("post_isr", group, "StructuredDataDict"))
        message = refused(DatasetTypeError, Preparation(register_dataset_types=register))
        assert "{instrument}, StructuredDataDict" in message
        assert "detector" in message

    def test_convertible_storage_class(
        self, repository: MockRepository, graph: GraphFile, refused: Refused
    ) -> None:
        """As with pipetask, a storage class that can be converted is good to write, but not to register."""
        with repository.butler(writeable=True) as butler:
            name = "isr_metadata"
            wanted = graph.pipeline_graph.dataset_types[name].dataset_type
            butler.registry.registerDatasetType(wanted.overrideStorageClass("StructuredDataDict"))
            for node in graph.pipeline_graph.dataset_types.values():
                if node.name != name:
                    butler.registry.registerDatasetType(node.dataset_type)
            butler.registry.registerDatasetType(graph.pipeline_graph.packages_dataset_type)
        assert name in refused(DatasetTypeError, REGISTER)
        assert prepare_run(str(repository.root), graph).fresh

    def test_run_is_another_type_of_collection(self, repository: MockRepository, refused: Refused) -> None:
        """A TAGGED collection with the RUN's name is named as one."""
        with repository.butler(writeable=True) as butler:
            butler.collections.register(OUTPUT_RUN, CollectionType.TAGGED)
        assert "exists as a TAGGED collection" in refused(CollectionError, REGISTER)
        assert "exists as a TAGGED collection" in refused(CollectionError, AGAIN)

    def test_output_is_another_type_of_collection(self, repository: MockRepository, refused: Refused) -> None:
        """A RUN with the output collection's name is named as one."""
        with repository.butler(writeable=True) as butler:
            butler.collections.register(OUTPUT)
        assert "exists as a RUN collection, not CHAINED" in refused(CollectionError, REGISTER)

    def test_run_to_extend_does_not_exist(self, refused: Refused) -> None:
        """--extend-run needs a RUN."""
        assert "does not exist and cannot be extended" in refused(CollectionError, AGAIN)

    def test_other_run_than_the_graphs(self, refused: Refused) -> None:
        """The graph's datasets belong to its own RUN."""
        assert "not 'other'" in refused(CollectionError, Preparation(output_run="other"))

    def test_missing_inputs(self, repository: MockRepository, refused: Refused) -> None:
        """Input collections that do not exist are named."""
        assert "'nosuch'" in refused(CollectionError, Preparation(inputs=("nosuch",)))

    def test_task_that_cannot_be_constructed(self, tmp_path: Path) -> None:
        """Label, class and error are named, before the first write."""
        with open_repository(tmp_path / "repo") as repo:
            add_standard_tasks(repo, task_classes={"summary": RefusingTask}, configs={"isr": task_config()})
            save_graph(repo, tmp_path / "graph.qg", register=False)
        graph = prepare_graph(tmp_path / "graph.qg", tmp_path, None)
        before = dump_repository(tmp_path / "repo")
        with pytest.raises(InitOutputsError) as raised:
            prepare_run(str(tmp_path / "repo"), graph, REGISTER)
        for text in ("'summary'", "RefusingTask", "no such filter curve"):
            assert text in str(raised.value)
        assert dump_repository(tmp_path / "repo") == before

    def test_missing_repository(self, graph: GraphFile, tmp_path: Path) -> None:
        """A repository that is not there is named."""
        with pytest.raises(RepositoryError, match="no butler repository"):
            prepare_run(str(tmp_path / "nowhere"), graph, REGISTER)

    def test_read_only_butler(self, repository: MockRepository, graph: GraphFile) -> None:
        """A butler that was opened to read cannot prepare a run."""
        with repository.butler() as butler, pytest.raises(RepositoryError, match="is read-only"):
            prepare_run(butler, graph, REGISTER)

    @pytest.mark.every(2)
    @pytest.mark.skipif(os.geteuid() != 0, reason="takes files away from another user")
    @pytest.mark.parametrize("which", ["gen3.sqlite3", "."])
    def test_read_only_files(self, repository: MockRepository, tmp_path: Path, which: str) -> None:
        """A repository whose database or folder cannot be written is refused, and the path is named."""
        before = repository.dump()
        for folder in (*repository.root.parents, *repository.root.rglob("*"), repository.root):
            if Path(tempfile.gettempdir()) in folder.parents:  # all that the test runner has made
                folder.chmod(0o777 if folder.is_dir() else 0o666)
        (repository.root / which).chmod(0o444 if which != "." else 0o555)
        code = (
            "import os, sys, pathlib\n"
            "from qgexec.rubin.preexec import Preparation, prepare_run\n"
            "from qgexec.rubin.graphfile import prepare_graph\n"
            "graph = prepare_graph(sys.argv[2], pathlib.Path(sys.argv[1]), None)\n"
            f"os.setgid({UNPRIVILEGED})\n"
            f"os.setuid({UNPRIVILEGED})\n"
            "prepare_run(sys.argv[1], graph, Preparation(register_dataset_types=True))\n"
        )
        child = warm.run(
            [sys.executable, "-c", code, repository.root, repository.graph],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert child.returncode == 1
        assert "RepositoryError: the repository is read-only" in child.stderr
        assert f"{repository.root / which} cannot be written" in child.stderr
        assert repository.dump() == before
