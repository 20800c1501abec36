"""`--provenance`: upstream's provenance graph of a run, in the run's RUN; read by upstream's own commands."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from lsst.pipe.base import automatic_connection_constants as acc
from lsst.pipe.base.cli.cmd import commands as upstream
from lsst.pipe.base.quantum_graph import ProvenanceQuantumGraph

from qgexec.errors import UsageError
from qgexec.rubin.compat import provenance_name
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository
from tests.kit.commands.pipetask import pipetask
from tests.kit.commands.qgexec import Moods, Result, call, one_message

NAME = "run_provenance"
HAS_IT = hasattr(acc, "PROVENANCE_DATASET_TYPE_NAME") and hasattr(upstream, "provenance_report")

LATER = ("calibrate", "summary", "final")

newer = pytest.mark.skipif(
    not HAS_IT, reason="lsst-pipe-base has run_provenance from 30.0.1 and 30.2026.400 on"
)

Run = Callable[..., Result]


@pytest.fixture
def run(repository: MockRepository, folder: Path) -> Run:
    """Runs the standard graph with `--provenance`, in `books`."""

    def run(*options: object) -> Result:
        given = ["run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
        return call(*given, "--provenance", "--run-dir", "books", *options)

    return run


def graph_in(repository: MockRepository) -> ProvenanceQuantumGraph:
    """Return the graph that the RUN has; of an earlier one nothing is left."""
    with repository.butler() as butler:
        (ref,) = butler.query_datasets(NAME, OUTPUT_RUN)
        graph: ProvenanceQuantumGraph = butler.get(ref)
    assert len([*repository.root.rglob("*run_provenance*.qg")]) == 1
    return graph


def statuses(repository: MockRepository) -> dict[tuple[str, str], int]:
    """Return how many quanta of each task are in each state."""
    nodes = graph_in(repository).quantum_only_xgraph.nodes(data=True)
    return dict(Counter((info["task_label"], info["status"].name) for _, info in nodes))


def told(repository: MockRepository) -> dict[tuple[str, str], int]:
    """Return what `butler provenance-report` says of quanta that did not succeed."""
    given = [str(repository.root), OUTPUT_RUN, "--status-report", "status.json", "--state", "BLOCKED"]
    result = CliRunner().invoke(upstream.provenance_report, given)
    assert result.exit_code == 0, result.output
    report = json.loads(Path("status.json").read_text())
    return {
        (label, state): sum(map(len, by_cause.values()))
        for label, by_state in report.items()
        for state, by_cause in by_state.items()
    }


ALL_DONE = {("isr", "SUCCESSFUL"): 8, ("calibrate", "SUCCESSFUL"): 8} | {
    ("summary", "SUCCESSFUL"): 2,
    ("final", "SUCCESSFUL"): 1,
}
ONE_FAILED = {
    ("isr", "SUCCESSFUL"): 7, ("isr", "FAILED"): 1,
    ("calibrate", "SUCCESSFUL"): 7, ("calibrate", "BLOCKED"): 1,
    ("summary", "SUCCESSFUL"): 1, ("summary", "BLOCKED"): 1, ("final", "BLOCKED"): 1,
}  # fmt: skip


@newer
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_failures_and_resume(run: Run, repository: MockRepository, moods: Moods, processes: int) -> None:
    """What failed and what it blocked is in it; when they have succeeded since, the new one says so."""
    moods.set({"isr 1,1": "raise"})
    assert run("-j", processes).code == 1
    assert statuses(repository) == ONE_FAILED
    assert told(repository) == {("isr", "FAILED"): 1} | {(label, "BLOCKED"): 1 for label in LATER}
    given = ["report", repository.root, repository.graph, "--force-v2", "--full-output-filename", "r"]
    assert pipetask(*given).code == 0
    assert json.loads(Path("r").read_text())["tasks"]["isr"]["n_failed"] == 1
    moods.set({})
    assert call("resume", "books").code == 0
    assert statuses(repository) == ALL_DONE
    assert call("report", repository.root, repository.graph).code == 0
    with repository.butler() as butler:  # nothing of the run is inside of the graph alone
        assert len([*butler.registry.queryDatasets("isr_log", collections=OUTPUT_RUN)]) == 8
        shutil.rmtree(repository.root / OUTPUT_RUN / NAME)
        ref = butler.query_datasets("isr_metadata", OUTPUT_RUN)[0]
        assert butler.get(ref) is not None


@pytest.mark.thorough
@newer
def test_what_was_not_reached(run: Run, repository: MockRepository, moods: Moods) -> None:
    """Quanta that nobody tried are not said to have failed; `resume` can be told of it, too."""
    moods.set({"isr": "raise"})
    assert run("--fail-fast").code == 1
    found = statuses(repository)
    assert (found["isr", "FAILED"], found["isr", "UNKNOWN"]) == (1, 7)
    moods.set({})
    assert call("resume", "books", "--no-provenance").code == 0
    assert statuses(repository) == found
    assert call("resume", "books", "--provenance").code == 0
    assert statuses(repository) == ALL_DONE


@pytest.mark.thorough
@newer
def test_of_another_graph(run: Run, repository: MockRepository) -> None:
    """A RUN keeps what is known of it: the same graph once more replaces it, a smaller one is refused."""
    assert run().code == 0
    quanta = [str(quantum_id) for quantum_id in graph_in(repository).quanta_by_task["isr"].values()]
    again = ["--extend-run", "--run-dir", "again"]
    assert run(*again).code == 0
    assert statuses(repository) == ALL_DONE
    before = repository.dump()
    refused = run("--qgraph-node-id", quanta[0], "--extend-run", "--run-dir", "part")
    one_message(refused, OUTPUT_RUN, "another graph", "leave --provenance out")
    assert not Path("part").exists()
    assert repository.dump() == before


@newer
def test_beside_ingest_graph(run: Run, repository: MockRepository) -> None:
    """`butler ingest-graph` closes the RUN with it; then nothing more is to be known of that RUN."""
    assert run().code == 0
    with repository.butler(writeable=True) as butler:  # as of metadata that only the graph has
        refs = butler.query_datasets("isr_metadata", OUTPUT_RUN)
        butler.pruneDatasets(refs, purge=True, unstore=True, disassociate=True)
    closed = CliRunner().invoke(upstream.ingest_graph, [str(repository.root), "--output-run", OUTPUT_RUN])
    assert closed.exit_code == 0, closed.output
    with repository.butler() as butler:
        assert butler.get(butler.query_datasets("isr_metadata", OUTPUT_RUN)[0]) is not None
        assert butler.get(butler.query_datasets("isr_log", OUTPUT_RUN)[0]) is not None
    one_message(run("--extend-run", "--run-dir", "again"), OUTPUT_RUN, "butler ingest-graph")
    assert statuses(repository) == ALL_DONE


@pytest.mark.thorough
@newer
def test_trouble_with_it(run: Run, repository: MockRepository, moods: Moods) -> None:
    """The run has its report all the same, one message says what is wrong, and `resume` mends it."""
    assert run("--no-provenance").code == 0
    log = next(iter((repository.root / OUTPUT_RUN / "isr_log").rglob("*.json")))
    content = log.read_bytes()
    log.write_bytes(b"{")
    broken = call("resume", "books", "--provenance")
    assert broken.code == 2
    assert sum(line.startswith("Error: ") for line in broken.err.splitlines()) == 1
    assert "its provenance graph is not in" in broken.err
    assert log.name in broken.err
    assert "qgexec resume" in broken.err
    assert "succeeded" in broken.out
    log.write_bytes(content)
    assert call("resume", "books").code == 0
    assert statuses(repository) == ALL_DONE
    (file,) = repository.root.rglob("*run_provenance*.qg")
    with repository.butler(writeable=True) as butler:  # as a kill leaves it between file and registry
        content = file.read_bytes()
        butler.pruneDatasets(
            butler.query_datasets(NAME, OUTPUT_RUN), purge=True, unstore=True, disassociate=True
        )
        file.write_bytes(content)
    assert call("resume", "books").code == 0
    assert statuses(repository) == ALL_DONE
    assert [*Path("books").glob("provenance*")] == []


def test_older_versions(run: Run, repository: MockRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where upstream knows no such dataset, one message says which versions do; nothing has changed."""
    monkeypatch.delattr(acc, "PROVENANCE_DATASET_TYPE_NAME", raising=False)
    with pytest.raises(UsageError) as caught:
        provenance_name()
    before = repository.dump()
    one_message(run(), caught.value.message, "lsst-pipe-base", "30.0.1", "30.2026.400")
    assert repository.dump() == before
    assert not Path("books").exists()
