"""`qgexec purge`, `cleanup` and `update-graph-run`, compared with pipetask's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lsst.daf.butler import Butler, CollectionType
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from qgexec.cli.housekeeping import purge
from tests.kit.butler.repos import INPUT_RUN, N_QUANTA, OUTPUT, MockRepository, dump_repository
from tests.kit.commands.pipetask import pipetask
from tests.kit.commands.qgexec import call, one_message, report_of

CHAINS = {"a": ["a/1", "a/sub", "b/1", INPUT_RUN], "a/sub": ["a/sub/1", INPUT_RUN]}


def define(butler: Butler, chains: Mapping[str, Sequence[str]]) -> None:
    """Make CHAINED collections; members that are not there are RUNs, or TAGGED if they are called so."""
    for name in chains:
        butler.collections.register(name, CollectionType.CHAINED)
    for name, members in chains.items():
        for member in members:
            kind = CollectionType.TAGGED if member.endswith("tags") else CollectionType.RUN
            if member not in chains:
                butler.collections.register(member, kind)
        butler.collections.redefine_chain(name, members)


def collections(root: Path) -> dict[str, Any]:
    """Return the collections of a repository."""
    found = dump_repository(root)["collections"]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def two(repository: MockRepository, tmp_path: Path) -> tuple[Path, Path]:
    """Two equal repositories with collections to be removed: one for each command."""
    with repository.butler(writeable=True) as butler:
        define(butler, CHAINS)
        butler.collections.register("a/old")
        butler.collections.register("a/oldtags", CollectionType.TAGGED)
    other = tmp_path / "other"
    shutil.copytree(repository.root, other)
    return repository.root, other


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (["purge", "a"], {"a", "a/1", "a/sub"}),
        (["purge", "a", "--recursive"], {"a", "a/1", "a/sub", "a/sub/1"}),
    ],
)
def test_purge_is_pipetasks(arguments: list[str], gone: set[str], two: tuple[Path, Path]) -> None:
    """The same collections are removed, and nothing else."""
    before = collections(two[0])
    for run, root in zip((call, pipetask), two, strict=True):
        result = run(*arguments, "-b", root, "--no-confirm")
        assert result.code == 0, (result.out, result.err)
    assert collections(two[0]) == collections(two[1])
    assert before.keys() - collections(two[0]).keys() == gone
    assert dump_repository(two[0])["datasets"] == dump_repository(two[1])["datasets"]


def test_purge_of_tagged_collections(repository: MockRepository) -> None:
    """They are removed although they are members of the chain, which pipetask fails at."""
    with repository.butler(writeable=True) as butler:
        define(butler, {"a": ["a/1", "a/tags"]})
    before = collections(repository.root)
    assert call("purge", "-b", repository.root, "a", "--no-confirm").code == 0
    assert before.keys() - collections(repository.root).keys() == {"a", "a/1", "a/tags"}


def test_cleanup_keeps_what_is_in_the_collection(two: tuple[Path, Path]) -> None:
    """What is below it by name and not in it goes, with its datasets; members of members stay."""
    root = two[0]
    with Butler.from_config(str(root), writeable=True) as butler:
        butler.collections.register("ab")
        before = collections(root)
    result = call("cleanup", "-b", root, "a", "--no-confirm")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == ["RUN      a/old", "other    a/oldtags", "Removed."]
    assert before.keys() - collections(root).keys() == {"a/old", "a/oldtags"}
    assert call("cleanup", "-b", root, "a", "--no-confirm").out == "There is nothing to remove.\n"


@pytest.mark.every(2)
@pytest.mark.parametrize(("answer", "removed"), [("n\n", False), ("y\n", True)])
def test_asks_before(answer: str, removed: bool, two: tuple[Path, Path]) -> None:
    """All is shown, and removed if that is confirmed."""
    before = collections(two[0])
    done = CliRunner().invoke(
        purge, ["-b", str(two[0]), "a"], input=answer, obj={"logging": None, "traceback": False}
    )
    assert done.exit_code == 0
    assert "RUN      a/1" in done.output
    assert "CHAINED  a/sub" in done.output
    assert (collections(two[0]) != before) == removed


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["purge", "nosuch"], "no collection 'nosuch'"),
        (["purge", "a/1"], "'a/1' is a RUN collection, not CHAINED"),
        (["purge", "a/sub"], "'a/sub' is a member of a"),
        (["purge", "c"], "'c/1' is also a member of d"),
        (["cleanup", "nosuch"], "no collection 'nosuch'"),
        (["cleanup", "a/1"], "'a/1' is a RUN collection, not CHAINED"),
        (["cleanup", "e"], "'e/1' is not in 'e', but in d"),
    ],
)
def test_refused(arguments: list[str], said: str, two: tuple[Path, Path]) -> None:
    """What cannot be removed is named; nothing is."""
    root = two[0]
    with Butler.from_config(str(root), writeable=True) as butler:
        define(butler, {"c": ["c/1"], "d": ["c/1", "e/1"], "e": []})
    before = collections(root)
    one_message(call(*arguments, "-b", root, "--no-confirm"), said)
    assert collections(root) == before


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cleanup", "x/?"], "'x/?' is a pattern"),
        (["cleanup", "x/m"], "'x/m/[old]' is a pattern"),
        (["purge", "x/?"], "'x/?' is a pattern"),
        (["purge", "x/n"], "'x/n/*' is a pattern"),
    ],
)
def test_names_that_are_patterns(arguments: list[str], said: str, repository: MockRepository) -> None:
    """What would take others with it is not removed."""
    with repository.butler(writeable=True) as butler:
        define(butler, {"x/?": [], "x/m": ["x/m/1"], "x/n": ["x/n/1", "x/n/*"]})
        butler.collections.register("x/m/[old]")
    before = collections(repository.root)
    one_message(call(*arguments, "-b", repository.root, "--no-confirm"), said)
    assert collections(repository.root) == before


def test_terminal_obeys_no_name(repository: MockRepository) -> None:
    """Names of collections are shown without what a terminal would obey."""
    with repository.butler(writeable=True) as butler:
        define(butler, {"x": []})
        butler.collections.register("x/\x1b]0;old\x07")
    done = call("cleanup", "x", "-b", repository.root, "--no-confirm")
    assert (done.code, done.out) == (0, "RUN      x/?]0;old?\nRemoved.\n"), done.err


def test_graph_for_another_run(repository: MockRepository, folder: Path) -> None:
    """The new graph has other UUIDs and the new RUN, as pipetask's has; both graphs can be executed."""
    for run, name in ((call, "ours.qg"), (pipetask, "theirs.qg")):
        assert run("update-graph-run", repository.graph, "u/again", name).code == 0
    old, ours, theirs = (
        PredictedQuantumGraph.read_execution_quanta(str(path))
        for path in (repository.graph, "ours.qg", "theirs.qg")
    )
    assert ours.header.output_run == theirs.header.output_run == "u/again"
    assert set(ours).isdisjoint(old)
    data_ids = [
        {label: set(quanta) for label, quanta in graph.quanta_by_task.items()}
        for graph in (old, ours, theirs)
    ]
    assert data_ids[0] == data_ids[1] == data_ids[2]
    for graph, books in ((repository.graph, "first"), ("ours.qg", "second")):
        done = call("run", "-b", repository.root, "-g", graph, "--register-dataset-types", "--run-dir", books)
        assert done.code == 0, done.err
        assert report_of(folder / books)["all_succeeded"]
    with repository.butler() as butler:
        assert butler.collections.get_info(OUTPUT).children[0] == "u/again"
        assert len(butler.query_datasets("isr_log", "u/again", find_first=False)) == 8
    assert len(ours) == N_QUANTA


def test_graph_for_another_run_refused(repository: MockRepository, folder: Path) -> None:
    """What cannot be read or written is named."""
    one_message(call("update-graph-run", "no.qg", "u/again", "new.qg"), "no.qg does not exist")
    one_message(call("update-graph-run", repository.graph, "u/again", "new.qgraph"), "does not end in .qg")
    one_message(call("update-graph-run", repository.graph, " ", "new.qg"), "is empty")
    assert list(folder.iterdir()) == []
