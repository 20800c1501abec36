"""`qgexec.rubin.compat`: what it takes from upstream's private parts is there, and is what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lsst.daf.butler._rubin.temporary_for_ingest import TemporaryForIngest
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from qgexec.rubin.compat import (
    export_records,
    graph_components,
    registry_file,
    temporary_file_pattern,
)
from tests.kit.butler.repos import N_QUANTA, MockRepository


def test_registry_file(template: MockRepository) -> None:
    """A SQLite registry is a file."""
    with template.butler() as butler:
        assert registry_file(butler) == template.root / "gen3.sqlite3"


def test_export_records(template: MockRepository) -> None:
    """Each stored dataset has one record, found by datastore name and ID."""
    with template.butler() as butler:
        refs = butler.query_datasets("raw_mock", "input_run")
        (stored,) = export_records(butler, refs).values()
        assert set(stored.records) == {ref.id for ref in refs}


def test_graph_components(template: MockRepository, tmp_path: Path) -> None:
    """A graph's components can be written, and read as the same graph."""
    with PredictedQuantumGraph.open(str(template.graph)) as reader:
        reader.read_all()
        graph = reader.finish()
    components = graph_components(graph)
    components.write(str(tmp_path / "again.qg"))
    with PredictedQuantumGraph.open(str(tmp_path / "again.qg")) as reader:
        reader.read_all()
        assert reader.header.n_quanta == N_QUANTA
        assert reader.components.quantum_datasets == components.quantum_datasets
        assert reader.components.init_quanta == components.init_quanta
        assert set(reader.components.thin_graph.edges) == set(graph.quantum_only_xgraph.edges)


@pytest.mark.parametrize("name", ["visit_1.json", "visit.1.fits.gz", "no_extension", "(odd) [name]*.yaml"])
def test_temporary_file_pattern(name: str, tmp_path: Path) -> None:
    """Temporary files are known by their names as upstream makes them; those of other datasets are not."""
    pattern = temporary_file_pattern(ResourcePath(str(tmp_path / name)))
    for _ in range(20):
        with TemporaryForIngest.make_path(ResourcePath(str(tmp_path / name))) as temporary:
            assert pattern.fullmatch(temporary.basename())
    with TemporaryForIngest.make_path(ResourcePath(str(tmp_path / f"a_{name}"))) as other:
        assert not pattern.fullmatch(other.basename())
    assert not pattern.fullmatch(name)


def test_keeping_package_metadata() -> None:
    """A configuration whose reading imports importlib_metadata for the first time takes nothing away."""
    pytest.importorskip("importlib_metadata")
    program = (
        "from importlib.metadata import entry_points\n"
        "from lsst.pex.config import Config\n"
        "from qgexec.rubin.compat import keeping_package_metadata\n"
        "for _ in range(2):\n"
        "    with keeping_package_metadata():\n"
        "        Config().loadFromString('import importlib_metadata')\n"
        "    print(*sorted(entry_points(group='qgexec.execution_models').names))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.count("inprocess pool") == 2
