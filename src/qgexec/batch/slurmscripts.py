"""The files of a round that Slurm runs, and the options of sbatch; asks Slurm nothing.

batch/0001/
    job.sh              what sbatch is given for each array: finds its job, runs it, has it tried again
    run.sh              environment and set-up, then a command; in the container, if there is one
    closing.sh          the closing job
    arrays/007.txt      the jobs of array 7: index and job number
    logs/000/000017.txt what the tries of job 17 printed
    logs/slurm-007.txt  what Slurm itself said about the jobs of array 7
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from qgexec.batch.jobenvironment import export_lines
from qgexec.batch.jobs import OVERHEAD_BYTES, JobRequest
from qgexec.batch.rounds import Round
from qgexec.batch.slurmarrays import Array
from qgexec.books.linefile import file_error
from qgexec.books.rundir import RunDir
from qgexec.errors import RunDirError, UsageError
from qgexec.regularfile import read_regular

__all__ = ["CLOSING", "array_options", "closing_options", "dependency", "read_arrays", "write_files"]

CLOSING = "closing"
"""Comment of the closing job; that of an array begins with its number."""

_TRIES = 6
"""How often a job that says that another try has something to do is tried in all."""

_RUNS = 3
"""How often a try of a job begins again after its process was killed."""

_CLOSING_TRIES = 5
CLOSING_PAUSE_S = 60
"""The closing job tries again while the registry, or the file system, is not there; seconds in between."""

_MIB = 1 << 20

_OVERHEAD_MIB = OVERHEAD_BYTES // _MIB

_OURS = frozenset(
    {"array", "comment", "dependency", "job-name", "kill-on-invalid-dep", "open-mode", "output"}
    | {"parsable", "wait", "wrap"}
)
"""Options of sbatch that a site may not set: the round could not be found or followed any more."""

_SHORT = {"a": "array", "d": "dependency", "J": "job-name", "o": "output", "W": "wait"}

_JOB = """\
#!/bin/bash
# A job of the array $1 of {name}, with a limit of $2 minutes, if any. Written by qgexec.
round={folder}
number=
while read -r index job; do
    [ "$index" = "$SLURM_ARRAY_TASK_ID" ] && number=$job
done < "$round/arrays/$1.txt"
if [ -z "$number" ]; then
    echo "qgexec: $(hostname) does not see a job for task $SLURM_ARRAY_TASK_ID in $round/arrays/$1.txt:" \\
        "machines that execute jobs must see the run directory by the same path." >&2
    exit 1
fi
# A call of sbatch that nobody waited for any more may take effect after its round was given up.
[ ! -e "$round/closed" ] || exit 0
padded=$(printf %06d "$number")
shard=${{padded%???}}
restarts=${{SLURM_RESTART_COUNT:-0}}
exec >> "$round/logs/$shard/$padded.txt" 2>&1
echo "job $number is ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID, try $((restarts + 1)) of {tries}," \\
    "on $(hostname) at $(date -u +%FT%TZ)"
# When Slurm will end it: by its own word (from 23.02 on), by what was asked for, or by the partition's limit.
ends=$SLURM_JOB_END_TIME
[ -n "$ends" ] || [ -z "$2" ] || ends=$(($(date +%s) + 60 * $2))
[ -n "$ends" ] ||
    ends=$(date -d "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)" +%s 2>/dev/null)
[ -z "$ends" ] || export QGEXEC_JOB_ENDS_AT="$ends"
# Memory that earlier tries have found to need, MiB, and whether Slurm has given it to this one.
find_memory() {{
    memory=$(sed -n 's/.*= *\\([0-9][0-9]*\\)$/\\1/p' "$round/memory/$shard/$padded" 2>/dev/null)
    [ -n "$memory" ] || return 1
    wanted=$((memory + {overhead}))
    [ "$wanted" -le {largest} ] || wanted={largest}
}}
find_memory && [ "${{SLURM_MEM_PER_NODE:-0}}" -ge "$wanted" ] && export QGEXEC_JOB_MEMORY_MB="$memory"
# At its end Slurm sends SIGTERM to all processes. The worker hands back what it has begun; this
# script waits for it, and knows that no time is left for another try.
is_ended=
trap 'is_ended=1' TERM
for _ in $(seq {runs}); do
    {run} "$number"
    code=$?
    echo "job $number ended with $code at $(date -u +%FT%TZ)"
    # Over 128: a signal. Unless Slurm is about to end the job, what is left of it can begin again at once.
    [ $code -gt 128 ] && [ -z "$is_ended" ] || break
done
# 75: another try has something to do. Then this job goes back into the queue, and those that come after
# it go on waiting for it. Only now can its memory be changed; for a moment, since it is sent SIGTERM, too.
if [ $code = 75 ] && [ -z "$is_ended" ] && [ $((restarts + 1)) -lt {tries} ] && [ ! -e {cancel} ] &&
    scontrol requeue "$SLURM_JOB_ID" && find_memory; then
    for _ in 1 2 3; do
        scontrol update JobId="$SLURM_JOB_ID" MinMemoryNode="$wanted" && break
    done
fi
# Whatever became of its quanta: the jobs that come after it see for themselves what they can do.
[ $code = {misconfigured} ] && exit $code
exit 0
"""

MISCONFIGURED = 78
"""Exit status of a job whose set-up failed: ``EX_CONFIG`` of sysexits.h."""

_RUN = """\
#!/bin/bash
# Runs a command of {name} as its jobs do. Written by qgexec.
{lines}
exec "$@"
"""

_SETUP = """\
{{
{line}
}} || {{ echo {complaint} >&2; exit {misconfigured}; }}"""

_CLOSING = """\
#!/bin/bash
# The closing job of {name}: takes outputs into the registry and closes the books. Written by qgexec.
echo "closing {name} on $(hostname) at $(date -u +%FT%TZ)"
# Somebody may have put a job back into the queue after it had ended.
while squeue --noheader --name={name} --format=%F | grep -qvx "$SLURM_JOB_ID"; do
    sleep 20
done
for try in $(seq {tries}); do
    {run}
    code=$?
    # 0 and 1 are its verdict; anything else: the registry, or a file system, was not there.
    [ $code -le 1 ] && exit $code
    [ "$try" = {tries} ] || sleep {pause}
done
exit $code
"""


def array_options(batch_round: Round, number: int, array: Array, waits: str, largest_mib: int) -> list[str]:
    """Return the call of sbatch that brings in an array.

    Parameters
    ----------
    batch_round
        The round.
    number
        Position of the array in it.
    array
        The array.
    waits
        Its dependency, empty for none.
    largest_mib
        Memory of the largest machine, MiB; no job asks for more.
    """
    names = list(dict.fromkeys(batch_round.jobs.name(job) for job in array.jobs))
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    options = [f"--array={array.index_list()}", *_common(batch_round, f"{number}: {shown}")]
    # %a would make a file for each job, and most stay empty.
    options += [
        *_requests(array.request, largest_mib),
        f"--output={_pattern(batch_round.logs / f'slurm-{number:03d}.txt')}",
    ]
    minutes = _minutes(array.request)
    limit = () if minutes is None else (str(minutes),)
    return _call(options, waits, batch_round, "job.sh", f"{number:03d}", *limit)


def closing_options(batch_round: Round, waits: str, largest_mib: int) -> list[str]:
    """Return the call of sbatch that brings in the closing job; see `array_options`."""
    request = JobRequest(1, batch_round.settings.closing_memory_bytes)
    options = [*_common(batch_round, CLOSING), *_requests(request, largest_mib)]
    options.append(f"--output={_pattern(batch_round.logs / 'closing.txt')}")
    return _call(options, waits, batch_round, "closing.sh")


def dependency(array: Array, ids: Sequence[int]) -> str:
    """Return what sbatch is told that an array waits for, by the numbers of the arrays before it."""
    if array.lane_of is not None:
        return f"aftercorr:{ids[array.lane_of]}"
    return ":".join(["afterany", *(str(ids[a]) for a in array.waits_for)]) if array.waits_for else ""


def _common(batch_round: Round, comment: str) -> list[str]:
    settings = batch_round.settings
    chosen = {"partition": settings.queue, "account": settings.account}
    return [
        f"--job-name={batch_round.name}",
        f"--comment={comment}",
        *(f"--{name}={value}" for name, value in chosen.items() if value is not None),
        "--nodes=1",
        "--ntasks=1",
        "--requeue",  # after its machine failed, or it had to make room
        "--open-mode=append",
    ]


def _requests(request: JobRequest, largest_mib: int) -> list[str]:
    options = [f"--cpus-per-task={request.cores}"]
    if request.memory_bytes is not None:
        memory_mib = math.ceil(request.memory_bytes / _MIB) + _OVERHEAD_MIB
        options.append(f"--mem={min(memory_mib, largest_mib)}M")
    if (minutes := _minutes(request)) is not None:
        options.append(f"--time={minutes}")
    return options


def _minutes(request: JobRequest) -> int | None:
    return None if request.walltime_s is None else max(1, math.ceil(request.walltime_s / 60))


def _call(options: Sequence[str], waits: str, batch_round: Round, *script: str) -> list[str]:
    waiting = [f"--dependency={waits}", "--kill-on-invalid-dep=yes"] if waits else []
    name, *arguments = script
    site = site_options(batch_round.settings.submit_lines)
    return ["sbatch", "--parsable", *options, *waiting, *site, str(batch_round.folder / name), *arguments]


def _pattern(path: Path) -> str:
    """Return a path that Slurm takes as it is: it replaces what follows a percent sign."""
    return str(path).replace("%", "%%")


def site_options(lines: Sequence[str]) -> list[str]:
    """Return a site's own options of sbatch, written as such or as in a script: ``#SBATCH --reservation=x``.

    Raises
    ------
    qgexec.errors.UsageError
        One is no option, or one that qgexec sets.
    """
    options: list[str] = []
    for line in lines:
        words = shlex.split(line.strip().removeprefix("#SBATCH"))
        if not words or not words[0].startswith("-"):
            raise UsageError(
                f"{line!r} is no option of sbatch", hint="Write lines such as --constraint=haswell."
            )
        for word in words:
            name = word.lstrip("-").partition("=")[0]
            name = _SHORT.get(word[1:2], name) if not word.startswith("--") else name
            if word.startswith("-") and name in _OURS:
                raise UsageError(f"{line!r}: qgexec sets --{name} itself", hint="Leave that line out.")
        options += words
    return options


def write_files(batch_round: Round, arrays: Sequence[Array], largest_mib: int) -> None:
    """Write scripts and lists of jobs into the round's folder.

    Raises
    ------
    qgexec.errors.RunDirError
        A file cannot be written.
    """
    folder = batch_round.folder
    texts = {
        "job.sh": _job_script(batch_round, largest_mib),
        "run.sh": _run_script(batch_round),
        "closing.sh": _CLOSING.format(
            name=batch_round.name,
            run=_run(batch_round, batch_round.closing_command()),
            tries=_CLOSING_TRIES,
            pause=CLOSING_PAUSE_S,
        ),
    }
    for number, array in enumerate(arrays):
        pairs = zip(array.indices, array.jobs, strict=True)
        texts[f"arrays/{number:03d}.txt"] = "".join(f"{index} {job}\n" for index, job in pairs)
    path = folder
    try:
        (folder / "arrays").mkdir(exist_ok=True)
        for shard in range(-(-len(batch_round.jobs) // 1000)):
            path = batch_round.logs / f"{shard:03d}"
            path.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            path = folder / name
            path.write_text(text)
    except OSError as error:
        raise file_error("write", path, error, RunDirError) from error


def read_arrays(batch_round: Round) -> list[dict[int, int]]:
    """Return for each array of a round the job number by index.

    Raises
    ------
    qgexec.errors.RunDirError
        A list is damaged or cannot be read.
    """
    found = []
    for path in sorted((batch_round.folder / "arrays").glob("*.txt"), key=lambda path: int(path.stem)):
        try:
            pairs = [line.split() for line in read_regular(path).decode().splitlines()]
            found.append({int(index): int(job) for index, job in pairs})
        except OSError as error:
            raise file_error("read", path, error, RunDirError) from error
        except ValueError as error:
            raise RunDirError(f"{path} is damaged: {error}", hint="Bring it back from a copy.") from error
    return found


def _job_script(batch_round: Round, largest_mib: int) -> str:
    return _JOB.format(
        name=batch_round.name,
        folder=shlex.quote(str(batch_round.folder)),
        # The number comes last.
        run=_run(batch_round, batch_round.job_command("")[:-1]),
        tries=_TRIES,
        runs=_RUNS,
        overhead=_OVERHEAD_MIB,
        largest=largest_mib,
        cancel=shlex.quote(str(RunDir(batch_round.run_dir).cancel_file)),
        misconfigured=MISCONFIGURED,
    )


def _run(batch_round: Round, command: Sequence[str]) -> str:
    """Return the shell command that runs a command as the site wants it."""
    words = ["/bin/bash", str(batch_round.folder / "run.sh"), *command]
    image = batch_round.settings.container
    if image is None:
        return shlex.join(words)
    # Slurm's own --container takes unpacked bundles only, and few sites have set it up.
    runtime = '"$(command -v apptainer || command -v singularity || echo apptainer)"'
    return f"{runtime} {shlex.join(['exec', '--bind', str(batch_round.run_dir), image, *words])}"


def _run_script(batch_round: Round) -> str:
    settings = batch_round.settings
    lines = list(export_lines(settings))
    for line in settings.setup:
        complaint = shlex.quote(f"qgexec: the setup command failed: {line}")
        lines.append(_SETUP.format(line=line, complaint=complaint, misconfigured=MISCONFIGURED))
    return _RUN.format(name=batch_round.name, lines="\n".join(lines))
