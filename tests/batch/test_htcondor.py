"""HTCondor as a batch system, against one that answers what it is told to."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from qgexec.batch import htcondor as htcondor_module
from qgexec.batch.condorapi import CondorApi
from qgexec.batch.htcondor import HTCondorSystem
from qgexec.batch.rounds import Round, Ticket
from qgexec.batch.system import JobEnd, JobState
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import ModelError
from qgexec.models.htcondor import HTCondor
from qgexec.models.registry import find_model
from tests.kit.batch.condorrounds import GIB, FakeCondor, make_round

REAL = Path(__file__).parents[1] / "data" / "htcondor" / "round.dag.nodes.log"
TICKET: Ticket = {"cluster": 8, "schedd": "here"}
DAGMAN = {"ClusterId": 8, "JobStatus": 2}


@pytest.fixture
def batch_round(tmp_path: Path) -> Round:
    """Three jobs, written."""
    made = make_round(tmp_path / "run", memory_bytes=[GIB, GIB, 2 * GIB])
    HTCondorSystem(FakeCondor()).write(made)
    return made


def test_a_round_is_one_call(tmp_path: Path) -> None:
    """What would be submitted is one DAG, the closing job included; nothing is submitted by writing it."""
    condor = FakeCondor()
    made = make_round(tmp_path)
    (call,) = HTCondorSystem(condor).write(made)
    assert call.n_jobs == 4
    assert call.command[0] == "condor_submit_dag"
    assert call.command[-1] == str(made.folder / "round.dag")
    assert not condor.dags


def test_a_round_is_written_without_a_pool(tmp_path: Path) -> None:
    """A rehearsal needs nobody who answers."""
    assert HTCondorSystem(FakeCondor(silent=True)).write(make_round(tmp_path))


def test_submission_leaves_a_ticket(batch_round: Round) -> None:
    """The DAG is handed over after a job that never ran was taken, and is gone."""
    condor = FakeCondor()
    assert HTCondorSystem(condor).submit(batch_round) == TICKET
    assert condor.dags == [batch_round.folder / "round.dag"]
    assert condor.removed == ["ClusterId == 7"]


def test_a_refusal_is_told_in_its_own_words(batch_round: Round) -> None:
    """Where the schedd refuses jobs, for their account say, no DAG is submitted."""
    condor = FakeCondor(refusal="accounting group drp is unknown")
    with pytest.raises(ModelError, match="it refuses jobs: accounting group drp is unknown"):
        HTCondorSystem(condor).submit(batch_round)
    assert not condor.dags
    assert not condor.submitted


@pytest.mark.parametrize("has", [[(64, 2000)], [(64, 1000), (2, 2047)]])
def test_more_memory_than_any_machine_has_is_refused(batch_round: Round, has: list[tuple[int, int]]) -> None:
    """A job that no machine of the pool can ever take is named; nothing is submitted."""
    condor = FakeCondor(has=has)
    with pytest.raises(
        ModelError,
        match=r"no machine of the pool can take c: it asks for 1 core and .* of memory, and the largest has",
    ) as caught:
        HTCondorSystem(condor).submit(batch_round)
    assert "requestMemory" in caught.value.hint
    assert not condor.dags
    assert not condor.submitted


def test_an_empty_pool_may_get_machines(batch_round: Round) -> None:
    """Where machines come only when there are jobs nobody knows how large they are."""
    assert HTCondorSystem(FakeCondor(has=[])).submit(batch_round) == TICKET


def test_a_queue_is_ignored_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """HTCondor has no queues, and who names one is told."""
    made = make_round(tmp_path, settings=BatchSettings(queue="milano"))
    with caplog.at_level(logging.WARNING):
        HTCondorSystem(FakeCondor()).write(made)
    assert "HTCondor has no queues: 'milano' is ignored" in caplog.text


def test_root_is_told_that_it_may_not_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of HTCondor as root."""
    monkeypatch.setattr(htcondor_module, "is_root", lambda: True)
    condor = FakeCondor()
    with pytest.raises(ModelError, match="no jobs from root"):
        HTCondorSystem(condor).check()
    assert not condor.n_queries


def test_no_pool_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no schedd answers the message says from where one can submit."""
    monkeypatch.setattr(htcondor_module, "is_root", lambda: False)
    with pytest.raises(ModelError, match="does not answer") as caught:
        HTCondorSystem(FakeCondor(silent=True)).check()
    assert "condor_q" in caught.value.hint


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model can be made without HTCondor's package; who uses it is told how to get it."""
    for name in ("htcondor2", "htcondor"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match="Python package is not installed") as caught:
        CondorApi().schedd_name()
    assert "pip install 'qgexec[htcondor]'" in caught.value.hint


def test_the_model_is_found_by_its_name() -> None:
    """`htcondor` is an execution model that survives its driver."""
    model = find_model("htcondor", settings=BatchSettings())
    assert isinstance(model, HTCondor)
    assert model.facts.survives_driver


def test_jobs_are_where_the_queue_says(batch_round: Round) -> None:
    """One query tells of all jobs; what DAGMan has not handed over waits."""
    condor = FakeCondor(
        queue=[
            DAGMAN,
            {"ClusterId": 9, "DAGNodeName": "j0", "JobStatus": 2, "RemoteHost": "slot1_1@node7"},
            {
                "ClusterId": 10,
                "DAGNodeName": "j1",
                "JobStatus": 5,
                "HoldReason": "disk full",
                "HoldReasonCode": 12,
                "HoldReasonSubCode": 28,
            },
        ]
    )
    status = HTCondorSystem(condor).look(batch_round, TICKET)
    assert condor.n_queries == 1
    assert not status.is_over
    assert status.jobs[0].host == "node7"
    assert status.jobs[1].state is JobState.HELD
    assert status.jobs[1].reason == "disk full"
    assert 2 not in status.jobs
    assert status.counts == {
        JobState.QUEUED: 1,
        JobState.RUNNING: 1,
        JobState.HELD: 1,
        JobState.ENDED: 0,
    }
    assert status.closing is None


def test_a_hold_for_memory_waits_for_nobody(batch_round: Round) -> None:
    """What is released by itself is queued, with the reason."""
    held = {
        "ClusterId": 9,
        "DAGNodeName": "j0",
        "JobStatus": 5,
        "HoldReason": "memory usage exceeded request_memory",
        "HoldReasonCode": 21,
        "HoldReasonSubCode": 102,
    }
    status = HTCondorSystem(FakeCondor(queue=[DAGMAN, held])).look(batch_round, TICKET)
    assert status.jobs[0].state is JobState.QUEUED
    assert "memory usage exceeded" in status.jobs[0].reason


def test_between_two_jobs_a_round_is_not_over(batch_round: Round) -> None:
    """With nothing but DAGMan in the queue there may be jobs to come."""
    status = HTCondorSystem(FakeCondor(queue=[DAGMAN])).look(batch_round, TICKET)
    assert not status.is_over
    assert status.counts[JobState.QUEUED] == 3


def test_a_round_is_over_when_its_closing_job_is_left(batch_round: Round) -> None:
    """The closing job comes after all others; a job that is still being removed is one of them."""
    closing = {"ClusterId": 20, "DAGNodeName": "closing", "JobStatus": 2}
    leaving = {"ClusterId": 9, "DAGNodeName": "j0", "JobStatus": 3}
    condor = FakeCondor(queue=[DAGMAN, closing, leaving])
    system = HTCondorSystem(condor)
    assert not system.look(batch_round, TICKET).is_over
    condor.queue.remove(leaving)
    status = system.look(batch_round, TICKET)
    assert status.is_over
    assert status.closing is not None
    assert status.closing.state is JobState.RUNNING
    assert status.counts[JobState.ENDED] == 3


def test_what_is_gone_is_told_by_the_log(tmp_path: Path) -> None:
    """After DAGMan has left the queue its log says how jobs ended, and the history why it left."""
    made = make_round(tmp_path, " ".join(f"a{number}" for number in range(19)))
    shutil.copy(REAL, made.folder)
    removed = {"ClusterId": 8, "JobStatus": 3, "RemoveReason": "via condor_rm (by user someone)"}
    status = HTCondorSystem(FakeCondor(past=removed)).look(made, TICKET)
    assert status.is_over
    assert status.reason == "the DAG was removed: via condor_rm (by user someone)"
    assert {job: found.end for job, found in status.jobs.items()} == {
        2: JobEnd.EXITED,
        3: JobEnd.SIGNALLED,
        18: JobEnd.CANCELLED,
    }
    assert status.counts[JobState.ENDED] == 19
    assert status.closing is not None
    assert status.closing.state is JobState.ENDED


@pytest.mark.parametrize(
    ("queue", "silent_s", "is_stuck"),
    [
        ([DAGMAN], 1000, True),
        ([DAGMAN], 10, False),
        ([DAGMAN, {"ClusterId": 9, "DAGNodeName": "j0", "JobStatus": 2}], 1000, False),
        ([DAGMAN, {"ClusterId": 9, "DAGNodeName": "closing", "JobStatus": 2}], 1000, False),
        ([{"ClusterId": 8, "JobStatus": 5, "HoldReason": "via condor_hold"}], 1000, False),
        ([], 1000, False),
    ],
)
def test_dagman_waits_in_vain(
    tmp_path: Path, queue: list[dict[str, object]], silent_s: int, *, is_stuck: bool
) -> None:
    """It does nothing, and none of its jobs is in the queue: it has missed how they ended."""
    made = make_round(tmp_path)
    log = shutil.copy(REAL, made.folder)
    os.utime(log, (time.time() - silent_s,) * 2)
    status = HTCondorSystem(FakeCondor(queue=list(queue))).look(made, TICKET)
    assert status.is_stuck == is_stuck
    assert ("not in the queue any more" in status.reason) == is_stuck


def test_a_held_dagman_is_told(batch_round: Round) -> None:
    """Somebody who holds DAGMan holds the round."""
    condor = FakeCondor(queue=[{"ClusterId": 8, "JobStatus": 5, "HoldReason": "via condor_hold"}])
    assert HTCondorSystem(condor).look(batch_round, TICKET).reason == "DAGMan is held: via condor_hold"


def test_a_silent_schedd_is_asked_again_later(batch_round: Round) -> None:
    """While the schedd does not answer nothing is said of the jobs."""
    condor = FakeCondor(silent=True)
    system = HTCondorSystem(condor)
    with pytest.raises(ModelError, match="does not answer"):
        system.look(batch_round, TICKET)
    condor.silent = False
    condor.queue = [DAGMAN]
    assert not system.look(batch_round, TICKET).is_over


def test_words_that_nobody_understands(batch_round: Round) -> None:
    """Where the schedd's answer says of nothing what it is, the jobs are not taken to be gone."""
    with pytest.raises(ModelError, match="says of jobs what cannot be read"):
        HTCondorSystem(FakeCondor(queue=[{}])).look(batch_round, TICKET)


def test_cancel_removes_all(batch_round: Round) -> None:
    """DAGMan and what it has submitted are removed, again and again if need be."""
    condor = FakeCondor()
    system = HTCondorSystem(condor)
    for _ in range(2):
        system.cancel(batch_round, TICKET)
    assert condor.removed == ["DAGManJobId == 8 || ClusterId == 8"] * 2


@pytest.mark.parametrize(("queue", "past"), [([{"ClusterId": 8}], None), ([], {"ClusterId": 8})])
def test_a_round_is_found_by_its_name(
    batch_round: Round, queue: list[dict[str, int]], past: dict[str, int] | None
) -> None:
    """What was submitted by somebody who died then is in the queue or in the history."""
    condor = FakeCondor(queue=list(queue), past=past)
    assert HTCondorSystem(condor).find(batch_round) == TICKET
    assert HTCondorSystem(FakeCondor()).find(batch_round) is None


def test_machines_of_unknown_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no machines too small for anything."""
    ads = [{"TotalSlotCpus": 4, "TotalSlotMemory": 8000}, {"TotalSlotCpus": 4}, {}]
    module = SimpleNamespace(
        Collector=lambda: SimpleNamespace(query=lambda _type, **_options: ads),
        AdType=SimpleNamespace(Startd=1),
        HTCondorException=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "htcondor2", module)
    assert CondorApi().machines() == [(4, 8000)]


def test_no_schedd_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that knows none says so with nothing at all."""
    module = SimpleNamespace(
        Collector=lambda: SimpleNamespace(locate=lambda _type: None),
        DaemonType=SimpleNamespace(Schedd=1),
        HTCondorException=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "htcondor2", module)
    with pytest.raises(ModelError, match="no schedd answers on this machine"):
        CondorApi().schedd_name()


def test_another_machines_schedd_is_not_mistaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the collector does not know the schedd nothing is asked of the one of this machine."""
    collector = SimpleNamespace(locate=lambda _type, _name=None: None)
    module = SimpleNamespace(
        Collector=lambda: collector,
        DaemonTypes=SimpleNamespace(Schedd=1),  # as the older package calls them
        HTCondorException=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "htcondor2", module)
    with pytest.raises(ModelError, match=r"schedd there does not answer: .*knows no schedd"):
        CondorApi().query("there", "true", ["ClusterId"])
