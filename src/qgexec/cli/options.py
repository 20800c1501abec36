"""Options that several commands share, with pipetask's names and meanings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from qgexec.cli.commandclass import section, stack
from qgexec.cli.values import filled
from qgexec.config.batchsettings import BatchSettings
from qgexec.config.runconfig import ISOLATIONS, RunConfig
from qgexec.config.runoptions import RunOptions
from qgexec.errors import UsageError
from qgexec.localpath import local_path

__all__ = [
    "as_pipetask",
    "dry_run",
    "execution",
    "existing",
    "force",
    "graph_fixup",
    "initialization",
    "parse_memory",
    "repository",
    "repository_if_any",
    "resources",
    "run_config",
    "run_dir",
]

_MEMORY_UNITS = {"": 10**6, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise click.BadParameter(f"{text!r} is no time; give a number of seconds above 0.")
    return value


def _seconds_or_0(text: str) -> float:
    return 0.0 if re.fullmatch(r"\s*0(\.0*)?\s*", text) else _seconds(text)


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise click.BadParameter(f"{text!r} is no factor; give a number of 1 or more.")
    return value


def _number_or_share(text: str) -> str:
    try:
        RunOptions(max_failures=text)
    except UsageError as error:
        raise click.BadParameter(
            f"{text!r} is neither a number of quanta nor a share: {error.hint}"
        ) from error
    return text


def parse_memory(text: str) -> int:
    """Convert ``4GB``, ``4 GiB`` or ``4000`` (MB, as pipetask has it) to bytes.

    Raises
    ------
    click.BadParameter
        It is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?)(i?)(b?)\s*", text, flags=re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise click.BadParameter(f"{text!r} is not an amount of memory; write for example 4GB or 4000 (MB).")
    unit = match[2].lower()
    factor = _BINARY_UNITS[unit] if match[3] else _MEMORY_UNITS[unit or match[4].lower()]
    value = int(float(match[1]) * factor)
    if value <= 0:
        raise click.BadParameter(f"{text!r} leaves no memory at all.")
    return value


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return parse_memory(value) if value else None


def _repository(*, required: bool) -> Callable[[Any], Any]:
    return click.option(
        "-b",
        "--butler-config",
        "repository",
        metavar="REPO",
        type=filled,
        required=required,
        help="Butler repository: its folder, its configuration file, or an alias.",
    )


repository = _repository(required=True)
repository_if_any = _repository(required=False)

initialization = section(
    "Before it runs",
    click.option("--register-dataset-types", is_flag=True, help="Register dataset types that are missing."),
    click.option("--skip-init-writes", is_flag=True, help="Do not write configs and other init-outputs."),
    click.option("--no-versions", is_flag=True, help="Do not save or check package versions."),
    click.option("--no-output-chain", is_flag=True, help="Leave the output CHAINED collection as it is."),
)

graph_fixup = section(
    "Execution",
    click.option(
        "--graph-fixup",
        metavar="NAME",
        type=filled,
        help="Class or function, by its full name, of an object that adds ordering to the graph.",
    ),
)


def _folder(text: str) -> str:
    return str(local_path(filled(text), "the run directory"))


run_dir = click.option(
    "--run-dir",
    metavar="DIR",
    type=_folder,
    help="Where the run keeps its books; default: qgexec-runs/RUN.",
)

force = click.option(
    "--force", is_flag=True, help="Execute although another run that goes on writes the same output RUN."
)

existing = stack(
    click.option("--skip-existing", is_flag=True, help="Do not run quanta whose metadata exists already."),
    click.option(
        "--clobber-outputs", is_flag=True, help="Remove outputs in the way; takes effect with --extend-run."
    ),
)

as_pipetask = section(
    "Execution",
    click.option(
        "-j",
        "--processes",
        metavar="N",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes to use.",
    ),
    click.option("--fail-fast", is_flag=True, help="Stop at the first failure."),
    click.option(
        "--timeout",
        "timeout_s",
        metavar="S",
        type=_seconds,
        help="End a quantum that takes longer than this many seconds.",
    ),
    click.option(
        "-n",
        "--cores-per-quantum",
        metavar="N",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Cores that each quantum asks for, and is told it may use.",
    ),
    click.option(
        "--memory-per-quantum",
        metavar="MEM",
        type=filled,
        callback=_memory,
        help="Memory that each quantum asks for, and is told it may use: 4GB, or a number of MB.",
    ),
    click.option(
        "--raise-on-partial-outputs/--no-raise-on-partial-outputs",
        default=True,
        show_default=True,
        help="Count partial outputs as a failure.",
    ),
    click.option(
        "--enable-implicit-threading", is_flag=True, help="Leave numerical libraries their own threads."
    ),
    click.option(
        "--summary",
        metavar="FILE",
        type=filled,
        help="Write pipetask's JSON report of the run to this file.",
    ),
)

execution = section(
    "Execution",
    as_pipetask,
    click.option(
        "--model",
        metavar="NAME",
        type=filled,
        help="Execution model; default: inprocess for -j 1, pool above; of submit: none.",
    ),
    existing,
    click.option(
        "--strict-versions/--no-strict-versions",
        help="Refuse to execute in batch jobs, or after an interruption, if the software has changed.",
    ),
    click.option(
        "--provenance/--no-provenance",
        help="When the run has ended, take upstream's provenance graph into the RUN, as run_provenance.",
    ),
)

resources = section(
    "Resources and retries",
    click.option(
        "--resources",
        metavar="FILE",
        type=filled,
        multiple=True,
        help="Local YAML file with BPS's keys for memory, cores, time and retries of each task; repeatable.",
    ),
    click.option(
        "--retries",
        metavar="N",
        type=click.IntRange(min=0),
        help="Try a quantum that failed again, up to N times; default: 0.",
    ),
    click.option(
        "--isolation",
        type=click.Choice(ISOLATIONS),
        help="process: execute each quantum in a process of its own; default: none, for it costs some 10 ms.",
    ),
    click.option(
        "--enforce-memory/--no-enforce-memory",
        default=None,
        help="End a quantum that uses more memory than it asks for; default: do not.",
    ),
    click.option(
        "--memory-multiplier",
        metavar="X",
        type=_factor,
        help="After it ran out of memory, a quantum asks for X times as much; default: 2.",
    ),
    click.option(
        "--memory-limit",
        metavar="MEM",
        type=filled,
        callback=_memory,
        help="No quantum asks for more than this: 100GB, or a number of MB.",
    ),
    click.option(
        "--max-failures",
        metavar="N|N%",
        type=_number_or_share,
        help="Start nothing more after N failed quanta, or N% of all.",
    ),
    click.option(
        "--seed",
        metavar="N",
        type=click.IntRange(min=0, max=0xFFFFFFFF),
        help="Seed random generators for each quantum as any run with this N does; default: never the same.",
    ),
    click.option(
        "--grace",
        "grace_s",
        metavar="S",
        type=_seconds_or_0,
        help="After Ctrl-C, end what still runs after S seconds; default: wait for it.",
    ),
    click.option(
        "--compute-site",
        metavar="NAME",
        type=filled,
        help="Site whose section of the --resources files holds for batch jobs.",
    ),
    click.option(
        "--run-times",
        metavar="RUN_DIR",
        type=click.Path(file_okay=False),
        multiple=True,
        help="An earlier run, whose run times size batch jobs and tell how long a run takes; repeatable.",
    ),
)


dry_run = click.option(
    "--dry-run", is_flag=True, help="Write what would be submitted, print what it asks for, submit nothing."
)


def run_config(given: dict[str, Any]) -> RunConfig:
    """Take the options about resources and retries out of all that are given; read the files they name.

    Parameters
    ----------
    given
        Options by their name in Python; ``max_failures`` and ``grace_s``, which are not about tasks, stay.

    Raises
    ------
    qgexec.errors.UsageError
        A file cannot be read, or says something that makes no sense.
    """
    files = given.pop("resources")
    told = {ours: given.pop(name) for name, ours in _SETTINGS.items()}
    source = click.get_current_context().get_parameter_source("cores_per_quantum")
    if source is ParameterSource.DEFAULT:
        told["cores"] = None
    batch = BatchSettings(durations=_run_times(given.pop("run_times")))
    config = RunConfig.for_all(told, batch)
    site = given.pop("compute_site")
    if not files and site is None:
        return config
    from qgexec.config.bpsfile import read_config

    return read_config(files, site=site).updated(config)


def _run_times(run_dirs: Iterable[str]) -> dict[str, float]:
    """Return the mean run times of tasks in earlier runs; of two runs that have a task the later counts."""
    from qgexec.reports.report import read_report

    tasks = [task for run_dir in run_dirs for task in read_report(Path(run_dir)).tasks]
    return {task.label: task.quantum_s / ended for task in tasks if (ended := task.succeeded + task.failed)}


_SETTINGS = {
    "retries": "n_retries",
    "enforce_memory": "enforce_memory",
    "memory_multiplier": "memory_multiplier",
    "memory_limit": "memory_limit_bytes",
    "cores_per_quantum": "cores",
    "memory_per_quantum": "memory_bytes",
    "timeout_s": "timeout_s",
    "isolation": "isolation",
}
"""Options that hold for all tasks: their names in Python, and in `TaskSettings`."""
