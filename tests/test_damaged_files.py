"""Files that are damaged, or not ours: each reader says so in one error of ours, or gives an answer.

The seed is fixed: what fails once fails always. ``make test-thorough`` does many more rounds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from benchmarks.synthetic import read_block, replace_blocks
from qgexec.batch.journals import JobJournals
from qgexec.batch.past import read_pasts
from qgexec.batch.planning import make_round
from qgexec.batch.rounds import Round
from qgexec.books.history import History
from qgexec.books.holder import check_free
from qgexec.books.journal import Journal, has_ended, read_detail, read_events, read_writer
from qgexec.books.rundir import RunDir, reopen
from qgexec.books.runlist import RunEntry, RunList
from qgexec.bps.submission import Submission
from qgexec.clustering.rules import ClusterRules
from qgexec.config.batchsettings import BatchSettings
from qgexec.config.bpsfile import read_config
from qgexec.config.runconfig import make_policy
from qgexec.config.runoptions import RunOptions
from qgexec.errors import GraphError, QgexecError
from qgexec.events import AttemptFailed
from qgexec.reports.fold import Fold
from qgexec.reports.leftovers import failed_quanta
from qgexec.reports.report import read_report
from qgexec.reports.snapshot import SnapshotReader
from qgexec.reports.text import format_report, format_status
from qgexec.rubin.detail import records_from_json
from qgexec.rubin.graphfile import GraphSource, peek_graph, prepare_graph, read_output_run, read_plan
from qgexec.rubin.graphload import load_graph
from qgexec.rubin.graphoutputs import read_graph_outputs
from qgexec.rubin.opener import ImportedExecutor
from qgexec.rubin.preexec import Preparation
from qgexec.rubin.qgfile import QgFile
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Cause, Policy
from qgexec.scheduling.troubles import Past
from tests.kit.batch.roundwork import BEGAN, ENDED, failed, jobs_of, started, succeeded, write
from tests.kit.batch.roundwork import PLAN as ROUND_PLAN
from tests.kit.butler.repos import MockRepository
from tests.kit.commands.qgexec import call
from tests.kit.fuzz.damage import damaged_bytes, with_odd_array, with_odd_line, with_odd_value
from tests.kit.runs.handbooks import PLAN, HandBooks, write_mixed

Damage = Callable[[bytes, Random], bytes]
Read = Callable[[], object]

_FEW, _MANY = 25, 250


@pytest.fixture(params=[_FEW, pytest.param(_MANY, marks=pytest.mark.thorough)])
def n_rounds(request: pytest.FixtureRequest) -> int:
    n: int = request.param
    return n


@pytest.fixture
def books(tmp_path: Path) -> RunDir:
    """A run directory with something of everything in it."""
    hand = HandBooks(tmp_path / "run")
    write_mixed(hand)
    return hand.run_dir


def refused_or_read(path: Path, damage: Damage, n_rounds: int, *readers: Read, share: int = 1) -> None:
    """Damage a file again and again; readers raise nothing but our errors, each with a message."""
    good, random = path.read_bytes(), Random(path.name)
    n_refused = 0
    for number in range(max(5, n_rounds // share)):
        path.write_bytes(damage(good, random))
        for read in readers:
            try:
                read()
            except QgexecError:
                n_refused += 1
            except BaseException as error:
                error.add_note(f"round {number}: {path.read_bytes()[:3000]!r}")
                raise
    assert n_refused
    path.write_bytes(good)
    for read in readers:
        read()


def report_of(run_dir: Path) -> None:
    """Read and print all that there is to a run."""
    report = read_report(run_dir, is_alive=lambda _: None)
    format_report(report)
    format_status(report)
    json.dumps(report.to_json())


def use(plan: Plan) -> None:
    """Look at all of a plan."""
    plan.path_lengths()
    plan.count_by_label()
    for node in plan:
        plan.describe(node.index)


class TestRunDirectory:
    """What is in a run directory."""

    @pytest.mark.parametrize("damage", [damaged_bytes, with_odd_value])
    def test_settings(self, books: RunDir, damage: Damage, n_rounds: int) -> None:
        """``run.json`` with all that may be in it."""
        values = json.loads(books.settings_file.read_bytes())
        values["options"] = RunOptions().to_json() | {"own_executor": {"path": "a:b", "arguments": {}}}
        values["preparation"] = Preparation(inputs=("raw",)).to_json()
        values["context"]["graph_file"] = __file__
        books.settings_file.write_text(json.dumps(values))

        def read() -> None:
            settings = reopen(books.path)[1]
            if settings.preparation is not None:
                Preparation.from_json(settings.preparation)
            ImportedExecutor.of_run(settings.options)
            options = RunOptions.from_json(settings.options)
            make_policy(options.config, settings.labels)

        refused_or_read(books.settings_file, damage, n_rounds, read, lambda: report_of(books.path))

    @pytest.mark.parametrize("damage", [damaged_bytes, with_odd_array])
    def test_plan(self, books: RunDir, damage: Damage, n_rounds: int) -> None:
        """``plan.npz``."""
        refused_or_read(
            books.plan_file, damage, n_rounds, lambda: use(books.load_plan()), lambda: report_of(books.path)
        )

    @pytest.mark.parametrize("damage", [damaged_bytes, with_odd_line])
    def test_journal(self, books: RunDir, damage: Damage, n_rounds: int) -> None:
        """``journal/0001.jsonl``, its header included."""

        def go_on() -> None:
            history = History.read(books.journal, PLAN, Policy())
            list(history.recent_successes())

        def look() -> None:
            read_writer(books.journal, 1)
            has_ended(books.journal, 1)
            check_free(books.journal)

        refused_or_read(
            books.journal / "0001.jsonl",
            damage,
            n_rounds,
            go_on,
            look,
            lambda: report_of(books.path),
            lambda: failed_quanta(books.path),
        )

    @pytest.mark.parametrize("damage", [damaged_bytes, with_odd_line])
    def test_segments(self, books: RunDir, damage: Damage, n_rounds: int) -> None:
        """``segments/``: what a report cannot read it says, and what goes on with the run is refused."""
        events = [event for event in read_events(books.journal) if isinstance(event, AttemptFailed)]
        details = [event.outcome.detail for event in events if event.outcome.detail is not None]
        (path,) = books.segments.iterdir()

        def read() -> None:
            for ref in details:
                records_from_json(read_detail(books.segments, ref).get("records", {}))

        refused_or_read(path, damage, n_rounds, read)
        path.write_bytes(damage(path.read_bytes(), Random(1)))
        report_of(books.path)

    @pytest.mark.parametrize("damage", [damaged_bytes, with_odd_array])
    def test_snapshot(self, books: RunDir, damage: Damage, n_rounds: int) -> None:
        """``snapshot.npz`` is never believed where it is damaged: it costs time, and nothing else."""
        path = books.snapshot_file
        SnapshotReader(books.journal, PLAN, path, worth_keeping=1).read_on()
        good, random = path.read_bytes(), Random(path.name)
        expected = read_report(books.path, is_alive=lambda _: None).to_json()
        for _ in range(n_rounds // 2):
            path.write_bytes(damage(good, random))
            report_of(books.path)
        path.write_bytes(damaged_bytes(good, Random(3)))
        assert read_report(books.path, is_alive=lambda _: None).to_json() == expected

    @pytest.mark.parametrize("name", ["run.json", "plan.npz", "journal/0001.jsonl"])
    def test_commands(self, books: RunDir, name: str) -> None:
        """The commands themselves: exit code 2 and one message."""
        path = books.path / name
        good, random = path.read_bytes(), Random(name)
        for _ in range(5):
            path.write_bytes(damaged_bytes(good, random))
            for command in (
                ("status",),
                ("report",),
                ("report", "--json"),
                ("cancel",),
                ("log", "1"),
                ("collect",),
            ):
                result = call(command[0], books.path, *command[1:])
                assert "Traceback" not in result.err, result.err
                assert result.code in (0, 1, 2)


class TestRound:
    """What is submitted to batch systems."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Round:
        settings = BatchSettings(
            queue="long", setup=("module load x",), clustering=ClusterRules(chunk_size=2)
        )
        pasts = {2: Past(3, {(Cause.RAISED, "OSError"): 1, (None, None): 1}, 1)}
        run_dir = RunDir.create(tmp_path / "run")
        made = make_round(run_dir, "hand", jobs_of(ROUND_PLAN), settings, ("python", "-m", "qgexec"), pasts)
        made.write_ticket({"cluster": 7})
        journal = made.journal(0)
        journal.mkdir(parents=True)
        Journal.create(journal).close()
        return made

    @pytest.mark.parametrize(
        ("name", "damage"),
        [
            ("round.json", damaged_bytes),
            ("round.json", with_odd_value),
            ("jobs.npz", damaged_bytes),
            ("jobs.npz", with_odd_array),
            ("past.json", damaged_bytes),
            ("past.json", with_odd_value),
            ("ticket.json", damaged_bytes),
        ],
    )
    def test_files(self, made: Round, name: str, damage: Damage, n_rounds: int) -> None:
        """Settings, jobs, what is behind their quanta, ticket."""

        def read() -> None:
            found = Round.open(made.folder)
            found.jobs.priorities()
            for job in found.jobs:
                found.jobs.request(job)
                found.jobs.name(job)
            _ = found.ticket
            read_pasts(found.pasts)

        refused_or_read(made.folder / name, damage, n_rounds, read)

    @pytest.mark.parametrize("damage", [damaged_bytes, with_odd_line])
    def test_journal_of_a_job(self, made: Round, damage: Damage, n_rounds: int) -> None:
        """What a job has said is refused, or leaves the run's own books as they would be without it."""
        said = (BEGAN, started(2), failed(2, retried=True), started(2, 2), succeeded(2, 2), ENDED)
        path = write(made, 1, said)

        def read() -> None:
            fold = Fold(ROUND_PLAN)
            fold.expect_gaps()
            journals = JobJournals(made, ROUND_PLAN, fold.scheduler.state, fold.scheduler.attempts)
            for event in journals.read():
                fold.apply(event)
            journals.waiting()

        refused_or_read(path, damage, n_rounds, read)


class TestOfUser:
    """What is kept for one user, whatever the run: advice, of which what is damaged is none."""

    @pytest.mark.parametrize("damage", [damaged_bytes, with_odd_value])
    def test_list_of_runs(self, tmp_path: Path, damage: Damage, n_rounds: int) -> None:
        """An entry that cannot be read is passed over."""
        runs = RunList(tmp_path)
        entry = runs.add(RunEntry(str(tmp_path), "u/me/run", "/repo", "sqlite:///x", "file:///repo", "pool"))
        (path,) = (tmp_path / "runs").iterdir()
        good, random = path.read_bytes(), Random(path.name)
        for _ in range(n_rounds):
            path.write_bytes(damage(good, random))
            for found in runs.entries():
                assert found.writes_the_same(entry) in (True, False)
                assert found.is_of_this_process in (True, False)
            runs.prune(lambda _: True)
            path.write_bytes(good)
        assert runs.entries() == [entry]

    @pytest.mark.parametrize("damage", [damaged_bytes, with_odd_value])
    def test_submission_of_bps(self, tmp_path: Path, damage: Damage, n_rounds: int) -> None:
        """What ``bps submit`` noted of a run."""
        Submission(tmp_path, "name", ("qgexec", "run"), ends=True, attributes={"project": "x"}).write()
        refused_or_read(tmp_path / "qgexec.json", damage, n_rounds, lambda: Submission.find(tmp_path))


class TestResources:
    """YAML of ``--resources``."""

    def test_file(self, tmp_path: Path, n_rounds: int) -> None:
        """Any text at all."""
        path = tmp_path / "site.yaml"
        path.write_text(
            "requestMemory: 2048\nrequestCpus: 2\n"
            "site:\n  here:\n    queue: long\n    memoryMultiplier: 2.5\n"
            "pipetask:\n  isr: &isr\n    requestMemory: '{requestCpus}'\n  other: *isr\n"
            "cluster:\n  one:\n    pipetasks: isr, other\n    dimensions: visit\n"
            "environment:\n  A: b\nincludeConfigs: []\n"
        )
        refused_or_read(path, damaged_bytes, n_rounds, lambda: read_config([path], site="here"))


@pytest.fixture
def graph(template: MockRepository, tmp_path: Path) -> Path:
    """A graph file of this test's own."""
    return Path(shutil.copy(template.graph, tmp_path / "graph.qg"))


class TestGraph:
    """``.qg`` files."""

    @staticmethod
    def readers(graph: Path, folder: Path) -> Iterator[Read]:
        def quanta() -> None:
            plan = read_plan(graph)
            use(plan)
            source = GraphSource(graph)
            try:
                for node in list(plan)[::6]:
                    source.quantum(node.quantum_id)
            finally:
                source.close()

        def blocks() -> None:
            with QgFile(graph) as file:
                list(file.quanta())

        yield from (quanta, blocks, lambda: read_output_run(graph), lambda: peek_graph(graph))
        yield from (lambda: prepare_graph(graph, folder, None), lambda: load_graph(str(graph)))
        yield lambda: read_graph_outputs(str(graph))

    def test_bytes(self, graph: Path, tmp_path: Path, n_rounds: int) -> None:
        """Bytes that are missing or swapped anywhere in the container, the addresses or the blocks."""
        refused_or_read(graph, damaged_bytes, n_rounds, *self.readers(graph, tmp_path), share=4)

    @pytest.mark.parametrize(
        "block", ["header", "thin_graph", "init_quanta", "pipeline_graph", "dimension_data"]
    )
    def test_values(self, graph: Path, tmp_path: Path, block: str, n_rounds: int) -> None:
        """A container that is whole, with values of other types in it."""
        good = graph.with_name("good.qg")
        shutil.copy(graph, good)

        def damage(_: bytes, random: Random) -> bytes:
            name = f"{block}.json.zst"
            replace_blocks(good, graph, {name: with_odd_value(read_block(good, block), random)})
            return graph.read_bytes()

        refused_or_read(graph, damage, n_rounds, *self.readers(graph, tmp_path), share=16)

    def test_claims(self, graph: Path) -> None:
        """A block that claims to be enormous is refused before any memory is taken for it."""
        bomb = replace_blocks(graph, graph.with_name("bomb.qg"), {"thin_graph.json.zst": bytes(1 << 26)})
        with pytest.raises(GraphError, match="claim to be"):
            read_plan(bomb)
