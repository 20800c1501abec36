"""Owns how a graph, or some of its quanta, is read from a file into memory at once; changes nothing in it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence

from lsst.pipe.base.quantum_graph import PredictedQuantumGraphComponents

from qgexec.errors import GraphError, UsageError
from qgexec.rubin.addresses import local_copy, locate_file
from qgexec.rubin.graphfile import open_graph, read_old
from qgexec.rubin.qgfile import QgFile
from qgexec.rubin.repository import learn_storage_classes

__all__ = ["load_graph", "parse_id", "warn_of_id"]

_logger = logging.getLogger(__name__)


def load_graph(
    file: str,
    *,
    quantum_ids: Sequence[str] = (),
    repository: str | None = None,
    graph_id: str | None = None,
) -> PredictedQuantumGraphComponents:
    """Read a graph with all that executing its quanta takes.

    Parameters
    ----------
    file
        Path or URI of a ``.qg`` or ``.qgraph`` file.
    quantum_ids
        UUIDs of the quanta to read; none for all. What they need of other quanta must be there already.
    repository
        Where storage classes of the graph may be defined: root, configuration file or alias.
    graph_id
        Identifier that a ``.qgraph`` file must have; ``.qg`` files have none.

    Returns
    -------
    components
        The graph, or that part of it.

    Raises
    ------
    qgexec.errors.RepositoryError
        There is no such repository.
    qgexec.errors.UsageError
        A UUID is none.
    qgexec.errors.GraphError
        The file is missing or damaged, has another identifier, or not these quanta.
    """
    if repository is not None:
        learn_storage_classes(repository)
    wanted = [parse_id(text) for text in quantum_ids]
    uri = locate_file(file)
    if uri.getExtension() == ".qgraph":
        return read_old(uri, wanted, graph_id)
    if graph_id is not None:
        warn_of_id()
    with local_copy(uri) as path:
        with QgFile(path) as opened:
            if not opened.header["n_quanta"]:
                raise GraphError(f"{file} has no quanta")
        with open_graph(path) as reader:
            try:
                reader.read_execution_quanta(wanted or None)
            except LookupError as error:
                raise GraphError(
                    f"{file} has not all of these quanta: {error}",
                    hint="qgexec qgraph -g FILE --show workflow lists those that it has.",
                ) from error
            except Exception as error:  # a damaged file may make upstream raise anything
                raise GraphError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
            return reader.components


def warn_of_id() -> None:
    """Say that an identifier was given of a graph that has none."""
    _logger.warning("--qgraph-id means nothing for .qg files: they have no identifier.")


def parse_id(text: str) -> uuid.UUID:
    """Return the ID of a quantum as the command line names it.

    Raises
    ------
    qgexec.errors.UsageError
        It is none.
    """
    try:
        return uuid.UUID(text)
    except ValueError:
        raise UsageError(
            f"--qgraph-node-id {text!r} is no UUID of a quantum.",
            hint="qgexec qgraph -g FILE --show workflow lists them.",
        ) from None
