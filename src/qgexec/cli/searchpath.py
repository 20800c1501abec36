"""Owns ``--config-search-path``: where defaults of a repository's configuration are looked for first."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from qgexec.cli.commandclass import section
from qgexec.cli.values import comma_list

__all__ = ["config_search_path", "configure"]

config_search_path = section(
    "Before it runs",
    click.option(
        "--config-search-path",
        metavar="PATH",
        multiple=True,
        callback=comma_list,
        help="Look here first for what the repository's configuration leaves open; repeatable.",
    ),
)


def configure(given: dict[str, Any]) -> None:
    """Take the option out of all that are given; where it names something, resolve the configuration with it.

    ``repository`` is then a file with the whole configuration, as long as the command goes on, and
    ``configuration`` that configuration, of which a run keeps a file of its own: later commands, workers and
    jobs find all in it.

    Parameters
    ----------
    given
        Options by their names in Python.

    Raises
    ------
    qgexec.errors.RepositoryError
        There is no such repository.
    """
    search_path = given.pop("config_search_path")
    if not search_path or given["repository"] is None:
        return
    from qgexec.rubin.repository import resolve_configuration

    context = click.get_current_context()
    file = Path(context.with_resource(TemporaryDirectory(prefix="qgexec-"))) / "butler.yaml"
    given["configuration"] = resolve_configuration(given["repository"], search_path, file)
    given["repository"] = str(file)
