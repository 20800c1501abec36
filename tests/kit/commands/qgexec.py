"""Runs `qgexec` for tests: in this process, in one without root's powers, or as a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from qgexec.cli.main import main
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository
from tests.kit.checkout import PYTHONPATH
from tests.kit.processes import warm
from tests.kit.tasks.moodytask import BEGAN, GO, MOODS

DEADLINE_S = 90.0
"""Longest wait for something that must happen: reached only where it does not."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Result:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = sys.argv
    sys.argv = ["qgexec", *map(str, arguments)]
    code: object = "returned"
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
    assert isinstance(code, int), f"it ended with {code!r}"
    return Result(code, out.getvalue(), err.getvalue())


def call_as_mortal(*arguments: object) -> Result:
    """Run the command in a fork of this process that obeys permissions, even where root runs the tests.

    Only for commands that start no workers.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            drop_powers()
            result = call(*arguments)
            text = json.dumps([result.code, result.out, result.err])
        except BaseException as error:  # noqa: BLE001 -- the parent must hear of it
            text = json.dumps([-1, "", repr(error)])
        os.write(write_end, text.encode()[:60_000])
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        code, out, err = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return Result(code, out, err)


def drop_powers() -> None:
    """Give up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (bits 1 and 2): root's way round permissions."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for i in range(3):
        data[i] &= ~0b110
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


@dataclass(slots=True)
class Command:
    """`qgexec` in a process of its own that leads a session, a fork of this one."""

    arguments: Sequence[object]
    cwd: Path
    environment: dict[str, str] = field(default_factory=dict)
    interpreter: Sequence[str] = ("-m", "qgexec")
    closed: Sequence[int] = ()
    """Those of the descriptors 0 to 2 that it is started without."""
    process: warm.Popen = field(init=False)
    temporary: Path = field(init=False)
    err: str = field(init=False, default="")
    out: str = field(init=False, default="")
    _lifeline: int = field(init=False)
    """Readable when no process has its other end any more: the command's, its workers', what they started."""

    def __post_init__(self) -> None:
        self.temporary = self.cwd / f"tmp-{uuid.uuid4().hex[:8]}"
        self.temporary.mkdir()
        self._lifeline, theirs = os.pipe()
        self.process = warm.Popen(
            [sys.executable, *self.interpreter, *map(str, self.arguments)],
            cwd=self.cwd,
            env={**os.environ, "PYTHONPATH": PYTHONPATH, "TMPDIR": str(self.temporary), **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            lifeline=theirs,
            closed=self.closed,
        )
        os.close(theirs)

    def wait_for(self, text: str) -> None:
        """Read stderr until it has said this."""
        assert self.process.stderr is not None
        fd, deadline = self.process.stderr.fileno(), time.monotonic() + DEADLINE_S
        while text not in self.err:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(fd, 65536) if ready else b""
            assert chunk, f"{text!r} never came: {self.err}"
            self.err += chunk.decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command alone."""
        self.process.send_signal(number)

    def finish(self) -> Result:
        """Wait for its end; nothing of it is left then."""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        self.out += out.decode()
        self.err += err.decode(errors="replace")
        gone, _, _ = select.select([self._lifeline], [], [], DEADLINE_S)
        assert gone, f"processes are left: {self._left()}"
        assert [*self.temporary.rglob("*")] == []
        return Result(self.process.returncode, self.out, self.err)

    def end(self) -> None:
        """Kill whatever is left of it."""
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()
        os.close(self._lifeline)

    def _left(self) -> list[int]:
        """Return the processes that hold the other end of the lifeline."""
        pipe = Path(f"/proc/self/fd/{self._lifeline}").readlink()
        left = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if folder.name != str(os.getpid()) and pipe in map(Path.readlink, (folder / "fd").iterdir()):
                    left.append(int(folder.name))
        return left


class Moods:
    """Tells the quanta of a repository what to do, and hears from those that wait.

    Parameters
    ----------
    folder
        The one that the tasks' configuration names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in (BEGAN, GO):
            os.mkfifo(folder / name)
        # Open for both: neither side waits for the other to open it, and what was written stays.
        self._began = os.open(folder / BEGAN, os.O_RDWR | os.O_NONBLOCK)
        self._go = os.open(folder / GO, os.O_RDWR | os.O_NONBLOCK)
        self._heard = ""

    def set(self, moods: dict[str, str]) -> None:
        """Give quanta (``isr 1,3``) or whole tasks (``isr``) a mood; all others have none."""
        (self._folder / MOODS).write_text(json.dumps(moods))

    def wait_for(self, n_quanta: int) -> dict[str, int]:
        """Wait until so many more quanta wait; return the process IDs that they run in."""
        deadline = time.monotonic() + DEADLINE_S
        while self._heard.count("\n") < n_quanta:
            ready, _, _ = select.select([self._began], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"only these began: {self._heard}"
            self._heard += os.read(self._began, 65536).decode()
        lines = self._heard.splitlines(keepends=True)
        self._heard = "".join(lines[n_quanta:])
        pairs = (line.rstrip().partition(" ") for line in lines[:n_quanta])
        return {name: int(pid) for pid, _, name in pairs}

    def let_go(self, n_quanta: int = 1000) -> None:
        """Let so many quanta go on, now or later."""
        os.write(self._go, b"\n" * n_quanta)

    def close(self) -> None:
        """Forget all."""
        os.close(self._began)
        os.close(self._go)
        for name in (BEGAN, GO, MOODS):
            (self._folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make a folder the current one for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def one_message(result: Result, *said: str) -> None:
    """Assert that a command was refused with one error that says all this, for a person to read."""
    assert result.code == 2, (result.out, result.err)
    assert "Traceback" not in result.err
    assert sum(line.startswith("Error: ") for line in result.err.splitlines()) == 1, result.err
    assert result.out == ""
    for words in said:
        assert words in result.err, result.err


def report_of(run_dir: Path) -> dict[str, Any]:
    """Return ``qgexec report --json``."""
    result = call("report", run_dir, "--json")
    report: dict[str, Any] = json.loads(result.out)
    assert result.code == (0 if report["all_succeeded"] else 1)
    return report


def rewrite_graph(
    path: Path, *, header: Mapping[str, object] | None = None, pipeline: tuple[bytes, bytes] | None = None
) -> None:
    """Change a graph file in place: fields of its header, or a text in its pipeline for another."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    shared = members.get("compression_dict")
    dictionary = zstandard.ZstdCompressionDict(shared) if shared else None
    read, write = zstandard.ZstdDecompressor(dictionary), zstandard.ZstdCompressor()
    if header is not None:
        changed = json.loads(read.decompress(members["header.json.zst"])) | header
        members["header.json.zst"] = write.compress(json.dumps(changed).encode())
    if pipeline is not None:
        name = next(name for name in members if name.startswith("pipeline_graph"))
        text = members[name]
        text = gzip.decompress(text) if text[:2] == b"\x1f\x8b" else read.decompress(text)
        members[name] = write.compress(text.replace(*pipeline))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(name, content)


def datasets(repository: MockRepository, dataset_type: str) -> set[str]:
    """Return visit and detector of a type's datasets in the output RUN (``1,3``); each is there once."""
    with repository.butler() as butler:
        refs = butler.query_datasets(dataset_type, OUTPUT_RUN, explain=False, limit=None)
        assert all(butler.stored(ref) for ref in refs)
    names = [",".join(str(ref.dataId[k]) for k in ("visit", "detector") if k in ref.dataId) for ref in refs]
    assert len(set(names)) == len(names)
    return set(names)


def go_on_command(err: str) -> str:
    """Return the command that stderr says goes on with the run."""
    (line,) = (line for line in err.splitlines() if line.startswith("  qgexec resume "))
    return line.strip()
