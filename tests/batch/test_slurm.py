"""What Slurm is asked and told, and what is made of its answers: programs that say what they are told to."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qgexec.batch.rounds import Round
from qgexec.batch.slurm import SlurmSystem
from qgexec.batch.system import JobEnd, JobState
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import ModelError, QgexecError, UsageError
from tests.kit.batch.slurmrounds import FakeSlurm, jobs_of, make_round
from tests.kit.batch.standins import QUICK

GIB = 1 << 30

Install = Callable[..., FakeSlurm]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a Slurm that answers as it is told on the path."""

    def install(**options: object) -> FakeSlurm:
        fake = FakeSlurm.make(tmp_path / "slurm", **options)  # type: ignore[arg-type]
        monkeypatch.setenv("PATH", fake.path)
        monkeypatch.setattr(SlurmSystem, "pace", QUICK)
        return fake

    return install


@pytest.fixture
def fake(install: Install) -> FakeSlurm:
    return install()


@pytest.fixture
def chains(tmp_path: Path) -> Round:
    """Two chains and what gathers them: a lane and a barrier."""
    return make_round(tmp_path / "my run", "a b -> ; a -> c; b -> d; c d -> e")


def _lines(batch_round: Round, *said: str) -> str:
    return "".join(f"{line}|\n" for line in said)


def _said(error: QgexecError, *words: str) -> None:
    for word in words:
        assert word in str(error), str(error)


class TestSubmitting:
    def test_one_call_for_each_array(self, fake: FakeSlurm, chains: Round) -> None:
        """Each waits for those before it, the closing job for all."""
        system = SlurmSystem()
        system.write(chains)
        ticket = system.submit(chains)
        calls = fake.calls("sbatch")
        assert [call[1] for call in calls[:3]] == ["--array=0-1"] * 2 + ["--array=0"]
        waits = [[word for word in call if "dependency" in word] for call in calls]
        assert waits == [
            [],
            ["--dependency=aftercorr:101"],
            ["--dependency=afterany:102"],
            ["--dependency=afterany:101:102:103"],
        ]
        assert all(
            ("--kill-on-invalid-dep=yes" in call) == bool(wait)
            for call, wait in zip(calls, waits, strict=True)
        )
        assert ticket == {"arrays": [101, 102, 103], "closing": 104}

    def test_options(self, fake: FakeSlurm, tmp_path: Path) -> None:
        """Requests, settings and the site's own lines are where sbatch looks for them."""
        settings = BatchSettings(
            queue="milano",
            account="rubin:commissioning",
            submit_lines=("#SBATCH --constraint=haswell", "--qos normal"),
            closing_memory_bytes=2 * GIB,
        )
        batch_round = make_round(
            tmp_path, memory_bytes=[GIB] * 3, cores=[2] * 3, walltime_s=[90.0] * 3, settings=settings
        )
        calls = [call.command for call in SlurmSystem().write(batch_round)]
        for option in (
            "--partition=milano",
            "--account=rubin:commissioning",
            "--cpus-per-task=2",
            "--mem=1408M",  # and 384 MiB for what surrounds the quanta
            "--time=2",
            "--requeue",
            "--open-mode=append",
            f"--job-name={batch_round.name}",
            f"--output={batch_round.logs}/slurm-000.txt",
        ):
            assert option in calls[0]
        assert [*calls[0][-6:-3]] == ["--constraint=haswell", "--qos", "normal"]
        assert "--mem=2432M" in calls[-1]
        assert "--partition=milano" in calls[-1]
        assert not fake.calls("sbatch")

    def test_no_more_memory_than_the_largest_machine_has(self, install: Install, tmp_path: Path) -> None:
        """What a job needs besides its quanta must not make it impossible."""
        install(machines="4|4096\n8|2048\n")
        calls = SlurmSystem().write(make_round(tmp_path, memory_bytes=[4 * GIB] * 3))
        assert "--mem=4096M" in calls[0].command

    def test_what_slurm_has_not_is_said(
        self, fake: FakeSlurm, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A limit on waiting jobs, and an account's user, are HTCondor's: both are named and left out."""
        batch_round = make_round(tmp_path, settings=BatchSettings(max_idle=5, accounting_user="me"))
        SlurmSystem().write(batch_round)
        assert "maxIdle is ignored" in caplog.text
        assert "accountingUser is ignored" in caplog.text

    def test_what_a_round_waits_for_is_said(self, fake: FakeSlurm, chains: Round) -> None:
        """In words, with the jobs of each call."""
        calls = SlurmSystem().write(chains)
        assert [(call.n_jobs, call.waits_for) for call in calls] == [
            (2, ""),
            (2, "each for the end of its own parent in 0"),
            (1, "the end of all of 1"),
            (1, "the end of all of them"),
        ]
        assert SlurmSystem().least_s(chains, np.asarray([1.0, 2.0, 9.0, 1.0, 1.0])) == 11.0

    def test_limits(self, install: Install, tmp_path: Path) -> None:
        """Arrays are cut to what Slurm takes, rounds to half of what it can hold."""
        fake = install(max_array_size=5, max_job_count=100)
        batch_round = replace(make_round(tmp_path), jobs=jobs_of([[] for _ in range(9)]))
        system = SlurmSystem()
        system.write(batch_round)
        system.submit(batch_round)
        assert [call[1] for call in fake.calls("sbatch")[:3]] == ["--array=0-3", "--array=0-3", "--array=0"]
        assert system.most_jobs(BatchSettings()) == 49
        assert system.most_jobs(BatchSettings(max_jobs=10)) == 9
        assert system.most_jobs(BatchSettings(max_jobs=1000)) == 49

    def test_environment(self, fake: FakeSlurm, chains: Round, monkeypatch: pytest.MonkeyPatch) -> None:
        """What speaks of the job that submits is not handed on to those that it submits."""
        (fake.folder / "bin" / "sbatch").write_text(f"#!/bin/sh\nenv > {fake.folder}/env\necho 7\n")
        monkeypatch.setenv("SLURM_JOB_ID", "3")
        monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
        monkeypatch.setenv("REPO", "here")
        system = SlurmSystem()
        system.write(chains)
        system.submit(chains)
        names = {line.partition("=")[0] for line in (fake.folder / "env").read_text().splitlines()}
        assert {"SLURM_CONF", "REPO"} <= names
        assert "SLURM_JOB_ID" not in names


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "advice"),
        [
            ("invalid partition specified: nope", "queue"),
            ("Invalid account or account/partition combination specified", "accountingGroup"),
            ("Memory specification can not be satisfied", "requestMemory"),
            ("Requested time limit is invalid (missing or exceeds some limit)", "requestWalltime"),
            ("Job violates accounting/QOS policy (job submit limit, the user's size)", "maxJobs"),
            ("Resource temporarily unavailable", "maxJobs"),
        ],
    )
    def test_its_own_words_and_what_to_do(
        self, fake: FakeSlurm, chains: Round, words: str, advice: str
    ) -> None:
        """Nothing is left in it."""
        fake.refuse(f"sbatch: error: {words}\n")
        system = SlurmSystem()
        system.write(chains)
        with pytest.raises(ModelError) as caught:
            system.submit(chains)
        _said(caught.value, words, advice, "--array=0-1")
        assert not fake.calls("scancel")

    def test_midway(self, fake: FakeSlurm, chains: Round) -> None:
        """What had been taken is removed again."""
        fake.refuse("sbatch: error: Batch job submission failed: no\n", since=103)
        system = SlurmSystem()
        system.write(chains)
        with pytest.raises(
            ModelError, match="Slurm refuses the jobs: sbatch: Batch job submission failed: no"
        ):
            system.submit(chains)
        assert fake.calls("scancel") == [["--quiet", "101", "102"]]

    def test_what_cannot_be_removed_is_said(self, fake: FakeSlurm, chains: Round) -> None:
        """Slurm went away midway: the first error stays, and says what may be left."""
        fake.refuse("sbatch: error: Unable to contact slurm controller (connect failure)\n", since=102)
        fake.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
        system = SlurmSystem()
        system.write(chains)
        with pytest.raises(ModelError, match="Slurm refuses the jobs") as caught:
            system.submit(chains)
        _said(caught.value, f"scancel --name={chains.name}")

    @pytest.mark.parametrize(
        ("options", "said"),
        [({"cores": [1, 8, 1]}, "8 cores"), ({"memory_bytes": [GIB, 16 * GIB, GIB]}, "17.2 GB")],
    )
    def test_more_than_any_machine_has(
        self, fake: FakeSlurm, tmp_path: Path, options: dict[str, Any], said: str
    ) -> None:
        """Slurm would let some of these wait for ever; nothing is submitted."""
        batch_round = make_round(tmp_path, **options)
        with pytest.raises(ModelError, match="no machine of Slurm can take b") as caught:
            SlurmSystem().submit(batch_round)
        _said(caught.value, said, "4 cores and 8.4 GB")
        assert not fake.calls("sbatch")

    @pytest.mark.parametrize("line", ["haswell", "--array=3", "-J mine", "#SBATCH --output=x", "-da:3"])
    def test_lines_of_the_site(self, fake: FakeSlurm, tmp_path: Path, line: str) -> None:
        """What is no option, or one that a round is found or followed by, is refused."""
        batch_round = make_round(tmp_path, settings=BatchSettings(submit_lines=(line,)))
        with pytest.raises(UsageError) as caught:
            SlurmSystem().write(batch_round)
        _said(caught.value, line)
        assert not list(batch_round.folder.glob("*.sh"))

    def test_no_slurm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The message says what is missing."""
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ModelError, match="there is no Slurm here: scontrol"):
            SlurmSystem().check()

    def test_no_answer(self, fake: FakeSlurm) -> None:
        """It is down."""
        fake.fail(
            "scontrol", "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)\n"
        )
        with pytest.raises(ModelError, match="does not answer: scontrol: Unable to contact") as caught:
            SlurmSystem().check()
        _said(caught.value, "scontrol ping")

    @pytest.mark.parametrize(
        ("program", "said"),
        [
            ("scontrol", "MaxArraySize = (null)\nMaxJobCount = (null)\n"),
            ("sinfo", "CPUS|MEMORY\n4|8000\n"),
        ],
    )
    def test_numbers_that_are_none(self, fake: FakeSlurm, chains: Round, program: str, said: str) -> None:
        """What stands where a number should is told; nothing was submitted."""
        fake.answer(program, said)
        with pytest.raises(ModelError, match=f"{program} says what cannot be read"):
            SlurmSystem().submit(chains)
        assert not fake.calls("sbatch")

    def test_a_job_whose_number_cannot_be_read(self, fake: FakeSlurm, chains: Round) -> None:
        """A site's own sbatch says more than a number: what it has taken is removed again, by its name."""
        (fake.folder / "bin" / "sbatch").write_text("#!/bin/sh\necho Welcome; echo 101\n")
        fake.answer("squeue", _lines(chains, "101|0-1|101|PENDING|0||0: a, b|Priority"))
        system = SlurmSystem()
        system.write(chains)
        with pytest.raises(ModelError, match=r"sbatch says what cannot be read: .*Welcome"):
            system.submit(chains)
        assert fake.calls("scancel") == [["--quiet", "101"]]

    def test_it_hangs(self, fake: FakeSlurm) -> None:
        """Nobody waits for ever."""
        (fake.folder / "bin" / "scontrol").write_text("#!/bin/sh\nexec tail -f /dev/null\n")
        system = SlurmSystem()
        system.pace = replace(QUICK, answer_s=0.2)
        with pytest.raises(ModelError, match="Slurm does not answer: scontrol took more than"):
            system.check()


class TestLooking:
    def _submitted(self, chains: Round) -> tuple[SlurmSystem, Round]:
        system = SlurmSystem()
        system.write(chains)
        chains.write_ticket(system.submit(chains))
        return system, chains

    def test_states(self, fake: FakeSlurm, chains: Round) -> None:
        """Of each job, of all together, and of the closing one; from one call."""
        system, _ = self._submitted(chains)
        fake.answer(
            "squeue",
            _lines(
                chains,
                "101|0|101|COMPLETED|0|n1|0: a, b|None",
                "101|1|101|RUNNING|0|n2|0: a, b|None",
                "102|0-1|102|PENDING|0||1: c, d|Dependency",
                "103|0|103|PENDING|0||2: e|JobHeldUser",
                "104|N/A|104|PENDING|0||closing|Dependency",
            ),
        )
        status = system.look(chains, chains.ticket or {})
        assert not status.is_over
        assert {job: found.state.value for job, found in status.jobs.items()} == {
            0: "ended",
            1: "running",
            2: "queued",
            3: "queued",
            4: "held",
        }
        assert status.counts == {JobState.ENDED: 1, JobState.RUNNING: 1, JobState.QUEUED: 2, JobState.HELD: 1}
        assert status.closing is not None
        assert status.closing.state is JobState.QUEUED
        assert status.reason == "1 job waits: JobHeldUser"
        assert len(fake.calls("squeue")) == 1

    def test_what_waits_for_ever_is_said(self, fake: FakeSlurm, chains: Round) -> None:
        """A reason that is no ordinary one is the round's."""
        system, _ = self._submitted(chains)
        fake.answer("squeue", _lines(chains, "101|0-1|101|PENDING|0||0: a, b|AssocGrpCpuLimit"))
        assert system.look(chains, chains.ticket or {}).reason == "2 jobs wait: AssocGrpCpuLimit"

    @pytest.mark.parametrize(
        ("state", "end"),
        [
            ("OUT_OF_MEMORY", JobEnd.OUT_OF_MEMORY),
            ("NODE_FAIL", JobEnd.LOST),
            ("PREEMPTED", JobEnd.LOST),
            ("TIMEOUT", JobEnd.TIMED_OUT),
        ],
    )
    def test_ends(self, fake: FakeSlurm, chains: Round, state: str, end: JobEnd) -> None:
        """What one node of a test's own cannot show."""
        system, _ = self._submitted(chains)
        fake.answer("squeue", _lines(chains, f"101|0|101|{state}|0|n1|0: a, b|None"))
        status = system.look(chains, chains.ticket or {})
        assert status.is_over
        assert status.jobs[0].end is end

    def test_killed_for_its_memory(self, fake: FakeSlurm, chains: Round) -> None:
        """Where Slurm itself watches memory, only its words in the job's log say so."""
        system, _ = self._submitted(chains)
        (chains.logs / "slurm-000.txt").write_text(
            "slurmstepd-n1: error: StepId=101.batch exceeded memory limit (8247 > 7172), being killed\n"
        )
        said = "FAILED|9|n1|0: a, b|JobLaunchFailure"
        fake.answer("squeue", _lines(chains, f"101|0|105|{said}", f"101|1|101|{said}"))
        jobs = system.look(chains, chains.ticket or {}).jobs
        assert [jobs[job].end for job in (0, 1)] == [JobEnd.SIGNALLED, JobEnd.OUT_OF_MEMORY]

    def test_forgotten(self, fake: FakeSlurm, chains: Round) -> None:
        """Without books, jobs that Slurm has forgotten have ended, and nobody knows how."""
        system, _ = self._submitted(chains)
        fake.answer("squeue", "")
        status = system.look(chains, chains.ticket or {})
        assert (status.is_over, status.jobs, status.counts) == (True, {}, {JobState.ENDED: 5})
        assert not fake.calls("sacct")

    def test_forgotten_but_in_the_books(self, install: Install, chains: Round) -> None:
        """With an accounting database it says how they ended; one query for all."""
        fake = install(accounting="accounting_storage/slurmdbd")
        system, _ = self._submitted(chains)
        fake.answer("squeue", _lines(chains, "103|0|103|COMPLETED|0|n1|2: e|None"))
        fake.answer("sacct", "101_0|COMPLETED|0:0|n1||\n101_1|OUT_OF_MEMORY|0:125|n2||\n")
        status = system.look(chains, chains.ticket or {})
        assert status.jobs[1].end is JobEnd.OUT_OF_MEMORY
        assert status.jobs[4].end is JobEnd.EXITED
        assert len(fake.calls("sacct")) == 1

    def test_no_answer(self, fake: FakeSlurm, chains: Round) -> None:
        """Then nothing is concluded."""
        system, _ = self._submitted(chains)
        fake.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
        with pytest.raises(ModelError, match="does not answer"):
            system.look(chains, chains.ticket or {})

    @pytest.mark.parametrize(
        "said",
        [
            "hello\n",
            "101|0|101|COMPLETED|0|n1|0: a, b|None|\n101|1|101|COMPL",  # a pipe that broke
            "101|0,...|101|PENDING|0||0: a, b|None|\n",  # squeue's own abbreviation
        ],
    )
    def test_words_that_nobody_understands(self, fake: FakeSlurm, chains: Round, said: str) -> None:
        """They are no reason to conclude anything either."""
        system, _ = self._submitted(chains)
        fake.answer("squeue", said)
        with pytest.raises(ModelError, match="squeue says what cannot be read"):
            system.look(chains, chains.ticket or {})


class TestFinding:
    def test_never_submitted(self, fake: FakeSlurm, chains: Round) -> None:
        """Nothing was noted, nothing bears its name, no job has begun."""
        assert SlurmSystem().find(chains) is None

    def test_submitted_in_part(self, fake: FakeSlurm, chains: Round) -> None:
        """What was noted, and what was submitted last and not noted."""
        (chains.folder / "submitted.txt").write_text("101\n")
        fake.answer("squeue", _lines(chains, "102|0-1|102|PENDING|0||1: c, d|Dependency"))
        assert SlurmSystem().find(chains) == {"arrays": [101, 102], "closing": None}

    def test_all_forgotten(self, fake: FakeSlurm, chains: Round) -> None:
        """Jobs that ran to their end before anybody looked have left their journals."""
        chains.journal(0).mkdir(parents=True)
        assert SlurmSystem().find(chains) == {"arrays": [], "closing": None}

    def test_cancelling(self, fake: FakeSlurm, chains: Round) -> None:
        """All arrays and the closing job, those too that only Slurm knows of."""
        fake.answer("squeue", _lines(chains, "107|0|107|PENDING|0||2: e|Dependency"))
        SlurmSystem().cancel(chains, {"arrays": [101, 102, None], "closing": 104})
        assert fake.calls("scancel") == [["--quiet", "101", "102", "104", "107"]]


def test_scripts_are_readable(fake: FakeSlurm, chains: Round) -> None:
    """They are plain files; what runs them is named."""
    SlurmSystem().write(chains)
    for name in ("job.sh", "run.sh", "closing.sh"):
        path = chains.folder / name
        assert path.read_text().startswith("#!/bin/bash\n")
        assert path.stat().st_mode & stat.S_IRUSR
