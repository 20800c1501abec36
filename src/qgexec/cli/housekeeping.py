"""`qgexec purge`, `cleanup` and `update-graph-run`: what a repository and graphs need now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qgexec.cli import logoptions, options
from qgexec.errors import UsageError
from qgexec.plaintext import printable

if TYPE_CHECKING:
    from qgexec.rubin.collectionremoval import Removal

__all__ = ["cleanup", "purge", "update_graph_run"]

_confirm = click.option(
    "--confirm/--no-confirm", default=True, show_default=True, help="Show what will be removed, and ask."
)


@click.command(epilog="Example:  qgexec purge -b REPO u/me/test --recursive")
@options.repository
@click.argument("collection")
@_confirm
@click.option("--recursive", is_flag=True, help="Also remove what is in members that are CHAINED.")
def purge(*, repository: str, collection: str, confirm: bool, recursive: bool) -> None:
    """Remove a CHAINED collection, and its members whose names begin with its own.

    RUN collections are removed with all that is in them. Nothing is removed if
    something of it is in another collection too. Run directories stay.
    """
    logoptions.begin()
    from qgexec.rubin.collectionremoval import find_purge

    _remove(repository, find_purge(repository, collection, recursive=recursive), confirm=confirm)


@click.command(epilog="Example:  qgexec cleanup -b REPO u/me/test")
@options.repository
@click.argument("collection")
@_confirm
def cleanup(*, repository: str, collection: str, confirm: bool) -> None:
    """Remove collections that are called COLLECTION/... and are not in this CHAINED collection.

    These are RUNs that were replaced, for example. RUN collections are removed
    with all that is in them. Run directories stay.
    """
    logoptions.begin()
    from qgexec.rubin.collectionremoval import find_cleanup

    _remove(repository, find_cleanup(repository, collection), confirm=confirm)


def _remove(repository: str, removal: Removal, *, confirm: bool) -> None:
    from qgexec.rubin.collectionremoval import remove

    if not removal:
        click.echo("There is nothing to remove.")
        return
    kinds = (("RUN", removal.runs), ("CHAINED", removal.chains), ("other", removal.others))
    for kind, names in kinds:
        for name in names:
            click.echo(f"{kind:8} {printable(name)}")
    if confirm and not click.confirm("Remove these collections?"):
        click.echo("Nothing was removed.")
        return
    remove(repository, removal)
    click.echo("Removed.")


@click.command(
    name="update-graph-run", epilog="Example:  qgexec update-graph-run graph.qg u/me/again again.qg"
)
@click.argument("graph", metavar="QGRAPH")
@click.argument("run")
@click.argument("new_graph", metavar="OUTPUT_QGRAPH")
def update_graph_run(*, graph: str, run: str, new_graph: str) -> None:
    """Write a graph anew, for another output RUN.

    All quanta and outputs get new UUIDs. The graph file stays as it is.
    """
    if not new_graph.endswith(".qg"):
        raise UsageError(f"{new_graph} does not end in .qg.")
    if not run.strip():
        raise UsageError("The name of the output RUN is empty.")
    logoptions.begin()
    from qgexec.rubin.build import save_graph
    from qgexec.rubin.graphload import load_graph

    components = load_graph(graph)
    components.update_output_run(run)
    click.echo(f"The graph is saved as {save_graph(components, new_graph)}", err=True)
