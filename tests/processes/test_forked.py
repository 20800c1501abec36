"""`qgexec.processes.forked`: who starts and who ends whom, with real processes and real deaths."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qgexec.errors import WorkerStartError
from qgexec.processes import forked
from qgexec.processes.forked import Channel, Process, describe_exit, process_started_at, start_process
from tests.kit.checkout import PYTHONPATH
from tests.kit.runs.benches import PATIENCE_S, Ears, wait_gone

SOURCES = Path(__file__).parents[2] / "src"


def echo(channel: Channel, *extra: object) -> None:
    while (message := channel.receive()) is not None:
        channel.send((*message, *extra))


def look_around(channel: Channel) -> None:
    import resource

    main = sys.modules["__main__"]
    channel.send(
        (
            os.environ.get("QGEXEC_TEST", ""),
            str(Path.cwd()),
            os.environ["OMP_NUM_THREADS"],
            os.getsid(0) == os.getpid(),
            signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            getattr(main, "__file__", ""),
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            int(Path("/proc/self/oom_score_adj").read_text()),
            tuple(sorted(int(name.name) for name in Path("/proc/self/fd").iterdir()))[:4],
        )
    )


def draw(channel: Channel) -> None:
    import numpy as np

    channel.send((float(np.random.random()),))  # noqa: NPY002 - the state that a fork copies


def leave_late(channel: Channel, path: str) -> None:
    atexit.register(Path(path).unlink)
    channel.send((os.getpid(),))
    channel.receive()


def fail(channel: Channel) -> None:
    raise ValueError("told to")


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    forked.shut_down()
    yield tmp_path / "out"
    forked.shut_down()


def start(output: Path, target: object = echo, *args: object, **options: object) -> Process:
    return start_process(target, args, name="child", output=output, **options)  # type: ignore[arg-type]


def reap(process: Process) -> int | None:
    process.channel.finish()
    assert process.wait(PATIENCE_S)
    process.close()
    return process.exit_code


def test_messages_and_end(output: Path) -> None:
    """A process gets messages, answers, and ends with status 0 when there are no more."""
    process = start(output, echo, "x")
    process.channel.send((1, 2.5, b"bytes", None, ("nested",)))
    assert process.channel.receive() == (1, 2.5, b"bytes", None, ("nested",), "x")
    process.refresh()
    assert process.pid is not None
    assert process.started_at is not None
    assert process.started_at == process_started_at(process.pid)
    assert abs(time.time() - process.started_at) < PATIENCE_S
    assert reap(process) == 0
    assert process_started_at(process.pid) is None


def test_surroundings(
    output: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A process has its driver's present environment and folder, a session of its own and no stray files."""
    import resource

    forked.warm_up()
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("QGEXEC_TEST", "later than the server")
    monkeypatch.chdir(folder)
    process = start(output, look_around)
    *seen, limit, oom, files = process.channel.receive() or ()
    assert seen == ["later than the server", str(folder), "1", True, True, True, ""]
    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert oom >= min(1000, int(Path("/proc/self/oom_score_adj").read_text()) + 1)
    assert files[:3] == (0, 1, 2)
    reap(process)


def test_what_is_raised_is_told(output: Path) -> None:
    """An exception reaches the driver with its traceback, which is in the output file as well."""
    process = start(output, fail)
    kind, message, hint, trace = process.channel.receive() or ()
    assert (kind, message, hint) == ("raised", "ValueError: told to", "")
    assert "in fail" in trace
    assert reap(process) == 1
    assert "ValueError: told to" in output.read_text()


def test_exit_handlers_are_called(output: Path, tmp_path: Path) -> None:
    """What a library has registered in the process, as to remove its temporary folder, is done at its end."""
    there = tmp_path / "there"
    there.touch()
    process = start(output, leave_late, str(there))
    assert process.channel.receive() is not None
    assert there.exists()
    assert reap(process) == 0
    assert not there.exists()


def test_random_numbers_differ(output: Path) -> None:
    """Two processes forked from one that has imported numpy draw different numbers."""
    numbers = set()
    for _ in range(2):
        process = start(output, draw, preload=("numpy",))
        numbers.add(process.channel.receive())
        reap(process)
    assert len(numbers) == 2


def test_signal(output: Path) -> None:
    """A signal ends it, and its exit status says which; signalling the dead does nothing."""
    process = start(output)
    process.signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S)
    assert process.exit_code == -signal.SIGTERM
    process.signal(signal.SIGKILL)
    process.close()


def test_close_kills(output: Path) -> None:
    """A process that is let go is killed."""
    process = start(output)
    process.channel.send((1,))
    process.channel.receive()
    process.refresh()
    assert process.pid is not None
    process.close()
    wait_gone(process.pid)


def test_take_back(output: Path) -> None:
    """Of what was sent, each message is either taken back, oldest first, or received."""
    process = start(output)
    process.channel.send((0,))
    process.channel.receive()
    process.signal(signal.SIGSTOP)
    for i in range(1, 4):
        process.channel.send((i,))
    taken = list(iter(process.take_back, None))
    assert taken == sorted(taken)
    process.signal(signal.SIGCONT)
    process.channel.send((9,))
    answered = list(iter(process.channel.receive, (9,)))
    assert sorted(message for message in (*taken, *answered) if message) == [(1,), (2,), (3,)]
    assert reap(process) == 0


def test_arguments_that_cannot_be_pickled(output: Path) -> None:
    """Nothing is started for arguments that cannot be sent."""
    with pytest.raises(WorkerStartError, match="cannot be pickled"):
        start(output, echo, lambda: None)
    assert not output.exists()


def test_start_is_a_fork(output: Path) -> None:
    """A second process finds what the first had imported: its server is the same."""
    pid = forked.warm_up(("decimal",))
    assert forked.warm_up(("decimal", "fractions")) == pid
    process = start(output)
    assert reap(process) == 0
    assert forked.warm_up() == pid


def test_implicit_threads(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leaves libraries their threads gets a server of its own, with the driver's own variables."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    process = start(output, look_around, implicit_threads=True)
    message = process.channel.receive() or ()
    assert message[2] == "7"
    reap(process)
    assert forked.warm_up() != forked.warm_up(implicit_threads=True)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with status 0"),
        (3, "exited with status 3"),
        (-9, "was killed by signal 9 (SIGKILL)"),
        (-63, "was killed by signal 63"),
        (None, "is gone"),
    ],
)
def test_describe_exit(code: int | None, words: str) -> None:
    """An exit status in plain words."""
    assert describe_exit(code) == words


DRIVER = """
import os, sys
from pathlib import Path
from tests.kit.runs.benches import attempts, make_run
from qgexec.processes import forked
from qgexec.models.pool import Pool
folder = Path(sys.argv[1])
pool = Pool(3)
pool.open(make_run(folder))
pool.start(attempts("spin", "breed", "hang"))
(folder / "server").write_text(str(forked.warm_up()))
while True:
    pool.wait(60.0)
"""


def script_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PYTHONPATH}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_driver_killed(number: signal.Signals, tmp_path: Path) -> None:
    """When the driver is killed its workers, what they had started, and the server end, whatever they do."""
    ears = Ears(tmp_path)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], env=script_environment())
    try:
        heard = [ears.hear() for _ in range(3)]
    finally:
        driver.send_signal(number)
        driver.wait(PATIENCE_S)
        ears.close()
    server = int((tmp_path / "server").read_text())
    for pid in (server, *(pid for line in heard for pid in line[1:])):
        wait_gone(pid)
    assert sum(len(line) - 1 for line in heard) == 4


UNGUARDED = """
import sys
from pathlib import Path
from tests.kit.runs.benches import attempts, make_run, work_off, endings
from qgexec.models.pool import Pool
print("once")
pool = Pool(2)
pool.open(make_run(Path(sys.argv[1])))
print(len(endings(work_off(pool, attempts("isr", "isr", "isr")))))
pool.close(cancel=True)
"""

MAIN_CLASS = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.kit.runs.benches import Opener, attempts, make_run, work_off, endings
from qgexec.models.pool import Pool

class Mine(Opener):
    pass

def main():
    folder = Path(sys.argv[1])
    pool = Pool(2)
    pool.open(replace(make_run(folder), bench_opener=Mine(folder)))
    try:
        print(len(endings(work_off(pool, attempts("isr", "isr", "isr")))))
    finally:
        pool.close(cancel=True)
"""


def run_script(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_script_without_guard(tmp_path: Path) -> None:
    """A script without ``if __name__ == "__main__"`` is not run again by workers that need nothing of it."""
    done = run_script(tmp_path, UNGUARDED)
    assert (done.stdout, done.stderr) == ("once\n3\n", "")


def test_class_defined_in_main(tmp_path: Path) -> None:
    """What is defined in a guarded script can be given to workers."""
    done = run_script(tmp_path, MAIN_CLASS + '\nif __name__ == "__main__":\n    main()\n')
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_class_defined_in_unguarded_main(tmp_path: Path) -> None:
    """A script that would start itself again in each worker is told to guard what it does."""
    done = run_script(tmp_path, MAIN_CLASS + "\nmain()\n")
    assert done.returncode == 1
    assert 'put what the script does under `if __name__ == "__main__":`' in done.stderr


def test_forked_driver(output: Path) -> None:
    """A process forked from the driver has no server of its own, and leaves the driver's alone."""
    process = start(output)
    server = forked.warm_up()
    pid = os.fork()
    if not pid:
        is_another = forked.warm_up() != server
        forked.shut_down()
        os._exit(0 if is_another else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    process.channel.send((1,))
    assert process.channel.receive() == (1,)
    assert reap(process) == 0
