"""Drivers that are killed as they prepare a run, at every stage, and what is done about it afterwards."""

from __future__ import annotations

from typing import Any

from lsst.daf.butler.direct_butler._direct_butler_collections import DirectButlerCollections
from lsst.daf.butler.registry.databases.sqlite import SqliteDatabase

import qgexec.newrun
from qgexec.books.journal import Journal
from qgexec.books.rundir import RunDir
from qgexec.rubin.collections import RunCollections
from qgexec.rubin.initoutputs import InitOutputs
from tests.kit.crash.cases import in_put
from tests.kit.crash.faults import Fault, at_call
from tests.kit.crash.sites import Case, Site, begin_anew, resume
from tests.kit.processes.forks import KILLED, replace
from tests.kit.processes.kills import die


def within_register() -> None:
    """The process dies between upstream's two transactions that register a RUN: there is no row of it yet."""
    sync = SqliteDatabase.sync

    def deadly(database: SqliteDatabase, table: Any, **options: Any) -> Any:
        if table.name == "run":
            die()
        return sync(database, table, **options)

    replace(SqliteDatabase, "sync", deadly)


_UNTOUCHED: dict[str, Fault] = {
    "it made the folder": at_call(RunDir, "create", "after"),
    "it claimed the run directory": at_call(Journal, "create", "after"),
    "it prepared the graph": at_call(qgexec.newrun, "prepare_graph", "after"),
    "it wrote the plan": at_call(RunDir, "save_plan", "after"),
    "all was checked": at_call(RunDir, "write_settings"),
}
"""Where the registry has not been touched."""

_TOUCHED: dict[str, Fault] = {
    "it said what it will do": at_call(RunDir, "write_settings", "after"),
    "half of the RUN was made": within_register,
    "the RUN was made": at_call(DirectButlerCollections, "register", "after"),
    "the chain was made": at_call(DirectButlerCollections, "register", "after", number=2),
    "the chain was filled": at_call(RunCollections, "define", "after"),
    **{
        f"init-output {number} was {stage}": in_put(number, stage)
        for number in (1, 3)
        for stage in ("writing", "written", "renamed")
    },
    "all was written": at_call(InitOutputs, "write", "after"),
    "it said that it is done": at_call(RunDir, "rewrite_settings", "after"),
}

_WHOLE = {"graph.qg", "journal", "logs", "plan.npz", "run.json", "segments"}
"""What is in a run directory, and all that is."""


def _started_again(fault: Fault) -> Case:
    """The same command is given until it is not killed any more."""

    def play(site: Site) -> None:
        _clear(site)
        assert begin_anew(site, fault=fault) == KILLED
        assert begin_anew(site) == 0
        assert {path.name for path in site.run_dir.iterdir()} == _WHOLE

    return play


def _resumed(fault: Fault) -> Case:
    """What was begun is killed once more as it is resumed, and then brought to its end."""

    def play(site: Site) -> None:
        _clear(site)
        assert begin_anew(site, fault=fault) == KILLED
        assert resume(site, fault=fault) in {KILLED, 0}
        assert resume(site) == 0
        assert {path.name for path in site.run_dir.iterdir()} == _WHOLE

    return play


def _refused(fault: Fault) -> Case:
    """There is nothing to resume, and that is said; the same command runs."""

    def play(site: Site) -> None:
        _clear(site)
        assert begin_anew(site, fault=fault) == KILLED
        assert resume(site) == 2
        assert "Start the run again with the same command" in site.said
        assert begin_anew(site) == 0

    return play


def _clear(site: Site) -> None:
    """Make the place what it was before anything was prepared."""
    site.bring_back(site.pristine.with_name("bare"))


STARTS = (
    {f"again, after {name}": _started_again(fault) for name, fault in (_UNTOUCHED | _TOUCHED).items()}
    | {f"resumed, after {name}": _resumed(fault) for name, fault in _TOUCHED.items()}
    | {f"refused, after {name}": _refused(fault) for name, fault in _UNTOUCHED.items()}
)
