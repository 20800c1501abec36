"""Owns how the variables of jobs are put together from the sections of a file, as ctrl_bps does it.

Sections named `environment` are laid over each other: of the whole file (or of `payload`), of the cloud, of
the site, of a task, of a named cluster. ``${NAME}`` in the value of NAME itself is what the sections before
it say, and so a path grows. ``BPS_NONE`` takes a variable out. Other ``${...}`` are those of whoever submits;
one that is not set there stays as it is, and is replaced where the job runs if it is set there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qgexec.config.values import Layers, section_of
from qgexec.config.yamlfile import Node, chained, resolve
from qgexec.errors import UsageError

__all__ = ["ENVIRONMENT", "differences", "job_environment"]

ENVIRONMENT = "environment"

_REMOVED = "BPS_NONE"


def job_environment(sections: Sequence[Mapping[str, Node]], layers: Layers) -> dict[str, str]:
    """Return the variables that sections say a job gets.

    Parameters
    ----------
    sections
        Those that may have an `environment`, the one that counts least first.
    layers
        Sections in which ``{name}`` is looked for, the first that has it counts.

    Raises
    ------
    qgexec.errors.UsageError
        A name is none of a variable, or a value makes no sense: the message begins with file and line.
    """
    texts: dict[str, Node] = {}
    for section in sections:
        for name, node in section_of(section, ENVIRONMENT).items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise UsageError(
                    f"{node.place}: environment: {name!r} is no name of a variable",
                    hint="Use letters, digits and _, no digit first.",
                )
            before = texts.get(name)
            texts[name] = node if before is None else chained(name, _as_text(before), node)
    scalars = {name: resolve(node, [*layers, texts], keeps_unset=True) for name, node in texts.items()}
    values = {name: "" if scalar is None else str(scalar) for name, scalar in scalars.items()}
    return {name: value for name, value in values.items() if value.upper() != _REMOVED}


def _as_text(node: Node) -> Node:
    """Return a number as its text, which can be put into another."""
    is_number = isinstance(node.content, int | float)
    return replace(node, content=str(node.content)) if is_number else node


def differences(own: Mapping[str, str], common: Mapping[str, str]) -> dict[str, str | None]:
    """Return in what variables differ from the common ones; `None` for one that is taken out."""
    changed: dict[str, str | None] = {k: v for k, v in own.items() if common.get(k) != v}
    return changed | {name: None for name in common if name not in own}
