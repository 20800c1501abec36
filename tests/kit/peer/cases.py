"""The cases: what is run in which repository, and what pipetask is known to make of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.kit.peer.repositories import DEMO
from tests.kit.peer.tasks import Mood

__all__ = ["CASES", "Case", "Step"]

ALL = {"isr": 6, "calibrate": 6, "summary": 2, "final": 1}
"""Quanta of the standard pipeline: 2 visits, 3 detectors."""

ONE = {"visit": 1, "detector": 2}
OTHER = {"visit": 2, "detector": 3}


@dataclass(frozen=True, slots=True)
class Step:
    """One command on each side."""

    moods: tuple[Mood, ...] = ()
    """What goes wrong."""

    options: tuple[str, ...] = ("--register-dataset-types",)
    """Options of both programs, beside repository, graph, collections and number of processes."""

    exit_code: int = 0
    """How both end."""

    pipetask_exit_code: int | None = None
    """How pipetask ends where that is another matter."""

    by_pipetask: bool = False
    """pipetask does this step on all sides: the next one goes on with what it left."""


@dataclass(frozen=True, slots=True)
class Case:
    """Steps in one repository."""

    name: str
    """What it shows."""

    steps: tuple[Step, ...] = (Step(),)
    """What is run, one after another."""

    succeeded: dict[str, int] = field(default_factory=lambda: dict(ALL))
    """By task label, quanta with metadata in the end: proves that the case is what it says."""

    repository: str = "standard"
    """Key of `tests.kit.peer.repositories.REPOSITORIES`."""

    graph: str = "graph.qg"
    """Graph file beside it."""

    programs: bool = False
    """Run the installed programs themselves rather than forks; once is enough."""

    collections_from_graph: bool = False
    """qgexec is not told the collections: the graph's header names them."""

    soon: bool = False
    """`make test` plays it: one of each kind."""

    same_formats: bool = True
    """Datasets are stored as the same storage classes.

    qgexec's workers, as those of ``pipetask run-qbb``, never ask the registry
    and store what the graph says; a butler reads both.
    """

    def __str__(self) -> str:
        return self.name


def moody(*moods: Mood, succeeded: dict[str, int], name: str, exit_code: int = 1) -> Case:
    """Return a case of one run with these moods."""
    return Case(name, (Step(moods, exit_code=exit_code),), succeeded)


AGAIN = ("--extend-run", "--skip-existing")
REPAIR = ("--extend-run", "--clobber-outputs")
BROKEN = Step(
    (Mood("isr", "after", "raise", ONE), Mood("calibrate", "before", "raise", OTHER)),
    exit_code=1,
)
"""Two quanta fail, one of them when it had put everything, and all of summary is blocked."""

CASES = (
    Case("all is well, with the programs themselves", programs=True, collections_from_graph=True),
    Case(
        "graph without datastore records, no versions",
        (Step(options=("--register-dataset-types", "--no-versions")),),
        graph="bare.qg",
    ),
    Case("graph file of the old format", graph="old.qgraph"),
    Case("chained datastore", repository="chained datastore"),
    Case("datastore with a cache and checksums", repository="cached datastore"),
    Case(
        "disassembled composites, components, storage classes that differ between registry and connections",
        succeeded={"measure": 6, "digest": 6},
        repository="storage classes",
    ),
    Case(
        "registry that changed its storage class after the graph was built",
        (Step(options=()),),
        succeeded={"measure": 6, "digest": 6},
        repository="changed registry",
        same_formats=False,
    ),
    Case(
        "the demo, real images reduced by real tasks",
        succeeded={"isr": 4, "calibrate": 4, "coadd": 8, "catalogue": 1, "quality": 1},
        repository=DEMO,
    ),
    Case("PostgreSQL", (BROKEN, Step(options=REPAIR)), repository="PostgreSQL"),
    moody(
        Mood("isr", "before", "raise", ONE),
        name="raises before a put",
        succeeded={"isr": 5, "calibrate": 5, "summary": 1},
    ),
    moody(
        Mood("isr", "between", "raise", ONE),
        name="raises between two puts",
        succeeded={"isr": 5, "calibrate": 5, "summary": 1},
    ),
    moody(
        Mood("isr", "after", "raise unpicklable", ONE),
        name="raises something unpicklable after all puts",
        succeeded={"isr": 5, "calibrate": 5, "summary": 1},
    ),
    moody(
        Mood("isr", "before", "find no work", ONE),
        Mood("isr", "between", "find no work", OTHER),
        name="no work in the task, and in adjustQuantum of the next",
        succeeded=ALL,
        exit_code=0,
    ),
    moody(
        *(Mood("calibrate", "before", "find no work", {"visit": visit}) for visit in (1, 2)),
        name="no work in adjustQuantum down to the last quantum",
        succeeded=ALL,
        exit_code=0,
    ),
    moody(
        Mood("isr", "between", "report partial outputs", ONE),
        name="partial outputs are an error",
        succeeded={"isr": 5, "calibrate": 5, "summary": 1},
    ),
    Case(
        "partial outputs are a success with a caveat",
        (
            Step(
                (Mood("isr", "between", "report partial outputs", ONE),),
                ("--register-dataset-types", "--no-raise-on-partial-outputs"),
            ),
        ),
        soon=True,
    ),
    Case(
        "a constructor raises when quanta are executed",
        (
            Step(options=("--register-dataset-types", "--init-only")),
            Step((Mood("calibrate", "construction", "raise"),), ("--extend-run", "--skip-init-writes"), 1),
        ),
        succeeded={"isr": 6},
    ),
    Case(
        "sys.exit in the last quantum",
        (Step((Mood("final", "between", "exit"),), exit_code=1, pipetask_exit_code=3),),
        succeeded={"isr": 6, "calibrate": 6, "summary": 2},
    ),
    Case("again, when all is done", (Step(), Step(options=AGAIN))),
    Case(
        "again after failures, and nothing may be removed",
        (BROKEN, Step(options=AGAIN, exit_code=2, pipetask_exit_code=1)),
        succeeded={"isr": 5, "calibrate": 4},
    ),
    Case("again after failures were repaired", (BROKEN, Step(options=REPAIR))),
    Case(
        "qgexec goes on where pipetask failed",
        (Step(BROKEN.moods, exit_code=1, by_pipetask=True), Step(options=REPAIR)),
    ),
    Case(
        "the second failure leaves less than the first",
        (
            Step((Mood("isr", "after", "raise", ONE),), exit_code=1),
            Step((Mood("isr", "before", "raise", ONE),), REPAIR, 1),
        ),
        succeeded={"isr": 5, "calibrate": 5, "summary": 1},
    ),
    Case(
        "the second attempt finds no work where the first put something",
        (
            Step((Mood("isr", "after", "raise", ONE),), exit_code=1),
            Step((Mood("isr", "before", "find no work", ONE),), REPAIR),
        ),
    ),
)
