"""What a batch job does, in processes of its own as on any batch system: `qgexec worker --job N`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from lsst.utils.packages import Packages

from qgexec.api import GraphExecutor
from qgexec.batch.rounds import last_round
from qgexec.batch.system import JobEnd, JobState, JobStatus
from qgexec.books.journal import read_events
from qgexec.clustering.rules import ClusterRules, NamedCluster
from qgexec.config.batchsettings import BatchSettings
from qgexec.config.logoptions import LogOptions
from qgexec.config.runconfig import RunConfig
from qgexec.events import AttemptEvent, AttemptLost, AttemptStarted, AttemptSucceeded
from qgexec.rubin.preexec import Preparation
from tests.kit.batch.handsystem import Hand, HandSystem, hand_system
from tests.kit.batch.submitted import Submitted, half_written, hidden, submit, wait_until
from tests.kit.butler.repos import (
    MockRepository,
    add_standard_tasks,
    open_repository,
    save_graph,
    task_config,
)
from tests.kit.checkout import PYTHONPATH
from tests.kit.runs.damage import flip_digit
from tests.kit.tasks.moods import MoodyTask
from tests.kit.tasks.tellingtask import TOLD, TellingTask

Layer = Callable[[Path], AbstractContextManager[Callable[[], None]]]

IMAGES = ClusterRules(clusters={"images": NamedCluster(pipetasks=("isr", "calibrate"))})
"""One job for all images, and one for each summary."""
PATIENT = BatchSettings(visibility_s=1e6, clustering=IMAGES)
IMPATIENT = BatchSettings(visibility_s=0.0, clustering=IMAGES)
SINGLE = BatchSettings()


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[HandSystem]:
    with hand_system(monkeypatch) as system:
        yield system


Submit = Callable[..., Submitted]


@pytest.fixture
def submitted(system: HandSystem, repository: MockRepository, tmp_path: Path) -> Submit:
    """Submits the standard graph, or that of another repository, as told."""

    def make(
        settings: BatchSettings = SINGLE, of: MockRepository = repository, **options: object
    ) -> Submitted:
        return submit(system, of, tmp_path / "run", settings, **options)

    return make


def inputs_of_summary(run: Submitted, job: int) -> set[int]:
    """Return the detectors whose images a summary says it has read."""
    summary = json.loads(run.output(job, "visit_summary_mock").read_text())
    return {each["data_id"]["detector"] for each in summary["quantum"]["inputs"]["calibrated"]}


class TestLogging:
    """What the run was told to log."""

    def test_jobs_log_as_the_run_was_told(self, submitted: Submit, tmp_path: Path) -> None:
        """To their own output, and each to files of its own beside those that are named."""
        asked = LogOptions.parse(["DEBUG"], long=True, files=[str(tmp_path / "run.log")])
        run = submitted(SINGLE, logging=asked)
        first, second, *_ = run.jobs("isr")
        for job in (first, second):
            done = run.run(job)
            assert done.returncode == 0
            text = (tmp_path / f"run.r1j{job}.log").read_text()
            for log in (text, done.stdout + done.stderr):
                assert log.count("Execution of task 'isr' on quantum") == 1
        assert "DEBUG " in text
        assert not (tmp_path / "run.log").exists()


class TestLateInputs:
    """What another job wrote is not seen here yet."""

    @pytest.mark.every(3)
    @pytest.mark.parametrize(
        ("layer", "what"), [(hidden, "file"), (half_written, "file"), (hidden, "segment")]
    )
    def test_waits(self, submitted: Submit, layer: Layer, what: str) -> None:
        """A task that would go on without one of its inputs waits, and has all of them then."""
        run = submitted(PATIENT)
        run.run_well("images")
        (late,), (job, _) = run.jobs("images"), run.jobs("summary")
        path = run.segment(late) if what == "segment" else run.output(late, "calibrated", run.visit(job))
        with layer(path) as show, run.running(job) as process:
            wait_until(lambda: run.kinds(job) == ["AttemptStarted"])
            show()
            process.communicate(timeout=120.0)
        assert process.returncode == 0
        assert run.kinds(job) == ["AttemptStarted", "AttemptSucceeded"]
        assert inputs_of_summary(run, job) == {1, 2, 3, 4}

    def test_never_seen(self, submitted: Submit) -> None:
        """What is not seen in time is a loss, tried again as others are; then it says what was not seen."""
        run = submitted(IMPATIENT)
        run.run_well("images")
        (late,), (job, other) = run.jobs("images"), run.jobs("summary")
        path = run.output(late, "calibrated", run.visit(job))
        with hidden(path):
            assert run.run(job).returncode == 0
            assert run.run(other).returncode == 0
        assert run.kinds(job) == ["AttemptStarted", "AttemptLost"] * 4
        assert run.kinds(other) == ["AttemptStarted", "AttemptSucceeded"]
        last = run.events(job)[-1]
        assert isinstance(last, AttemptLost)
        assert not last.retried
        for words in ("is not to be seen on", "after 0 s", str(path)):
            assert words in last.reason

    @pytest.mark.thorough
    def test_not_written(self, submitted: Submit, tmp_path: Path) -> None:
        """What its producer did not write is not waited for."""
        place = MockRepository(tmp_path / "own" / "repo", tmp_path / "own" / "graph.qg", Path())
        config = task_config(
            fail_condition="visit = 1 AND detector = 2", fail_exception="lsst.pipe.base.NoWorkFound"
        )
        with open_repository(place.root) as repo:
            add_standard_tasks(repo, {"calibrate": config})
            save_graph(repo, place.graph, register=False)
        run = submitted(PATIENT, of=place)
        run.run_well("images", "summary")
        found = sorted((inputs_of_summary(run, job) for job in run.jobs("summary")), key=len)
        assert found == [{1, 3, 4}, {1, 2, 3, 4}]

    @pytest.mark.thorough
    def test_of_an_earlier_round(self, submitted: Submit, system: HandSystem, tmp_path: Path) -> None:
        """What was written before the last submission is waited for as well."""

        first = submitted(IMPATIENT)
        first.run_well("images")
        gone = JobStatus(JobState.ENDED, "removed", JobEnd.CANCELLED)
        system.jobs[first.batch_round.name] = dict.fromkeys(first.batch_round.jobs, gone)
        GraphExecutor.of_run(tmp_path / "run", model=Hand(IMPATIENT)).resume(leave=True)
        found = last_round(first.run_dir)
        assert found is not None
        assert found.number == 2
        second = Submitted(first.repository, found)
        job = second.jobs("summary")[0]
        with hidden(first.segment(first.jobs("images")[0])):
            assert second.run(job).returncode == 0
        assert second.kinds(job) == ["AttemptStarted", "AttemptLost"] * 4


class TestVersions:
    """Other software than where the run was submitted."""

    @pytest.fixture
    def recorded(self) -> Callable[[Submitted, str], None]:
        """Has the RUN say that it was made with another numpy."""

        def change(run: Submitted, version: str) -> None:
            (path,) = (path for path in run.repository.root.rglob("packages*") if path.is_file())
            packages = Packages.read(str(path))
            packages["numpy"] = version
            packages["of_the_login_node_only"] = "1.0"
            packages.write(str(path))

        return change

    def test_named(self, submitted: Submit, recorded: Callable[[Submitted, str], None]) -> None:
        """The packages that differ are named in the job's log, once, and it goes on."""
        run = submitted()
        recorded(run, "0.1")
        ended = run.run(0)
        assert ended.returncode == 0
        (line,) = ended.stderr.splitlines()
        assert line.startswith("WARNING: package versions on ")
        assert "are not those of the run: numpy" in line
        assert line.endswith(", was 0.1")
        assert run.kinds(0) == ["AttemptStarted", "AttemptSucceeded"]

    @pytest.mark.thorough
    def test_refused(self, submitted: Submit, recorded: Callable[[Submitted, str], None]) -> None:
        """If that is what the run was told, no quantum is begun, and no other try is asked for."""
        run = submitted(strict_versions=True)
        recorded(run, "0.1")
        ended = run.run(0)
        assert ended.returncode == 2
        assert one_error(ended).startswith("Error: worker 1 cannot start: package versions on ")
        assert "numpy" in ended.stderr
        assert "--strict-versions" in ended.stderr
        assert run.kinds(0) == []

    @pytest.mark.thorough
    def test_the_same(self, submitted: Submit) -> None:
        """Nothing is said where nothing differs."""
        run = submitted(strict_versions=True)
        ended = run.run(0)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def one_error(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the line of the one error that a job printed."""
    assert "Traceback" not in ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("Error: "))
    return line


class TestWhatANodeCannotUse:
    """One clear message, no quantum begun, and no other try is asked for."""

    def test_run_directory(self, submitted: Submit) -> None:
        """A node that does not see the run directory is named, and what it would have to see."""
        run = submitted()
        with hidden(run.run_dir.path):
            ended = subprocess.run(
                run.batch_round.job_command("0"), capture_output=True, text=True, timeout=120, check=False
            )
        assert ended.returncode == 2
        assert f"{run.run_dir.path} does not exist" in one_error(ended)
        assert "machines that execute jobs must see the run directory" in ended.stderr

    @pytest.mark.thorough
    def test_graph(self, submitted: Submit) -> None:
        """So is one that does not see the graph."""
        run = submitted()
        graph = run.run_dir.path / "graph.qg"
        with hidden(graph):
            ended = run.run(0)
        assert ended.returncode == 2
        assert str(graph) in one_error(ended)
        assert "the graph and the repository, by the same paths" in ended.stderr
        assert run.kinds(0) == []

    @pytest.mark.thorough
    def test_damaged_graph(self, submitted: Submit) -> None:
        """A graph that cannot be read."""
        run = submitted()
        graph = run.run_dir.path / "graph.qg"
        with half_written(graph):
            ended = run.run(0)
        assert ended.returncode == 2
        assert str(graph) in one_error(ended)
        assert run.kinds(0) == []

    @pytest.mark.thorough
    def test_repository(self, submitted: Submit) -> None:
        """A repository that is not there."""
        run = submitted()
        with hidden(run.repository.root):
            ended = run.run(0)
        assert ended.returncode == 2
        assert str(run.repository.root) in one_error(ended)
        assert run.kinds(0) == []

    @pytest.mark.thorough
    def test_task(self, submitted: Submit, tmp_path: Path) -> None:
        """A task that cannot be imported there."""
        place = MockRepository(tmp_path / "own" / "repo", tmp_path / "own" / "graph.qg", Path())
        with open_repository(place.root) as repo:
            add_standard_tasks(repo, task_classes={"isr": MoodyTask})
            save_graph(repo, place.graph, register=False)
        run = submitted(of=place)
        ended = run.run_anew(0, PYTHONPATH=PYTHONPATH.split(":")[0])
        assert ended.returncode == 2
        assert "tests.kit.tasks.moods" in one_error(ended)
        assert "PYTHONPATH" in ended.stderr
        assert run.kinds(0) == []


def test_imports_no_stack() -> None:
    """What a job's first process imports is small: its worker imports the stack, once."""
    code = "import qgexec.batchjob, sys; sys.exit('lsst' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.thorough
def test_leaves_few_files(submitted: Submit) -> None:
    """A job leaves a journal and a segment, and no logs that say nothing."""
    run = submitted()
    before = {path for path in run.run_dir.path.rglob("*") if path.is_file()}
    assert run.run(0).returncode == 0
    after = {path for path in run.run_dir.path.rglob("*") if path.is_file()} - before
    after.discard(run.batch_round.logs / "0.txt")
    assert after == {run.batch_round.journal(0) / "0001.jsonl", run.segment(0)}


@pytest.mark.thorough
def test_job_without_work_leaves_no_segment(submitted: Submit) -> None:
    """A job whose quanta all have succeeded starts nothing."""
    run = submitted()
    assert run.run(0).returncode == run.run(0).returncode == 0
    assert len([*run.run_dir.segments.iterdir()]) == 1
    assert run.kinds(0) == ["AttemptStarted", "AttemptSucceeded"]


def test_a_journal_that_is_not_what_was_written(submitted: Submit) -> None:
    """A success whose line was damaged is done again; a late line of an earlier try is nothing."""
    run = submitted()
    assert run.run(0).returncode == 0
    folder = run.batch_round.journal(0)
    first = folder / "0001.jsonl"
    whole = first.read_bytes()
    flip_digit(
        first, 1 + next(n for n, line in enumerate(whole.splitlines()) if line.startswith(b'{"e":"ok"'))
    )
    again = run.run(0)
    assert again.returncode == 0, again.stderr
    assert "damaged line" in again.stderr + again.stdout
    with first.open("ab") as file:
        file.writelines(whole.splitlines(keepends=True)[1:])
    assert run.run(0).returncode == 0
    events = [event for event in read_events(folder, damaged=[]) if isinstance(event, AttemptEvent)]
    assert [(type(event), event.attempt) for event in events] == [
        (AttemptStarted, 1),
        (AttemptLost, 1),
        (AttemptStarted, 2),
        (AttemptSucceeded, 2),
    ]


@pytest.mark.every(2)
@pytest.mark.parametrize("implicit_threads", [False, True])
def test_told_the_same_as_locally(
    submitted: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, implicit_threads: bool
) -> None:
    """A quantum of a job is told the cores, memory and threads that it may use as one of the pool is."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    place = MockRepository(tmp_path / "own" / "repo", tmp_path / "own" / "graph.qg", Path())
    with open_repository(place.root) as repo:
        add_standard_tasks(repo, task_classes={"isr": TellingTask})
        save_graph(repo, place.graph, register=False)
    config = RunConfig({"cores": 2, "memory_bytes": 3 << 20}, batch=SINGLE)
    run = submitted(of=place, config=config, implicit_threads=implicit_threads)
    ended = run.run(0, **{TOLD: str(tmp_path / "job")})
    assert (ended.returncode, ended.stderr) == (0, "")
    monkeypatch.setenv(TOLD, str(tmp_path / "pool"))
    GraphExecutor(
        str(place.root),
        "pool",
        processes=2,
        config=config,
        implicit_threads=implicit_threads,
        run_dir=tmp_path / "local",
        prepare=Preparation(extend_run=True),
        skip_existing=True,
    ).execute(place.graph)
    (job,) = set((tmp_path / "job").read_text().splitlines())
    (pool,) = set((tmp_path / "pool").read_text().splitlines())
    threads = "any" if implicit_threads else "1"
    assert job == pool == f"2 cores, {3 << 20} bytes, {threads} threads"


def test_variables_of_a_task(submitted: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has the variables of its job's task; one that only the job has is replaced there."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    place = MockRepository(tmp_path / "own" / "repo", tmp_path / "own" / "graph.qg", Path())
    with open_repository(place.root) as repo:
        add_standard_tasks(repo, task_classes={"isr": TellingTask})
        save_graph(repo, place.graph, register=False)
    own = {TOLD: f"{tmp_path}/${{WHERE}}-${{UNSET}}", "OMP_NUM_THREADS": None}
    settings = BatchSettings(environments={"isr": own})
    config = RunConfig({"memory_bytes": 3 << 20}, batch=settings)
    run = submitted(settings, of=place, config=config, implicit_threads=True)
    ended = run.run(0, WHERE="here", OMP_NUM_THREADS="7", QGEXEC_BEFORE_OMP_NUM_THREADS="3")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "here-${UNSET}").read_text().rstrip().endswith("3 threads")
