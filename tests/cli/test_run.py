"""`qgexec run`: quanta that fail in every way, and what is then said, recorded and kept."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qgexec.processes import forked
from tests.kit.butler.repos import INPUT_CHAIN, N_QUANTA, OUTPUT_RUN, MockRepository
from tests.kit.commands.qgexec import (
    Command,
    Moods,
    Result,
    call,
    datasets,
    go_on_command,
    one_message,
    report_of,
)
from tests.kit.tasks.moodytask import STDERR_BYTES

Start = Callable[..., Command]

DETECTORS = {f"{visit},{detector}" for visit in (1, 2) for detector in (1, 2, 3, 4)}


def arguments(repository: MockRepository, *options: object) -> list[object]:
    given = ["--register-dataset-types", "--no-versions", "--run-dir", "books"]
    return ["run", "-b", repository.root, "-g", repository.graph, *given, *options]


def run(repository: MockRepository, *options: object) -> Result:
    return call(*arguments(repository, *options))


def go_on(result: Result) -> Result:
    """Give the command that the run said goes on with it."""
    return call(*shlex.split(go_on_command(result.err))[1:])


@pytest.mark.usefixtures("folder")
class TestFailures:
    """Failed quanta."""

    def test_in_workers(self, repository: MockRepository, moods: Moods, start: Start, folder: Path) -> None:
        """Whatever a quantum does to its worker, it is in the report, and all others succeed."""
        moods.set(
            {
                "isr 1,1": "raise unpicklable",
                "isr 1,2": "sys.exit",
                "isr 1,3": "os._exit",
                "isr 1,4": "segfault",
                "isr 2,1": "flood",
            }
        )
        result = start(*arguments(repository, "-j", 2)).finish()
        assert result.code == 1
        report = report_of(folder / "books")
        assert {(f["task_label"], f["data_id"]["visit"]) for f in report["failures"]} == {("isr", 1)}
        failures = {f["data_id"]["detector"]: f["attempts"][-1] for f in report["failures"]}
        assert {d: (f["ended"], f["exit_code"]) for d, f in failures.items()} == {
            1: ("raised", None),
            2: ("raised", None),
            3: ("exited", 9),
            4: ("signalled", -signal.SIGSEGV),
        }
        assert failures[1]["exception_type"] == "tests.kit.tasks.moodytask.UnpicklableError"
        assert "telescope: on fire" in failures[1]["traceback"]
        assert failures[2]["message"] == "called sys.exit(7)"
        assert "about to leave" in Path(failures[3]["log"]).read_text()
        assert "SIGSEGV" in failures[4]["message"]
        assert "Segmentation fault" in Path(failures[4]["stack"]).read_text()
        assert report["total"]["succeeded"] == 9
        assert report["total"]["blocked"] == 6
        assert datasets(repository, "post_isr") == {d for d in DETECTORS if d.startswith("2")}
        assert datasets(repository, "isr_log") >= {"1,1", "1,2", "2,1"}
        printed = [path.stat().st_size for path in (folder / "books" / "logs").glob("worker-*.out")]
        assert sum(printed) >= STDERR_BYTES
        assert len(result.err) < 5000

    def test_in_this_process(self, repository: MockRepository, moods: Moods) -> None:
        """What a quantum raises ends neither the run nor the process."""
        moods.set({"isr 1,1": "raise unpicklable", "isr 1,2": "sys.exit", "isr 1,3": "raise"})
        result = run(repository)
        assert result.code == 1
        failures = report_of(Path("books"))["failures"]
        assert {f["data_id"]["detector"]: f["attempts"][-1]["message"] for f in failures} == {
            1: "telescope: on fire",
            2: "called sys.exit(7)",
            3: "bad pixels in isr 1,3",
        }
        assert datasets(repository, "post_isr") == DETECTORS - {"1,1", "1,2", "1,3"}

    def test_report_says_it_all(self, repository: MockRepository, moods: Moods) -> None:
        """Task, data ID, exception, traceback and log are there to be read, on a terminal of 80 columns."""
        moods.set({"isr 1,3": "raise"})
        out = run(repository).out
        for words in (
            "1 x ValueError, blocks 3, at",
            "bad pixels in isr 1,3",
            "isr{instrument: 'Cam1', detector: 3,",
            "Traceback of quantum",
            "    raise ValueError(",
            ".1.log",
            "blocks 3",
        ):
            assert words in out
        indented = [line for line in out.splitlines() if not line.startswith(("     ", "Run directory"))]
        assert max(map(len, indented)) <= 80

    def test_going_on(self, repository: MockRepository, moods: Moods) -> None:
        """The command that is said at the end runs the rest again: then all is there, once."""
        moods.set({"isr 1,3": "raise", "calibrate 2,1": "sys.exit"})
        first = run(repository, "--memory-per-quantum", "4GB", "--no-raise-on-partial-outputs")
        assert first.code == 1
        assert "What succeeded is kept." in first.err
        assert go_on_command(first.err) == f"qgexec resume {Path('books').absolute()}"
        moods.set({})
        again = go_on(first)
        assert again.code == 0
        assert f"{N_QUANTA}/{N_QUANTA} succeeded" in again.err
        assert datasets(repository, "calibrated") == DETECTORS
        assert datasets(repository, "final_report") == {""}

    def test_same_command_again(self, repository: MockRepository, moods: Moods) -> None:
        """Who only calls up the last command is told of the one that goes on."""
        moods.set({"isr 1,3": "raise"})
        assert run(repository).code == 1
        again = run(repository, "--run-dir", "other")
        one_message(again, "exists already", f"qgexec resume qgexec-runs/{OUTPUT_RUN}")

    def test_wrong_graph(self, repository: MockRepository, moods: Moods) -> None:
        """The run stops, and nobody is told to go on with it."""
        moods.set({"isr 1,3": "raise invalid"})
        result = run(repository)
        assert result.code == 1
        assert "stopped (invalid quantum)" in result.out
        assert "Make a new graph" in result.err
        assert "qgexec resume" not in result.err

    def test_quantum_ends_the_only_process(
        self, repository: MockRepository, moods: Moods, start: Start, folder: Path
    ) -> None:
        """Without workers a killed quantum takes all with it; `status` says so, and one can go on."""
        moods.set({"isr 1,3": "os._exit"})
        assert start(*arguments(repository)).finish().code == 9
        status = call("status", folder / "books")
        assert status.code == 0
        assert "driver gone" in status.out
        moods.set({})
        assert call("resume", folder / "books").code == 0
        assert datasets(repository, "calibrated") == DETECTORS

    @pytest.mark.every(2)
    @pytest.mark.parametrize("processes", [1, 2])
    def test_fail_fast(self, repository: MockRepository, moods: Moods, processes: int) -> None:
        """The first failure ends the run: nothing else begins, and what runs is not waited for."""
        moods.set({"isr": "raise"} | ({"isr 1,1": "wait"} if processes == 2 else {}))
        result = run(repository, "--fail-fast", "-j", processes)
        assert result.code == 1
        report = report_of(Path("books"))
        assert report["stop_reason"] == "failed fast"
        assert 1 <= report["total"]["failed"] <= processes
        assert report["total"]["not_run"] >= 1
        assert report["total"]["running"] == 0
        assert "stopped (failed fast)" in result.out

    def test_timeout(self, repository: MockRepository, moods: Moods) -> None:
        """A quantum over its time is ended, and the report says so; the others succeed."""
        moods.set({"isr 1,1": "wait"})
        result = run(repository, "-j", 2, "--timeout", 4)
        assert result.code == 1
        (failure,) = report_of(Path("books"))["failures"]
        assert (failure["attempts"][-1]["ended"], failure["data_id"]["detector"]) == ("timed out", 1)
        assert "in _act" in failure["attempts"][-1]["traceback"]
        for text in (result.err, result.out):
            assert "time limit of 4 s" in text
        assert datasets(repository, "post_isr") == DETECTORS - {"1,1"}
        assert not [path for path in repository.root.rglob("*") if path.name.startswith("tmp")]

    def test_timeout_in_this_process(self, repository: MockRepository, moods: Moods) -> None:
        """So it is without workers, where the quantum lets itself be interrupted."""
        moods.set({"isr 1,1": "wait"})
        result = run(repository, "--timeout", 4)
        assert result.code == 1
        (failure,) = report_of(Path("books"))["failures"]
        assert (failure["attempts"][-1]["ended"], failure["data_id"]["detector"]) == ("timed out", 1)
        assert datasets(repository, "post_isr") == DETECTORS - {"1,1"}

    def test_worker_killed_from_outside(
        self, repository: MockRepository, moods: Moods, start: Start, folder: Path
    ) -> None:
        """A worker that is killed costs its quantum an attempt, which counts as nobody's failure."""
        moods.set({"isr 1,1": "wait", "isr 1,2": "wait"})
        command = start(*arguments(repository, "-j", 2))
        os.kill(moods.wait_for(2)["isr 1,1"], signal.SIGKILL)
        command.wait_for("was killed by signal 9 (SIGKILL)")
        moods.let_go()
        moods.let_go(1)
        assert command.finish().code == 0
        report = report_of(folder / "books")
        assert report["failures"] == []
        (quantum,) = report["retried"]
        lost = quantum["attempts"][0]
        assert (quantum["data_id"]["detector"], lost["exit_code"]) == (1, -signal.SIGKILL)
        assert Path(lost["log"]).is_file()
        assert datasets(repository, "post_isr") == DETECTORS


@pytest.mark.usefixtures("folder")
class TestBrokenRuns:
    """What is not a quantum's fault."""

    @pytest.mark.every(2)
    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("raise RuntimeError('no licence')", "no licence"),
            ("import os; os._exit(3)", "exited with status 3 before it began any quantum"),
        ],
    )
    def test_worker_cannot_start(
        self, repository: MockRepository, folder: Path, start: Start, line: str, said: str
    ) -> None:
        """One error that says why, soon; no quantum is blamed, and the report can be had."""
        (folder / "brittle.py").write_text(
            textwrap.dedent(f"""\
                import sys
                from tests.kit.tasks.moodytask import MoodyTask

                class BrittleTask(MoodyTask):
                    pass

                if sys.argv[0] == "-c":  # only in the server of the workers
                    {line}
                """)
        )
        pipeline = repository.graph.with_name("pipeline.yaml")
        pipeline.write_text(
            pipeline.read_text().replace("tests.kit.tasks.moodytask.MoodyTask", "brittle.BrittleTask")
        )
        options = ["-i", INPUT_CHAIN, "-o", "u/me", "--register-dataset-types", "--run-dir", "books", "-j", 2]
        result = start("run", "-b", repository.root, "-p", pipeline, *options).finish()
        assert result.code == 2
        assert said in result.err
        assert result.err.count("Error: ") == 1 + result.err.count("RuntimeError: ")
        assert "Traceback" not in result.err
        report = report_of(folder / "books")
        assert (report["state"], report["total"]["failed"]) == ("broken", 0)
        assert "To go on:" in result.err

    @pytest.mark.every(4)
    @pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
    @pytest.mark.parametrize("processes", [1, 2])
    @pytest.mark.parametrize("size_kb", [16, 48])
    def test_disk_full(
        self,
        repository: MockRepository,
        folder: Path,
        small_disk: Callable[[int], Path],
        size_kb: int,
        processes: int,
    ) -> None:
        """No room for the run's books: one error says so, no quantum is blamed, and one can go on."""
        graph_kb = 4 * (repository.graph.stat().st_size // 4096 + 1)
        disk = small_disk(size_kb + graph_kb)
        result = run(repository, "--run-dir", disk / "books", "-j", processes)
        assert result.code == 2
        assert "No space left on device" in result.err
        assert "Traceback" not in result.err
        assert report_of(disk / "books")["total"]["failed"] == 0
        exists = OUTPUT_RUN in repository.dump()["collections"]  # type: ignore[operator]
        again = run(repository, *(["--extend-run", "--clobber-outputs"] if exists else []))
        assert again.code == 0, again.err
        assert datasets(repository, "calibrated") == DETECTORS

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
    def test_no_room_for_the_graph(
        self, repository: MockRepository, folder: Path, small_disk: Callable[[int], Path]
    ) -> None:
        """Where not even the run's own copy of the graph fits, nothing is changed, and nothing is left."""
        disk, before = small_disk(8), repository.dump()
        one_message(run(repository, "--run-dir", disk / "books"), "No space left on device", "graph.qg")
        assert list(disk.iterdir()) == []
        assert repository.dump() == before


@pytest.mark.usefixtures("folder")
class TestOptions:
    """What options do when all is well."""

    @pytest.mark.thorough
    def test_many_processes(self, repository: MockRepository) -> None:
        """`-j 1000` costs no more than there is to do."""
        result = run(repository, "-j", 1000)
        assert result.code == 0
        assert len([*Path("books/logs").glob("worker-*.out")]) <= N_QUANTA

    def test_more_than_there_is(self, repository: MockRepository) -> None:
        """Cores and memory are what quanta are told, as pipetask has it: more than there is stops nothing."""
        assert run(repository, "-n", 500, "--memory-per-quantum", "900TB", "-j", 2).code == 0

    def test_summary(self, repository: MockRepository, moods: Moods) -> None:
        """Pipetask's report is written, also of a run with failures."""
        moods.set({"isr 1,3": "raise"})
        result = run(repository, "--summary", "summary.json")
        assert result.code == 1
        summary = json.loads(Path("summary.json").read_text())
        failed = [q for q in summary["quantaReports"] if q["status"] == "failure"]
        assert [q["taskLabel"] for q in failed if "exceptionInfo" in q] == ["isr"]

    def test_summary_cannot_be_written_at_the_end(self, repository: MockRepository) -> None:
        """Neither the report nor the exit code is lost with it."""
        result = run(repository, "--summary", "/dev/full")
        assert result.code == 0
        assert "State          succeeded" in result.out
        assert "--summary /dev/full could not be written" in result.err
        assert "Traceback" not in result.err

    def test_build(self, repository: MockRepository, folder: Path) -> None:
        """A graph is built, kept and executed in the same breath, with overrides and a data query."""
        pipeline = repository.graph.with_name("pipeline.yaml")
        (folder / "override.py").write_text("config.int_value = 5\n")
        options = ["-i", INPUT_CHAIN, "-o", "u/me", "-d", "visit = 1", "--save-qgraph", "kept.qg"]
        overrides = ["-c", "isr:int_value=4", "-C", "calibrate:override.py"]
        result = call(
            "run", "-b", repository.root, "-p", pipeline, *options, *overrides, "--register-dataset-types"
        )
        assert result.code == 0, result.err
        assert "The graph is saved as kept.qg" in result.err
        assert "10/10 succeeded" in result.err
        assert Path("kept.qg").is_file()
        with repository.butler() as butler:
            (name,) = butler.collections.query("u/me/*")
            assert butler.get("isr_config", collections=[name]).int_value == 4
            assert butler.get("calibrate_config", collections=[name]).int_value == 5

    def test_going_on_with_a_built_graph(self, repository: MockRepository, moods: Moods) -> None:
        """The graph that was built is named: it is not built twice."""
        moods.set({"isr 1,3": "raise"})
        pipeline = repository.graph.with_name("pipeline.yaml")
        options = ["-i", INPUT_CHAIN, "-o", "u/me", "-d", "visit = 1", "-c", "isr:int_value=4"]
        first = call("run", "-b", repository.root, "-p", pipeline, *options, "--register-dataset-types")
        assert first.code == 1
        assert "/qgexec-runs/u/me/" in go_on_command(first.err)
        moods.set({})
        again = go_on(first)
        assert again.code == 0, again.err
        assert "10/10 succeeded" in again.err

    @pytest.mark.every(2)
    @pytest.mark.parametrize("command", [["init"], ["run", "--init-only"]])
    def test_init(self, repository: MockRepository, command: list[str]) -> None:
        """Only the registry is brought up to date; a run that extends it finds all there."""
        given = ["-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
        result = call(*command, *given)
        assert (result.code, result.out) == (0, f"The registry is ready for {OUTPUT_RUN}.\n")
        assert datasets(repository, "isr_config") == {""}
        assert [*Path.cwd().iterdir()] == []
        assert call("run", *given, "--extend-run").code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many kilobytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size_kb: int) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "none", place],
            check=False,
            capture_output=True,
        )
        if done.returncode != 0:
            pytest.skip("this system does not let us mount")
        return place

    yield mount
    forked.shut_down()
    subprocess.run(["umount", place], check=False, capture_output=True)
