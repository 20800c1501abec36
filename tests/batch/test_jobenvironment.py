"""`qgexec.batch.jobenvironment`: lines of bash, and what a job sets itself."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import numpy as np
import pytest

from qgexec.batch.jobenvironment import check_environments, export_lines, set_environment
from qgexec.clustering.algorithms import make_clusters
from qgexec.clustering.rules import Algorithm, ClusterRules, NamedCluster
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import UsageError
from qgexec.testing import make_plan


def _after(settings: BatchSettings, name: str, **variables: str) -> str:
    """Return a variable as a command sees it after the lines."""
    script = "\n".join([*export_lines(settings), "exec /usr/bin/env"])
    environment = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(
        ["/bin/bash", "-uc", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return next((line for line in done.stdout.splitlines() if line.startswith(f"{name}=")), "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("it's $HOME `x` $(y)", "it's $HOME `x` $(y)"),
        ("/own:${THERE}", "/own:a b'c"),
        ("/own:${NOWHERE}:x", "/own:${NOWHERE}:x"),
        ("${THERE}${NOWHERE}", "a b'c${NOWHERE}"),
        ("${no name} ${}", "${no name} ${}"),
        ("", ""),
    ],
)
def test_lines(value: str, expected: str) -> None:
    """Nothing in a value is for the shell but ``${NAME}``, which stays where it is set nowhere."""
    assert _after(BatchSettings(environment={"A": value}), "A", THERE="a b'c") == f"A={expected}"


def test_a_variable_that_one_task_is_not_given() -> None:
    """What it was before the script set it is kept for the jobs of that task."""
    settings = BatchSettings(environment={"A": "new"}, environments={"isr": {"A": None}})
    assert _after(settings, "QGEXEC_BEFORE_A", A="old $x") == "QGEXEC_BEFORE_A=old $x"
    assert _after(settings, "QGEXEC_BEFORE_A") == ""
    assert _after(settings, "A") == "A=new"
    for before, left in (({"QGEXEC_BEFORE_A": "old"}, "old"), ({}, None)):
        variables = {"A": "new", **before}
        set_environment(settings, "isr", variables)
        assert variables.get("A") == left


def test_of_the_task_alone() -> None:
    """Other tasks keep what the script has set; references are to what was there before."""
    settings = BatchSettings(environments={"isr": {"A": "${B}/x", "B": "own", "C": "${D}"}})
    variables = {"A": "a", "B": "b"}
    set_environment(settings, "other", variables)
    assert variables == {"A": "a", "B": "b"}
    set_environment(settings, "isr", variables)
    assert variables == {"A": "b/x", "B": "own", "C": "${D}"}


_PLAN = make_plan("isr:1 -> calibrate:1; isr:2 -> calibrate:2")
_BOTH = ClusterRules(clusters={"both": NamedCluster(pipetasks=("isr", "calibrate"))})


@pytest.mark.parametrize(
    ("environments", "n_jobs"),
    [({}, 2), ({"isr": {"A": "1"}}, 4), ({label: {"A": "1"} for label in ("isr", "calibrate")}, 2)],
)
def test_chains(environments: dict[str, Any], n_jobs: int) -> None:
    """Quanta of tasks with different variables are not joined."""
    settings = BatchSettings(environments=environments)
    rules = ClusterRules(algorithm=Algorithm.AUTO)
    clusters = make_clusters(_PLAN, np.arange(4), rules, environments=settings.environment_codes())
    assert len(clusters) == n_jobs
    check_environments(clusters, _PLAN, settings)


def test_clusters_that_cannot_be() -> None:
    """Named clusters that were given later than the variables: one message, and nothing is submitted."""
    clusters = make_clusters(_PLAN, np.arange(4), _BOTH)
    with pytest.raises(UsageError, match=r"cluster both: tasks isr and calibrate .* something else of A, B"):
        check_environments(clusters, _PLAN, BatchSettings(environments={"isr": {"A": "1", "B": None}}))
