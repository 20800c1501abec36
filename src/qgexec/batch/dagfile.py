"""Owns the text of what HTCondor is given for a round: DAG, submit descriptions, scripts; submits nothing.

    round.dag       the jobs as DAGMan's nodes: ``j17`` is job 17; the node ``closing`` comes after all
    round.config    DAGMan's own settings: throttles
    round.sub       one description for all jobs; what they differ in are VARS of the DAG
    job.sh          what a machine runs for a job: environment, set-up, then the job's command
    post.sh         what DAGMan runs after each try of a job: whether another follows
    memory.sh       what it runs before another try: says how much memory the job needs
    closing.sub     the closing job, on the submitting machine
    closing.sh      ... which tries again by itself, for DAGMan never retries a FINAL node

All of it is text for other programs, each with its own way of quoting.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from qgexec.batch.jobenvironment import export_lines
from qgexec.batch.jobs import OVERHEAD_BYTES, JobRequest
from qgexec.batch.rounds import Round
from qgexec.books.linefile import file_error
from qgexec.books.rundir import write_aside
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import RunDirError, UsageError

__all__ = [
    "CLOSING_NODE",
    "DAG",
    "HELD_FOR_MEMORY",
    "HELD_FOR_TIME",
    "NODES_LOG",
    "dag_lines",
    "job_of_node",
    "passed_on",
    "probe_description",
    "requested_mib",
    "submit_description",
    "write_dag",
]

DAG = "round.dag"
"""Name of the DAG file in a round's folder."""

NODES_LOG = f"{DAG}.nodes.log"
"""Where DAGMan has HTCondor write what happens to its jobs."""

CLOSING_NODE = "closing"
"""Name of the FINAL node."""

HELD_FOR_MEMORY = (
    "(HoldReasonCode == 34 || (HoldReasonCode == 21 && HoldReasonSubCode == 102)"
    " || (HoldReasonCode == 3 && HoldReasonSubCode == 34))"
)
"""A job was put on hold for its memory: by its control group, by the machine's policy (that of HTCondor's
HOLD_IF_MEMORY_EXCEEDED), or by a ``periodic_hold`` of a site's submit lines that says so with
``periodic_hold_subcode = 34``."""

HELD_FOR_TIME = (
    "(HoldReasonCode == 46 || HoldReasonCode == 47 || (HoldReasonCode == 3 && HoldReasonSubCode == 47))"
)
"""... for it ran too long: by ``allowed_job_duration`` or ``allowed_execute_duration`` of a site's submit
lines, or by the ``periodic_hold`` of ours. HTCondor 23.9 lets jobs without file transfer run on in spite of
the former."""

_N_RETRIES = 8
"""How often DAGMan tries a job again: 5 growths of memory and 3 lost machines, the budgets that quanta have
if nothing else is said. A quantum that has more left goes on in the next round, so that this only bounds
how long a job that can never run is in the way."""

_N_STARTS = 4
"""Starts of a job within one try. One that was put on hold for its memory or time is released, and only notes
in its journal how it ended; it may be lost while it does so."""

_CLOSING_PAUSES_S = (30, 60, 120, 300)
"""Pauses between the tries of the closing command, seconds: registries come back after a while."""

_MIB = 1 << 20

_OVERHEAD_MIB = OVERHEAD_BYTES // _MIB

_DEFAULT_MIB = 2048
"""Memory of a job whose quanta ask for none, as with BPS. HTCondor's own default is what the last
try has used, or 128 MiB: less than Python with the stack."""

_EXPORTED = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "VIRTUAL_ENV"),
    *("HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ", "CONDOR_CONFIG"),
    *("DAF_BUTLER_*", "LSST_*", "EUPS_*", "SETUP_*", "CONDA_*", "MAMBA_*", "*_DIR"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "S3_ENDPOINT_URL"),
    *("PGPASSFILE", "PGUSER", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
)
"""Variables that jobs get from whoever submits: names, and patterns of names."""

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|_KEY(_|$)", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/\s]*:[^/\s]*@")  # a user's password in a URL

_JOB_SH = """#!/bin/bash
# {name}: runs the job $1 with $2 MiB of memory; 0: nobody asked for any. Written by qgexec.
{environment}
# How the last try was ended, if HTCondor put the job on hold: it could not say so itself.
attribute() {{ sed -n "s/^$1 = //p" "$_CONDOR_JOB_AD" 2>/dev/null; }}
case "$(attribute LastHoldReasonCode)/$(attribute LastHoldReasonSubCode)" in
    34/* | 21/102 | 3/34) export QGEXEC_LAST_END='out of memory' ;;
    46/* | 47/* | 3/47) export QGEXEC_LAST_END='timed out' ;;
    [0-9]*) export QGEXEC_LAST_END='cancelled' ;;
esac
[ "$2" = 0 ] || export QGEXEC_JOB_MEMORY_MB="$2"
{setup}exec {command} "$1"
"""

_SETUP_SH = """{{
{line}
}} || {{ echo {complaint} >&2; exit 78; }}
"""

_POST_SH = """# {name}: decides after a try of a job whether another follows. Written by qgexec.
# $1: its exit status, -signal, or what DAGMan says instead; $2: number of the try from 0; $3: of the last.
# The last try is always a success for DAGMan, or it would start none of the jobs that come after this
# one. They find out for themselves which of their quanta can run.
[ "$1" -eq 0 ] && exit 0
[ "$2" -ge "$3" ] && exit 0
[ -e {cancel} ] && exit 0
exit 1
"""

_MEMORY_SH = """# {name}: says what memory the job $1 has found to need. Written by qgexec.
note=memory/${{1%???}}/$1
[ ! -e "$note" ] || cat "$note"
echo '# no more'
"""

_CLOSING_SH = """#!/bin/bash
# {name}: ingests and closes the books after all jobs. $1: state of the DAG. Written by qgexec.
{environment}
{setup}child=
trap 'trap "" TERM; [ -n "$child" ] && kill "$child"; wait; exit 143' TERM
for pause in {pauses} 0; do
    # 4: somebody removed the DAG. Then nothing new is submitted.
    if [ "$1" = 4 ]; then
        {collect} &
    else
        {command} &
    fi
    child=$!
    wait "$child"
    status=$?
    # 0 and 1 are its verdict; anything else: the registry, or a machine, was not there.
    [ "$status" -le 1 ] && exit "$status"
    sleep "$pause" &
    child=$!
    wait "$child"
done
exit "$status"
"""


def passed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those of these environment variables that jobs get: what finds software, and no secrets."""
    return {name: value for name, value in sorted(variables.items()) if _is_passed_on(name, value)}


def _is_passed_on(name: str, value: str) -> bool:
    if name in _EXPORTED:
        return not _SECRET_VALUE.search(value)
    if name.startswith("_") or not name.isidentifier() or _SECRET_NAME.search(name):
        return False
    return not _SECRET_VALUE.search(value) and any(fnmatchcase(name, pattern) for pattern in _EXPORTED)


def job_of_node(name: str) -> int | None:
    """Return the job that a node of the DAG stands for; `None` for any other node."""
    return int(name[1:]) if name[:1] == "j" and name[1:].isdecimal() else None


def dag_lines(batch_round: Round) -> Iterator[str]:
    """Yield the lines of the DAG file, without their ends.

    Jobs that wait for the same ones share a PARENT line, which DAGMan itself
    makes into a node between the two sets where both are large.
    """
    jobs = batch_round.jobs
    yield f"# {batch_round.name}: {len(jobs)} jobs. Written by qgexec."
    yield "CONFIG round.config"
    children: dict[tuple[int, ...], list[int]] = {}
    for job, priority in enumerate(jobs.priorities().tolist()):
        request = jobs.request(job)
        memory = 0 if request.memory_bytes is None else _mib(request.memory_bytes)
        walltime = 0 if request.walltime_s is None else math.ceil(request.walltime_s)
        yield f"JOB j{job} round.sub"
        yield (
            f'VARS j{job} job="{job}" label="{_label(jobs.name(job))}" cores="{request.cores}" '
            f'memory="{memory}" walltime="{walltime}"'
        )
        yield f"PRIORITY j{job} {priority}"
        # Not for ALL_NODES: these would be DAGMan's own join nodes too, whose scripts run elsewhere.
        yield f"RETRY j{job} {_N_RETRIES}"
        yield f"SCRIPT POST j{job} /bin/sh post.sh $RETURN $RETRY $MAX_RETRIES"
        if parents := tuple(jobs.parents(job)):
            children.setdefault(parents, []).append(job)
    for parents, later in children.items():
        yield f"PARENT {_nodes(parents)} CHILD {_nodes(later)}"
    yield f"FINAL {CLOSING_NODE} closing.sub"
    yield f'VARS {CLOSING_NODE} status="$(DAG_STATUS)"'


def _nodes(jobs: Sequence[int]) -> str:
    return " ".join(f"j{job}" for job in jobs)


def requested_mib(request: JobRequest) -> int:
    """Return the memory that HTCondor is asked for, at the first try."""
    return _DEFAULT_MIB if request.memory_bytes is None else _mib(request.memory_bytes) + _OVERHEAD_MIB


def _label(name: str) -> str:
    return re.sub(r"[^\w.:@=,+-]", "_", name, flags=re.ASCII)


def _mib(n_bytes: int) -> int:
    return -(-n_bytes // _MIB)


def config_text(batch_round: Round) -> str:
    """Return DAGMan's settings.

    They are given here and not as options of condor_submit_dag: its ``-maxidle N`` also lowers the
    number of submits at a time to N / 10.
    """
    settings = batch_round.settings
    lines = [
        "DAGMAN_MAX_SUBMITS_PER_INTERVAL = 1000",  # 150 to 250 jobs a second; the default is a tenth of that
        "DAGMAN_USER_LOG_SCAN_INTERVAL = 2",
    ]
    if settings.max_idle is not None:
        lines.append(f"DAGMAN_MAX_JOBS_IDLE = {settings.max_idle}")
    if settings.max_jobs is not None:
        lines.append(f"DAGMAN_MAX_JOBS_SUBMITTED = {settings.max_jobs}")
    return "\n".join(lines) + "\n"


def submit_description(batch_round: Round, largest_mib: int | None = None) -> str:
    """Return the submit description of all jobs but the closing one, the ``queue`` excepted.

    Memory grows between tries by what the job itself has found: it leaves a file with what it needs
    (`Round.memory_file`), which this includes when DAGMan submits the job again. Neither the number of the
    try nor what HTCondor measured would do: a try can be lost for another reason, and what a quantum
    may have is a matter of the run's policy. A job that HTCondor puts on hold for its memory or time is
    released, sees in its own ad why it was held, writes that into its journal, and ends.

    Parameters
    ----------
    batch_round
        The round.
    largest_mib
        Memory of the largest machine, MiB, `None` if unknown: no try asks for more, and waits for ever.

    Raises
    ------
    qgexec.errors.UsageError
        A line of the site's would end the description.
    """
    folder = batch_round.folder
    shard = "$INT(shard,%03d)"
    output = f"{_value(batch_round.logs)}/{shard}/$INT(number,%06d).$(RETRY:0).out"
    lines = [
        f"# {batch_round.name}: what all its jobs have in common. Written by qgexec.",
        *_universe(batch_round.settings.container),
        "executable = /bin/bash",
        "transfer_executable = false",
        "should_transfer_files = NO",
        "number = $(job)",
        "shard = $(job) / 1000",
        "granted_memory = $(memory)",
        # Only for another try: DAGMan starts this itself, and waits for it.
        "if $(RETRY:0)",
        "    include command : /bin/sh memory.sh $INT(number,%06d)",
        "endif",
        f'arguments = "{_argument(folder / "job.sh")} $(job) $(granted_memory)"',
        "description = $(label)",
        f"batch_name = {batch_round.name}",
        f"output = {output}",
        f"error = {output}",
        "request_cpus = $(cores)",
        *_limits(largest_mib),
        *_accounting(batch_round),
        *_site_lines(batch_round.settings.submit_lines),
    ]
    return "\n".join(lines) + "\n"


def _limits(largest_mib: int | None) -> list[str]:
    """Return the lines about memory and time, and about what happens where they do not suffice."""
    noted = f"{HELD_FOR_MEMORY} || {HELD_FOR_TIME}"
    return [
        f"periodic_release = NumJobStarts < {_N_STARTS} && ({noted})",
        f"periodic_remove = JobStatus == 5 && NumJobStarts >= {_N_STARTS} && ({noted})",
        "if $(memory)",
        f"    request_memory = {_request_memory(largest_mib)}",
        "else",
        f"    request_memory = {_DEFAULT_MIB}",
        "endif",
        "if $(walltime)",
        "    periodic_hold = JobStatus == 2 && time() - JobCurrentStartDate > $(walltime)",
        '    periodic_hold_reason = "it ran longer than $(walltime) s"',
        "    periodic_hold_subcode = 47",
        "endif",
    ]


def _request_memory(largest_mib: int | None) -> str:
    """Return the expression for the memory of a job whose quanta ask for some.

    A job that was released is known by what it used before it was put on hold, until it is measured
    again: a slot with less would have it on hold again before it can say a word.
    """
    used = "ifThenElse(MemoryUsage =?= undefined, 0, int(1.25 * MemoryUsage))"
    needed = f"max({{$(granted_memory) + {_OVERHEAD_MIB}, {used}}})"
    return needed if largest_mib is None else f"min({{{needed}, {largest_mib}}})"


def probe_description(batch_round: Round) -> str:
    """Return the description of a job that asks for the most that any does, and is never to run."""
    requests = [batch_round.jobs.request(job) for job in batch_round.jobs]
    memory = max(_mib(request.memory_bytes or 0) for request in requests)
    first = {
        "job": 0,
        "label": "probe",
        "cores": max(r.cores for r in requests),
        "memory": memory,
        "walltime": 0,
    }
    macros = "".join(f"{name} = {value}\n" for name, value in first.items())
    # Paths and scripts are of no account: it is on hold until it is removed.
    return f"{macros}{submit_description(batch_round)}hold = true\n"


def _universe(container: str | None) -> list[str]:
    if container is None:
        return ["universe = vanilla"]
    return ["universe = container", f"container_image = {_value(container)}", "transfer_container = false"]


def _accounting(batch_round: Round) -> list[str]:
    settings = batch_round.settings
    lines = [] if settings.account is None else [f"accounting_group = {_value(settings.account)}"]
    if settings.accounting_user is not None:
        lines.append(f"accounting_group_user = {_value(settings.accounting_user)}")
    return lines


_LINE = re.compile(
    r"\s*(?!queue\b)([+\w.$()]+\s*=|(if|elif|else|endif|include|use|error|warning)\b|#|$)", re.IGNORECASE
)
"""How lines of a submit description begin, but for ``queue``: see condor_submit's manual."""


def _site_lines(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if _LINE.match(line) is None or "\n" in line:
            raise UsageError(
                f"the submit line {line!r} cannot be added to a submit description",
                hint="Give single lines as 'requirements = ...' or '+Name = ...'; `queue` is added to them.",
            )
        yield line


def closing_description(batch_round: Round) -> str:
    """Return the submit description of the closing job."""
    path = batch_round.folder / "closing.sh"
    output = f"{_value(batch_round.logs)}/closing.out"
    lines = [
        f"# {batch_round.name}: the job that ingests and closes the books. Written by qgexec.",
        "universe = local",
        "executable = /bin/bash",
        "transfer_executable = false",
        f'arguments = "{_argument(path)} $(status)"',
        "description = closing",
        f"batch_name = {batch_round.name}",
        f"output = {output}",
        f"error = {output}",
        f"request_memory = {_mib(batch_round.settings.closing_memory_bytes)}",
        # It tries again by itself, unless something killed it.
        f"on_exit_remove = ExitBySignal =!= true || NumJobStarts >= {_N_STARTS}",
        *_accounting(batch_round),
    ]
    return "\n".join(lines) + "\n"


def _value(value: str | Path) -> str:
    """Return a value for a submit description: to the end of the line, macros excepted."""
    text = str(value)
    if "\n" in text:
        raise UsageError(f"{text!r} has a line break in it: HTCondor cannot be told of it")
    return text.replace("$", "$(DOLLAR)")


def _argument(path: Path) -> str:
    """Return a word for ``arguments`` in double quotes."""
    return "'" + _value(path).replace("'", "''").replace('"', '""') + "'"


def _scripts(batch_round: Round, variables: Mapping[str, str]) -> dict[str, str]:
    settings = batch_round.settings
    # A container has software of its own, which these would hide.
    own = passed_on(variables)
    of_job = {} if settings.container is not None else own
    setup = "".join(
        _SETUP_SH.format(line=line, complaint=shlex.quote(f"qgexec: the setup command failed: {line}"))
        for line in settings.setup
    )
    run_dir = batch_round.run_dir
    return {
        "job.sh": _JOB_SH.format(
            name=batch_round.name,
            environment=_exports(of_job, settings),
            setup=setup,
            command=shlex.join(batch_round.job_command("")[:-1]),
        ),
        "post.sh": _POST_SH.format(name=batch_round.name, cancel=shlex.quote(str(run_dir / "cancel"))),
        "memory.sh": _MEMORY_SH.format(name=batch_round.name),
        "closing.sh": _CLOSING_SH.format(
            name=batch_round.name,
            environment=_exports(own, settings),
            setup=setup,
            pauses=" ".join(map(str, _CLOSING_PAUSES_S)),
            command=shlex.join(batch_round.closing_command()),
            collect=shlex.join((*batch_round.command, "collect", str(run_dir))),
        ),
    }


def _exports(passed: Mapping[str, str], settings: BatchSettings) -> str:
    """Return the lines that set what jobs are passed on from whoever submits, then what they are given."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in passed.items()]
    return "\n".join([*lines, *export_lines(settings)])


def write_dag(batch_round: Round, variables: Mapping[str, str], largest_mib: int | None = None) -> None:
    """Write all files that DAGMan needs into the round's folder.

    Parameters
    ----------
    batch_round
        The round; its folders ``logs`` and ``memory`` get a folder for each thousand jobs.
    variables
        The environment of whoever submits; see `passed_on`.
    largest_mib
        See `submit_description`.

    Raises
    ------
    qgexec.errors.UsageError
        HTCondor cannot be told of something in the settings.
    qgexec.errors.RunDirError
        A file cannot be written.
    """
    texts = {
        "round.config": config_text(batch_round),
        "round.sub": f"{submit_description(batch_round, largest_mib)}queue\n",
        "closing.sub": f"{closing_description(batch_round)}queue\n",
        **_scripts(batch_round, variables),
    }
    folder = batch_round.folder
    try:
        for shard in range(-(-len(batch_round.jobs) // 1000)):
            for kind in (batch_round.logs, folder / "memory"):
                (kind / f"{shard:03d}").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error("make folders in", folder, error, RunDirError) from error
    for name, text in texts.items():
        data = text.encode()
        write_aside(folder / name, lambda file, data=data: file.write(data))  # type: ignore[misc]
    lines = dag_lines(batch_round)
    write_aside(folder / DAG, lambda file: file.writelines(f"{line}\n".encode() for line in lines))
