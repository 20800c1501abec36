"""The tests' own HTCondor pool runs DAGs, lets its schedd be stopped, and leaves nothing."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.checkout import CHECKOUT
from tests.kit.sites.condor import CondorPool, SiteError, missing

pytestmark = [
    pytest.mark.site,
    pytest.mark.condor,
    pytest.mark.timeout(900),
]  # the first one may make the folder

_DAG_S = 120.0
_POLL_S = 0.2

_SUBMIT = """
executable = /bin/sh
arguments = "-c 'echo $(node) >> {folder}/ran'"
universe = vanilla
log = {folder}/nodes.log
request_memory = 64
request_cpus = 1
queue
"""

_DAG = """
JOB first node.sub
VARS first node="first"
JOB second node.sub
VARS second node="second"
PARENT first CHILD second
"""

_FROM_DAG = """
import htcondor2
submitted = htcondor2.Schedd().submit(htcondor2.Submit.from_dag("two.dag", {"force": True}))
print(submitted.cluster())
"""


@pytest.fixture(scope="module")
def pool() -> Iterator[CondorPool]:
    """A running pool."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with CondorPool() as running:
        yield running


@pytest.fixture
def folder(pool: CondorPool, request: pytest.FixtureRequest) -> Path:
    """A folder with a DAG of two nodes, the pool's user's."""
    path = pool.shared / str(request.node.name)
    pool.run("mkdir", path)
    (path / "node.sub").write_text(_SUBMIT.format(folder=path))
    (path / "two.dag").write_text(_DAG)
    return path


def test_condor_submit_dag(pool: CondorPool, folder: Path) -> None:
    """A DAG that the command submits runs in its order."""
    submitted = pool.run("condor_submit_dag", "two.dag", cwd=folder)
    found = re.search(r"submitted to cluster (\d+)", submitted.stdout)
    assert found is not None
    _wait_for_dag(pool, found[1])
    assert (folder / "ran").read_text().split() == ["first", "second"]


def test_from_dag(pool: CondorPool, folder: Path) -> None:
    """A DAG that Python 3.13 inside submits with HTCondor's own bindings runs too."""
    submitted = pool.run("python", "-c", _FROM_DAG, cwd=folder)
    _wait_for_dag(pool, submitted.stdout.strip())
    assert (folder / "ran").read_text().split() == ["first", "second"]


def test_schedd_stops_and_starts(pool: CondorPool, folder: Path) -> None:
    """While the schedd is stopped there is no queue; what was in it is there again afterwards."""
    (folder / "held.sub").write_text("executable = /bin/true\nhold = True\nqueue\n")
    cluster = pool.run("condor_submit", "-terse", "held.sub", cwd=folder).stdout.partition(".")[0]
    pool.stop_schedd()
    assert pool.run("condor_q", check=False).returncode != 0
    pool.start_schedd()
    assert pool.run("condor_q", cluster, "-autoformat", "JobStatus").stdout.split() == ["5"]
    pool.run("condor_rm", cluster)


def test_project_is_importable_inside(pool: CondorPool) -> None:
    """The environment inside has Python 3.13 and this checkout of the project."""
    script = "import sys, qgexec; print(*sys.version_info[:2], qgexec.__file__)"
    assert pool.run("python", "-c", script).stdout.split() == [
        "3",
        "13",
        f"{CHECKOUT}/src/qgexec/__init__.py",
    ]


def test_failed_command_tells_its_output(pool: CondorPool) -> None:
    """What a failed command wrote is in the error."""
    with pytest.raises(SiteError, match=r"return code 3\nso it is"):
        pool.run("sh", "-c", "echo so it is >&2; exit 3")


def test_late_command_is_dead(pool: CondorPool) -> None:
    """A command that takes too long is killed inside, too."""
    with pytest.raises(subprocess.TimeoutExpired):
        pool.run("sleep", "987", timeout_s=0.5)
    _wait_while(lambda: "sleep 987" in pool.run("ps", "-A", "-o", "stat=,args=").stdout)


def test_kill_ends_a_process_by_its_number_inside(pool: CondorPool) -> None:
    """A process is killed by the number that it has inside."""
    process = pool.popen("sh", "-c", "echo $$; exec sleep 300")
    with process:
        assert process.stdout is not None
        pool.kill(int(process.stdout.readline()))
        assert process.wait(30) != 0


_HOLD = """
import sys, time
from tests.kit.sites.condor import CondorPool
with CondorPool() as pool:
    print(pool.shared.parent, flush=True)
    time.sleep(300)
"""


def test_nothing_survives_the_killed_test_process(pool: CondorPool) -> None:
    """When the process that started a pool is killed, the pool's processes and mounts are gone, too."""
    holder = subprocess.Popen([sys.executable, "-c", _HOLD], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        own = holder.stdout.readline().strip()
        assert _processes_with(own)
        holder.send_signal(signal.SIGKILL)
    _wait_while(lambda: bool(_processes_with(own)))
    assert own not in Path("/proc/mounts").read_text()
    subprocess.run(["rm", "-r", own], check=True, timeout=30)


def _wait_for_dag(pool: CondorPool, cluster: str) -> None:
    queue = ["condor_q", cluster, "-autoformat", "ClusterId"]
    _wait_while(lambda: bool(pool.run(*queue).stdout.strip()), _DAG_S)
    ended = pool.run("condor_history", cluster, "-limit", "1", "-autoformat", "ExitCode")
    assert ended.stdout.strip() == "0"


def _processes_with(text: str) -> list[int]:
    """Return the processes, seen from outside, that have the text in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                if text.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
    return found


def _wait_while(is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while is_so():
        assert time.monotonic() < until, "it took too long"
        time.sleep(_POLL_S)
