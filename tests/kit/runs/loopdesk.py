"""A loop over a fake model, and an ingestion that remembers: for tests of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qgexec.books.journal import Journal, read_events
from qgexec.events import Event, OutputsIngested
from qgexec.executor import Loop
from qgexec.ingestion.base import NoIngestion
from qgexec.interrupts import Interrupts
from qgexec.models.base import Run
from qgexec.quantum import RunContext, SegmentRef
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler, State
from qgexec.testing import FakeBenchOpener, FakeModel


class Remembering(NoIngestion):
    """Confirms everything when it is drained."""

    def __init__(self) -> None:
        self.offered: list[int] = []
        self.discarded: list[int] = []
        self.closed = False

    def offer(self, index: int, detail: SegmentRef) -> None:
        self.offered.append(index)

    def drain(self, timeout_s: float) -> Sequence[OutputsIngested]:
        return [OutputsIngested(1.0, tuple(self.offered), len(self.offered))]

    def discard(self, index: int) -> None:
        self.discarded.append(index)

    def close(self) -> Sequence[Event]:
        self.closed = True
        return ()


class Desk:
    """A loop over a fake model, with its journal in a folder of its own."""

    def __init__(self, folder: Path, plan: Plan, model: FakeModel, **options: object) -> None:
        self.folder = folder / "journal"
        self.folder.mkdir()
        self.model = model
        self.scheduler = Scheduler(plan, policy=Policy(fail_fast=bool(options.get("fail_fast"))))
        ingestion = options.get("ingestion", NoIngestion())
        assert isinstance(ingestion, NoIngestion)
        context = RunContext(str(folder), "", "", "run")
        self.loop = Loop(
            scheduler=self.scheduler,
            model=model,
            run=Run(context, FakeBenchOpener(), folder, ledger=self.scheduler),
            journal=Journal.create(self.folder),
            ingestion=ingestion,
            model_name="fake",
            n_quanta=len(plan),
            clock=model.clock,
            interrupts=Interrupts(),
        )

    def events(self) -> list[Event]:
        return list(read_events(self.folder))

    def states(self) -> list[State]:
        return [self.scheduler.state(index) for index in range(self.loop.n_quanta)]
