"""What HTCondor is given for a round, as text; its scripts do as they say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qgexec.batch.dagfile import dag_lines, passed_on, probe_description, submit_description, write_dag
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import RunDirError, UsageError
from tests.kit.batch.condorrounds import GIB, make_round


def _sh(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"]} | (env or {})
    return subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_dag_has_all_jobs_in_their_order(tmp_path: Path) -> None:
    """Each job is a node with what it asks for, and children name their parents."""
    batch_round = make_round(
        tmp_path,
        memory_bytes=[GIB, -1, 3 * GIB + 1],
        cores=[1, 2, 1],
        walltime_s=[600.0, 600.5, float("inf")],
    )
    lines = list(dag_lines(batch_round))
    assert 'VARS j0 job="0" label="a" cores="1" memory="1024" walltime="600"' in lines
    assert 'VARS j1 job="1" label="b" cores="2" memory="0" walltime="601"' in lines
    assert 'VARS j2 job="2" label="c" cores="1" memory="3073" walltime="0"' in lines
    assert "PARENT j0 j1 CHILD j2" in lines
    assert [line for line in lines if line.startswith("PRIORITY")] == [
        "PRIORITY j0 2",
        "PRIORITY j1 2",
        "PRIORITY j2 1",
    ]
    assert "SCRIPT POST j2 /bin/sh post.sh $RETURN $RETRY $MAX_RETRIES" in lines
    assert "RETRY j2 8" in lines
    assert "FINAL closing closing.sub" in lines


def test_only_jobs_are_tried_again(tmp_path: Path) -> None:
    """Nothing is for all nodes: DAGMan joins large sets by nodes of its own, whose scripts run elsewhere."""
    assert "ALL_NODES" not in "\n".join(dag_lines(make_round(tmp_path)))


def test_sets_that_wait_for_the_same_share_a_line(tmp_path: Path) -> None:
    """Jobs with the same parents are in one PARENT line: the file does not grow with their product."""
    batch_round = make_round(tmp_path, "a b c -> d e f -> g h i")
    parents = [line for line in dag_lines(batch_round) if line.startswith("PARENT")]
    assert parents == ["PARENT j0 j1 j2 CHILD j3 j4 j5", "PARENT j3 j4 j5 CHILD j6 j7 j8"]


def test_settings_are_in_the_descriptions(tmp_path: Path) -> None:
    """Account, lines of the site's and throttles are where HTCondor looks for them."""
    settings = BatchSettings(
        account="lsst.drp",
        accounting_user="someone",
        submit_lines=('requirements = Machine == "a"',),
        max_idle=50,
        max_jobs=500,
    )
    batch_round = make_round(tmp_path, settings=settings)
    write_dag(batch_round, {})
    description = (batch_round.folder / "round.sub").read_text()
    for line in ("accounting_group = lsst.drp", "accounting_group_user = someone", settings.submit_lines[0]):
        assert f"\n{line}\n" in description
    assert description.endswith("\nqueue\n")
    assert "accounting_group = lsst.drp" in (batch_round.folder / "closing.sub").read_text()
    config = (batch_round.folder / "round.config").read_text()
    assert "DAGMAN_MAX_JOBS_IDLE = 50\n" in config
    assert "DAGMAN_MAX_JOBS_SUBMITTED = 500\n" in config


def test_no_job_asks_for_more_than_the_largest_machine_has(tmp_path: Path) -> None:
    """Memory grows with the tries, as far as there is a machine with it."""
    limited = submit_description(make_round(tmp_path), 4096)
    (line,) = [line for line in limited.splitlines() if "$(granted_memory) + 384" in line]
    assert line.strip().startswith("request_memory = min({max({$(granted_memory) + 384, ")
    assert line.endswith("}), 4096})")


@pytest.mark.parametrize(
    "line", ["+Project = 5", "MY.Project=5", "$(a)_b = 5", "if defined x", "# why", "use x:y"]
)
def test_lines_of_the_site(tmp_path: Path, line: str) -> None:
    """They stand in the description as they are."""
    batch_round = make_round(tmp_path, settings=BatchSettings(submit_lines=(line,)))
    assert line in submit_description(batch_round, None).splitlines()


@pytest.mark.parametrize(
    "line", ["queue", "  Queue 3", "queue=3", "a = 1\nqueue", "nonsense", "--qos=preemptable"]
)
def test_a_line_that_ends_the_description_is_refused(tmp_path: Path, line: str) -> None:
    """A line of the site's adds no jobs of its own, and is none of another batch system's."""
    batch_round = make_round(tmp_path, settings=BatchSettings(submit_lines=(line,)))
    with pytest.raises(UsageError, match="cannot be added"):
        write_dag(batch_round, {})
    assert not (batch_round.folder / "round.sub").exists()


def test_a_container_has_an_environment_of_its_own(tmp_path: Path) -> None:
    """In an image the submitting machine's variables would hide what is there; those of the site's hold."""
    settings = BatchSettings(container="docker://lsst/sw:w_2026_30", environment={"OMP_NUM_THREADS": "1"})
    batch_round = make_round(tmp_path, settings=settings)
    write_dag(batch_round, {"PATH": "/opt/lsst/bin"})
    assert "universe = container\n" in (batch_round.folder / "round.sub").read_text()
    job = (batch_round.folder / "job.sh").read_text()
    assert "export OMP_NUM_THREADS=1\n" in job
    assert "export PATH" not in job
    assert "export PATH" in (batch_round.folder / "closing.sh").read_text()


def test_the_probe_asks_for_the_most_and_never_runs(tmp_path: Path) -> None:
    """What is submitted to see whether jobs are taken asks for what the largest job does, and is on hold."""
    batch_round = make_round(tmp_path, memory_bytes=[GIB, 5 * GIB, -1], cores=[4, 1, 1])
    lines = probe_description(batch_round).splitlines()
    assert {"cores = 4", "memory = 5120", "hold = true"} <= set(lines)


def test_software_is_passed_on_and_secrets_are_not() -> None:
    """Jobs get what finds the software; nothing by whose name, or in whose value, a secret may be."""
    given = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "DAF_BUTLER_REPOSITORY_INDEX": "/repos.yaml",
        "PIPE_TASKS_DIR": "/pipe_tasks",
        "AWS_SHARED_CREDENTIALS_FILE": "/home/someone/.aws/credentials",
        "LSST_DB_AUTH": "/home/someone/.lsst/db-auth.yaml",
    }
    kept_back = {
        "LSST_DB_AUTH_CREDENTIALS": "x",
        "LSST_RESOURCES_S3_PROFILE_a": "https://key:secret@example.org",
        "BUTLER_TOKEN": "x",
        "DAF_BUTLER_API_KEY": "x",
        "_CONDOR_SCRATCH_DIR": "/x",
        "DISPLAY": ":0",
        "A-B_DIR": "/x",
    }
    assert passed_on(given | kept_back) == given


@pytest.mark.parametrize(
    ("returned", "number", "status"),
    [(0, 0, 0), (75, 0, 1), (75, 8, 0), (-9, 3, 1), (-1002, 8, 0), (-1001, 8, 0)],
)
def test_the_last_try_is_a_success(tmp_path: Path, returned: int, number: int, status: int) -> None:
    """A job that has something left is tried again, the last time excepted; children start in any case."""
    batch_round = make_round(tmp_path)
    write_dag(batch_round, {})
    post = batch_round.folder / "post.sh"
    assert _sh("/bin/sh", post, str(returned), str(number), "8").returncode == status


def test_no_try_follows_in_a_cancelled_run(tmp_path: Path) -> None:
    """Where somebody has asked for the end of the run DAGMan starts no job again."""
    batch_round = make_round(tmp_path / "it's a run")
    write_dag(batch_round, {})
    (batch_round.run_dir / "cancel").touch()
    assert _sh("/bin/sh", batch_round.folder / "post.sh", "75", "0", "8").returncode == 0


def _with_program(tmp_path: Path, program: str, **settings: object) -> Path:
    """Write a round in a folder with blanks whose jobs call this shell script; return the round's folder."""
    script = tmp_path / "pro gram"
    script.write_text(program)
    batch_round = make_round(tmp_path / "it's a run", settings=BatchSettings(**settings))  # type: ignore[arg-type]
    object.__setattr__(batch_round, "command", ("/bin/bash", str(script)))
    write_dag(batch_round, {"PATH": os.environ["PATH"], "LSST_A": "b c'd\"$e"})
    return batch_round.folder


_SHOW = 'printf "%s|" "$@" "$LSST_A" "$QGEXEC_JOB_MEMORY_MB" "$QGEXEC_LAST_END" "$SITE"\n'


def test_a_job_is_called_with_its_environment(tmp_path: Path) -> None:
    """The script of a job exports, sets up, and becomes the job's command, whatever is in the paths."""
    folder = _with_program(tmp_path, _SHOW, setup=("SITE=x", "export SITE"))
    said = _sh("/bin/bash", folder / "job.sh", "2", "1024").stdout.split("|")
    assert said == [
        "worker", str(folder.parent.parent), "--round", "1", "--job", "2", "b c'd\"$e", "1024", "", "x", "",
    ]  # fmt: skip


def test_a_setup_that_fails_is_told(tmp_path: Path) -> None:
    """Where a command of the set-up fails the job does not begin, and says which one it was."""
    folder = _with_program(tmp_path, _SHOW, setup=("true", "source '/no such'"))
    done = _sh("/bin/bash", folder / "job.sh", "2", "0")
    assert done.returncode == 78
    assert not done.stdout
    assert "the setup command failed: source '/no such'" in done.stderr


@pytest.mark.parametrize(
    ("code", "subcode", "end"),
    [
        (34, 0, "out of memory"),
        (34, 102, "out of memory"),
        (21, 102, "out of memory"),
        (3, 34, "out of memory"),
        (3, 47, "timed out"),
        (47, 0, "timed out"),
        (1, 0, "cancelled"),
        (21, 5, "cancelled"),
    ],
)
def test_a_job_is_told_why_it_was_held(tmp_path: Path, code: int, subcode: int, end: str) -> None:
    """What HTCondor's ad says of the last hold is passed on as the end of the last try."""
    folder = _with_program(tmp_path, _SHOW)
    ad = tmp_path / ".job.ad"
    ad.write_text(f'LastHoldReason = "so"\nLastHoldReasonCode = {code}\nLastHoldReasonSubCode = {subcode}\n')
    said = _sh("/bin/bash", folder / "job.sh", "2", "0", env={"_CONDOR_JOB_AD": str(ad)})
    assert said.stdout.split("|")[-4:-1] == ["", end, ""]


def test_memory_is_what_the_job_noted(tmp_path: Path) -> None:
    """Before another try DAGMan is told what the job has found to need, or nothing."""
    batch_round = make_round(tmp_path)
    write_dag(batch_round, {})
    batch_round.memory_file(2).write_text("granted_memory = 4096\n")
    told = [
        subprocess.run(
            ["/bin/sh", "memory.sh", name],
            cwd=batch_round.folder, check=True, capture_output=True, text=True, timeout=60,
        ).stdout.splitlines()
        for name in ("000002", "000001")
    ]  # fmt: skip
    assert told == [["granted_memory = 4096", "# no more"], ["# no more"]]


@pytest.mark.parametrize(("status", "called"), [("0", "--round 1"), ("2", "--round 1"), ("4", "")])
def test_the_closing_command_knows_of_a_removal(tmp_path: Path, status: str, called: str) -> None:
    """The closing job submits nothing new for a DAG that somebody has removed; its verdict is passed on."""
    folder = _with_program(tmp_path, 'echo "$@"; exit 1\n')
    done = _sh("/bin/bash", folder / "closing.sh", status)
    assert done.returncode == 1
    assert done.stdout.strip() == f"collect {folder.parent.parent} {called}".strip()


def test_the_closing_command_is_tried_again(tmp_path: Path) -> None:
    """Where the registry or a machine was not there the closing job tries again, for DAGMan would not."""
    marker = tmp_path / "tried"
    folder = _with_program(
        tmp_path, f'echo once more; [ -e "{marker}" ] && exit 0; touch "{marker}"; exit 2\n'
    )
    closing = folder / "closing.sh"
    closing.write_text(closing.read_text().replace("for pause in 30 ", "for pause in 0 "))
    done = _sh("/bin/bash", closing, "0")
    assert (done.returncode, done.stdout) == (0, "once more\nonce more\n")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """Where the run directory is full, or not a folder, the error names the place."""
    batch_round = make_round(tmp_path)
    (batch_round.folder / "memory").write_text("in the way")
    with pytest.raises(RunDirError, match="cannot make"):
        write_dag(batch_round, {})


def test_a_large_round_is_written_quickly(tmp_path: Path) -> None:
    """The file of 3,000 jobs, each set waiting for a whole other one, has a few hundred bytes a job."""
    names = [" ".join(f"{label}{number}" for number in range(1000)) for label in "abc"]
    batch_round = make_round(tmp_path, " -> ".join(names))
    write_dag(batch_round, {})
    assert (batch_round.folder / "round.dag").stat().st_size < 3000 * 250
