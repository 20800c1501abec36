"""The variables of a job: what its script sets for all jobs, and what a job of certain tasks sets besides.

The script sets those of all jobs before anything else, so that set-up commands have them. A job whose tasks
have others sets these itself, before its worker starts: what a worker imports and loads sees them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, MutableMapping

from qgexec.clustering.clusters import Clusters
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import UsageError
from qgexec.scheduling.plan import Plan

__all__ = ["check_environments", "export_lines", "set_environment"]

_BEFORE = "QGEXEC_BEFORE_"
"""Begins the name of what a variable was before the script set it, for jobs that are not given it."""

_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)\}")


def export_lines(settings: BatchSettings) -> Iterator[str]:
    """Yield the lines of bash that set the variables of all jobs."""
    removed = {name for own in settings.environments.values() for name, value in own.items() if value is None}
    for name in sorted(removed):
        yield f'[ -z "${{{name}+x}}" ] || export {_BEFORE}{name}="${name}"'
    for name, value in settings.environment.items():
        yield f"export {name}={_word(value)}"


def _word(value: str) -> str:
    """Return a word of bash, in which ``${NAME}`` stays as it is where it is not set in the job either."""
    literals = _REFERENCE.split(value)  # text, name, text, ..., text
    words = [
        f'"${{{part}-\\${{{part}\\}}}}"' if place % 2 else shlex.quote(part)
        for place, part in enumerate(literals)
        if part
    ]
    return "".join(words) or "''"


def set_environment(settings: BatchSettings, label: str, variables: MutableMapping[str, str]) -> None:
    """Set what jobs of a task are given besides what their script has set.

    Parameters
    ----------
    settings
        Of the round.
    label
        Of one of the job's quanta; its other tasks have the same.
    variables
        Those of this process.
    """
    own = settings.environments.get(label, {})
    before = dict(variables)
    for name, value in own.items():
        if value is not None:
            variables[name] = _REFERENCE.sub(lambda found: before.get(found[1], found[0]), value)
        elif (earlier := variables.get(_BEFORE + name)) is not None:
            variables[name] = earlier
        else:
            variables.pop(name, None)


def check_environments(clusters: Clusters, plan: Plan, settings: BatchSettings) -> None:
    """Check that the tasks of each job are given the same variables.

    Raises
    ------
    qgexec.errors.UsageError
        They are not; the message names job, tasks and variables.
    """
    codes: Mapping[str, int] = settings.environment_codes()
    if not any(codes.values()):
        return
    for job in range(len(clusters)):
        labels = list(dict.fromkeys(plan.label(index) for index in clusters.quanta(job)))
        if len({codes.get(label, 0) for label in labels}) > 1:
            first, other = labels[0], next(x for x in labels if codes.get(x, 0) != codes.get(labels[0], 0))
            one, two = (settings.environments.get(label, {}) for label in (first, other))
            changed = sorted(name for name in {**one, **two} if one.get(name, _SAME) != two.get(name, _SAME))
            raise UsageError(
                f"cluster {clusters.name(job)}: tasks {first} and {other} are in the same jobs, and the "
                f"environment of one says something else of {', '.join(changed)}",
                hint="Say it below the cluster, or put them into clusters of their own.",
            )


_SAME = object()
"""Stands for a variable in which a task does not differ; `None` for one that it is not given."""
