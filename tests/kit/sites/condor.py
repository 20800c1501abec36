"""Owns a real HTCondor pool of one node, in a Debian 13 folder; knows nothing of what is submitted to it.

Everything of a pool runs in a mount and a PID namespace of its own, whose
first process lives as long as a pipe from this process is open: when this
process ends, however it does, the kernel ends every process of the pool and
takes every mount away.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

from tests.kit.checkout import CHECKOUT

__all__ = ["UID", "USER", "VENV", "CondorFolder", "CondorPool", "SiteError", "missing"]

VENV = Path("/opt/qgexec")
"""The virtual environment inside the folder: Python 3.13, LSST's packages, HTCondor's and the project."""

USER = "qgexec-test"
"""Who runs the pool, since root may not submit."""

UID = 2901
"""The user's and the group's number, one inside and outside; nobody needs to know it outside."""

_RECIPE = 1  # of the folder: another number, and the next use makes it anew
_DEBIAN = "trixie"
_BASE_PACKAGES = ["ca-certificates", "procps", "python3", "python3-cffi-backend", "python3-venv"]
_PACKAGES = ["minicondor"]  # not debootstrap's: it fails at this one's configuration
_PROJECT = f"{CHECKOUT}[bps,demo,htcondor]"
_REQUIREMENTS = ["hypothesis", "pytest", "pytest-timeout"]
_TOOLS = ["bash", "debootstrap", "mount", "nsenter", "unshare"]
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

_MAKE_S = 900.0
_START_S = 60.0
_STOP_S = 20.0
_COMMAND_S = 60.0

# What is mounted here goes with the namespace. `cat` ends when the pipe does. As the first process there it
# inherits orphans: if it ignores SIGCHLD, none becomes a zombie (bash can arrange that, dash cannot).
_ENTER = """
set -eu
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
while [ $# -gt 0 ]; do
    target=$root$2
    if [ -d "$1" ]; then
        mkdir -p "$target"
    elif [ ! -e "$target" ]; then
        mkdir -p "${target%/*}"; : > "$target"
    fi
    mount --bind "$1" "$target"
    [ "$3" = rw ] || mount -o remount,bind,ro "$target"
    shift 3
done
exec chroot "$root" /bin/bash -c 'trap "" CHLD; echo ready; exec cat'
"""

_CONFIGURATION = """
use ROLE : Personal
use SECURITY : host_based
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_ADMINISTRATOR = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, CLAIMTOBE
SEC_CLIENT_AUTHENTICATION_METHODS = CLAIMTOBE
UID_DOMAIN = local
TRUST_UID_DOMAIN = True
RELEASE_DIR = /usr
LIB = /usr/lib/condor
LIBEXEC = /usr/libexec/condor
SHARE = /usr/share/condor
NETWORK_INTERFACE = 127.0.0.1
CONDOR_HOST = 127.0.0.1
COLLECTOR_PORT = {port}
SHARED_PORT_PORT = {port}
LOCAL_DIR = {local}
LOG = $(LOCAL_DIR)/log
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
LOCK = $(LOCAL_DIR)/lock
RUN = $(LOCAL_DIR)/run
NUM_CPUS = {n_cpus}
MEMORY = {memory_mb}
START = True
SUSPEND = False
PREEMPT = False
KILL = False
PID_SNAPSHOT_INTERVAL = 1
CREATE_CORE_FILES = False
RUNBENCHMARKS = False
UPDATE_INTERVAL = 5
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
PERIODIC_EXPR_INTERVAL = 2
STARTER_UPDATE_INTERVAL = 2
STARTER_INITIAL_UPDATE_INTERVAL = 1
SHADOW_QUEUE_UPDATE_INTERVAL = 2
DAGMAN_USER_LOG_SCAN_INTERVAL = 1
DAGMAN_USE_STRICT = 0
"""


class SiteError(RuntimeError):
    """The folder or the pool is not what a test needs; the message ends with what a program wrote."""


@functools.cache
def missing() -> str | None:
    """Return why a pool cannot be started here; `None` where it can, the network not considered."""
    if os.geteuid() != 0:
        return "an HTCondor pool of one's own needs root (for debootstrap, mount and chroot)"
    absent = [tool for tool in _TOOLS if shutil.which(tool, path=_search_path()) is None]
    if absent:
        return f"an HTCondor pool of one's own needs the programs {', '.join(absent)}"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "true"],
        check=False,
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
    )
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclasses.dataclass(frozen=True, slots=True)
class _Bind:
    """What is seen inside as well, from where, and whether it can be written there."""

    source: Path
    target: Path
    mode: Literal["ro", "rw"] = "ro"


class _Enclosure:
    """Namespaces with a folder as their root: what runs there ends with this object, or with this process.

    Parameters
    ----------
    root
        The folder, with a Debian system in it.
    binds
        What is seen inside besides.
    """

    def __init__(self, root: Path, binds: Sequence[_Bind]) -> None:
        mounts = [part for bind in binds for part in (bind.source, bind.target, bind.mode)]
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation=private"]
        self._holder = subprocess.Popen(
            [*namespaces, "bash", "-c", _ENTER, "enter", root, *mounts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": _search_path()},
            cwd="/",
            start_new_session=True,  # so that a terminal's interrupt is ours alone
        )
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._pipe: IO[bytes] = self._holder.stdin
        try:
            if self._holder.stdout.readline() != b"ready\n":
                raise SiteError(f"no namespace with the root {root} could be made; see the error output")
            children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
            self._first = int(children)
        except BaseException:
            self.close()
            raise
        finally:
            self._holder.stdout.close()

    def command(
        self, command: Sequence[str | Path], *, uid: int, cwd: Path, env: Mapping[str, str]
    ) -> list[str]:
        """Return what runs the command inside, with this environment alone.

        Whoever kills the process that this becomes kills the command.
        """
        enter = ["nsenter", f"--target={self._first}", "--mount", "--pid", "--root", "--wd"]
        enter += [f"--setuid={uid}", f"--setgid={uid}"]
        clean = ["env", "--ignore-environment", f"--chdir={cwd}", *(f"{key}={env[key]}" for key in env)]
        return [*enter, "--", "/usr/bin/setpriv", "--pdeathsig=KILL", "--", *clean, *map(str, command)]

    def seen(self, path: Path) -> Path:
        """Return the path by which something inside can be reached from outside."""
        return Path(f"/proc/{self._first}/root") / path.relative_to("/")

    def close(self) -> None:
        """End everything inside; may be called twice."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        try:
            self._holder.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._holder.kill()  # its child, and so the namespace, goes with it
            self._holder.wait(_STOP_S)


def _default_root() -> Path:
    return Path(os.environ.get("QGEXEC_SITES") or CHECKOUT / ".sites").resolve() / "condor"


@dataclasses.dataclass(frozen=True, slots=True)
class CondorFolder:
    """A folder with Debian 13, HTCondor and an environment with the project: made once, kept, used again.

    Parameters
    ----------
    root
        Where it is; what else begins with this name beside it is the folder's too.
    """

    root: Path = dataclasses.field(default_factory=_default_root)

    def is_made(self) -> bool:
        """Say whether `prepare` would find the folder as it makes it."""
        return _read(self.root / "recipe") == str(_RECIPE)

    def prepare(self) -> None:
        """Make the folder if there is none, and install the project if it needs other packages than before.

        The first time it takes about two minutes and a gigabyte, and
        Debian's and Python's packages must be reachable; milliseconds
        later. Only one process does it at a time.

        Raises
        ------
        SiteError
            A program failed; the folder is as it was before.
        """
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with self._alone(), self._beside("log").open("ab") as log:
            if not self.is_made():
                made_aside = self._beside("new")
                for old in (made_aside, self.root):
                    if old.exists():
                        shutil.rmtree(old)
                self._make(made_aside, log)
                made_aside.rename(self.root)
            self._install_project(log)

    def _make(self, root: Path, log: IO[bytes]) -> None:
        include = f"--include={','.join(_BASE_PACKAGES)}"
        # Namespaces of its own here too: debootstrap mounts /proc, and would leave it there when killed.
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        bootstrap = ["debootstrap", "--variant=minbase", include, _DEBIAN, str(root)]
        _run_logged([*namespaces, *bootstrap], log, env={"PATH": _search_path(), "LANG": "C.UTF-8"})
        with (root / "etc/passwd").open("a") as users, (root / "etc/group").open("a") as groups:
            users.write(f"{USER}:x:{UID}:{UID}::/tmp:/bin/bash\n")
            groups.write(f"{USER}:x:{UID}:\n")
        steps: list[list[str]] = [
            ["apt-get", "install", "--yes", "--no-install-recommends", *_PACKAGES],
            ["apt-get", "clean"],
            ["python3", "-m", "venv", str(VENV)],  # in a clean environment, or PATH has another interpreter
        ]
        apt = {"PATH": _SYSTEM_PATH, "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        with _opened(root, _network()) as inside:
            for step in steps:
                _run_logged(inside.command(step, uid=0, cwd=Path("/"), env=apt), log)
        (root / "recipe").write_text(str(_RECIPE))

    def _install_project(self, log: IO[bytes]) -> None:
        stamp = self.root / VENV.relative_to("/") / "installed"
        project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
        needs = json.dumps([_PROJECT, _REQUIREMENTS, project], sort_keys=True)
        wanted = hashlib.sha256(needs.encode()).hexdigest()
        if _read(stamp) == wanted:
            return
        pip = _pip_settings()
        env = {"PATH": f"{VENV}/bin:{_SYSTEM_PATH}", "LANG": "C.UTF-8", "HOME": "/root", **pip}
        # The build writes its metadata into the checkout, as it does for the environment outside.
        binds = [*_network(), *_named_paths(pip.values()), _Bind(CHECKOUT, CHECKOUT, "rw")]
        install = [
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--no-cache-dir",
            "--editable",
            _PROJECT,
            *_REQUIREMENTS,
        ]
        with _opened(self.root, binds) as inside:
            _run_logged(inside.command(install, uid=0, cwd=Path("/"), env=env), log)
        stamp.write_text(wanted)

    def _beside(self, what: str) -> Path:
        return self.root.with_name(f"{self.root.name}.{what}")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._beside("lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class CondorPool:
    """A personal pool with one node, which runs within the ``with`` statement.

    Parameters
    ----------
    folder
        Where its programs are; prepared when the pool starts.
    n_cpus
        How many cores the node says it has.
    memory_mb
        How much memory the node says it has, in MiB.
    extra
        More lines of HTCondor's configuration.
    """

    def __init__(
        self,
        folder: CondorFolder | None = None,
        *,
        n_cpus: int = 2,
        memory_mb: int = 8192,
        extra: str = "",
    ) -> None:
        self._folder = folder or CondorFolder()
        self._n_cpus = n_cpus
        self._memory_mb = memory_mb
        self._extra = extra
        self._own = Path()
        self._inside: _Enclosure | None = None
        self._master: subprocess.Popen[str] | None = None

    @property
    def shared(self) -> Path:
        """A folder of the pool's user's, at the same path inside and outside; it goes with the pool."""
        return self._own / "shared"

    @property
    def logs(self) -> Path:
        """Where the pool's daemons write their logs."""
        return self._own / "pool" / "log"

    @property
    def configuration(self) -> Path:
        """The file that ``CONDOR_CONFIG`` names."""
        return self._own / "condor_config"

    def __enter__(self) -> Self:
        self._folder.prepare()
        # Not below pytest's own folder: that one is root's alone, and a socket's path must be short.
        self._own = Path(tempfile.mkdtemp(prefix="qgexec-condor-"))
        try:
            self._write_files()
            binds = [
                _Bind(self._own, self._own, "rw"),
                _Bind(self._own / "hosts", Path("/etc/hosts")),
                _Bind(CHECKOUT, CHECKOUT),
            ]
            self._inside = _Enclosure(self._folder.root, binds)
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def run(
        self,
        *command: str | Path,
        timeout_s: float = _COMMAND_S,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the pool's user, to its end.

        Parameters
        ----------
        command
            The program and its arguments; programs of the virtual environment are found first.
        timeout_s
            When the command is killed.
        env
            Variables besides `environment`.
        cwd
            Where it runs; `shared` by default.
        check
            Whether a return code other than 0 is an error.

        Returns
        -------
        completed : `subprocess.CompletedProcess`
            With both outputs as text.

        Raises
        ------
        SiteError
            The command failed; the message has its outputs.
        subprocess.TimeoutExpired
            It took too long, and is dead now. What it had started may still run.
        """
        done = subprocess.run(
            self._command(command, env, cwd),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if check and done.returncode:
            words = " ".join(map(str, command))
            raise SiteError(f"{words}: return code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(
        self,
        *command: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: int | IO[str] | None = subprocess.PIPE,
        stderr: int | IO[str] | None = subprocess.STDOUT,
    ) -> subprocess.Popen[str]:
        """Start a command as `run` does; to kill what is returned is to kill the command with SIGKILL."""
        return subprocess.Popen(
            self._command(command, env, cwd),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process of the pool, by its number inside, as HTCondor and `run` show it."""
        self.run("/bin/kill", f"-{number.value}", "--", str(pid))

    def mount_disk(self, folder: Path, n_bytes: int) -> Path:
        """Mount a file system in memory, of the pool's user's, at an empty folder; it goes with the pool.

        Returns
        -------
        seen
            Where it is from outside; at its own path it is seen inside only.
        """
        assert self._inside is not None
        options = f"size={n_bytes},uid={UID},gid={UID},mode=0755"
        mount = ["/usr/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        command = self._inside.command(mount, uid=0, cwd=Path("/"), env=self.environment)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMMAND_S)
        if done.returncode:
            raise SiteError(f"no file system can be mounted: {done.stderr}")
        return self._inside.seen(folder)

    def stop_schedd(self) -> None:
        """Stop the schedd, and wait until it is gone, with all shadows and DAGMans; the queue is kept.

        Jobs run on, and the next schedd takes them up again, unless their
        leases have ended by then (40 minutes by default).
        """
        self.run("condor_off", "-daemon", "schedd", "-fast")
        _wait_until(self._is_schedd_gone, _START_S, "the schedd did not end")

    def start_schedd(self) -> None:
        """Start the schedd again, and wait until it answers."""
        self.run("condor_on", "-daemon", "schedd")
        _wait_until(self._does_schedd_answer, _START_S, "the schedd does not answer")

    @property
    def environment(self) -> dict[str, str]:
        """All environment variables that a command inside has by default."""
        return {
            "PATH": f"{VENV}/bin:{_SYSTEM_PATH}",
            "LANG": "C.UTF-8",
            "HOME": str(self._own / "home"),
            "USER": USER,
            "LOGNAME": USER,
            "CONDOR_CONFIG": str(self.configuration),
        }

    def _command(
        self, command: Sequence[str | Path], env: Mapping[str, str] | None, cwd: Path | None
    ) -> list[str]:
        if self._inside is None:
            raise SiteError("the pool is not running: it does within its with statement only")
        return self._inside.command(
            command, uid=UID, cwd=cwd or self.shared, env={**self.environment, **(env or {})}
        )

    def _write_files(self) -> None:
        for folder in (self.shared, self._own / "home", *self._daemon_folders()):
            folder.mkdir(parents=True)
        settings = _CONFIGURATION.format(
            port=_free_port(), local=self._own / "pool", n_cpus=self._n_cpus, memory_mb=self._memory_mb
        )
        self.configuration.write_text(f"{settings}{self._extra}\n")
        (self._own / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
        for path in (self._own, *self._own.rglob("*")):
            os.chown(path, UID, UID)

    def _daemon_folders(self) -> list[Path]:
        return [self._own / "pool" / name for name in ("log", "spool", "execute", "lock", "run")]

    def _start(self) -> None:
        with (self._own / "master.out").open("w") as log:
            # Below a shell: a daemon whose parent is outside the namespace takes /proc for broken.
            master = ["sh", "-c", "condor_master -f; exit $?"]
            self._master = self.popen(*master, cwd=Path("/"), stdout=log, stderr=log)
        _wait_until(self._is_ready, _START_S, "the pool did not start", self._explain)

    def _is_ready(self) -> bool:
        if self._master is None or self._master.poll() is not None:
            raise SiteError(f"condor_master ended\n{self._explain()}")
        slots = self.run("condor_status", "-autoformat", "Name", check=False)
        return bool(slots.stdout.strip()) and self._does_schedd_answer()

    def _does_schedd_answer(self) -> bool:
        return self.run("condor_q", "-totals", check=False).returncode == 0

    def _is_schedd_gone(self) -> bool:
        return self.run("pgrep", "-x", "condor_(schedd|shadow|dagman)", check=False).returncode == 1

    def _explain(self) -> str:
        logs = [self._own / "master.out", *sorted(self.logs.glob("*Log"))]
        return "\n".join(f"--- {path.name}\n{_tail(path)}" for path in logs if path.exists())

    def _end(self) -> None:
        try:
            if self._inside is not None:
                self._stop_master()
                self._inside.close()
        finally:
            self._inside = None
            shutil.rmtree(self._own)

    def _stop_master(self) -> None:
        """Let the daemons end by themselves if they do so soon; the namespace's end is theirs in any case."""
        if self._master is None:
            return
        with contextlib.suppress(SiteError, subprocess.TimeoutExpired):
            self.run("condor_off", "-master", "-fast", timeout_s=_STOP_S)
            self._master.wait(_STOP_S)
        if self._master.poll() is None:
            self._master.kill()
            self._master.wait(_STOP_S)


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"


@contextlib.contextmanager
def _opened(root: Path, binds: Sequence[_Bind]) -> Iterator[_Enclosure]:
    inside = _Enclosure(root, binds)
    try:
        yield inside
    finally:
        inside.close()


def _run_logged(command: Sequence[str], log: IO[bytes], env: Mapping[str, str] | None = None) -> None:
    """Run a command, with its outputs in the log."""
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, timeout=_MAKE_S
    )
    if done.returncode:
        raise SiteError(f"{command[0]}: return code {done.returncode}\n{_tail(Path(log.name))}")


def _network() -> list[_Bind]:
    """Return what programs inside need to reach package servers as those outside do."""
    paths = [Path("/etc/resolv.conf"), Path("/etc/ssl/certs")]
    return [_Bind(path, path) for path in paths if path.exists()]


def _pip_settings() -> dict[str, str]:
    """Return pip's configuration of this machine, from all its files and variables, as its variables."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(pip, check=True, capture_output=True, text=True, timeout=_COMMAND_S).stdout
    found = {"PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for line in listed.splitlines():  # files first, then variables, which have priority for pip, too
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2].upper().replace("-", "_")
        found[f"PIP_{name}"] = str(ast.literal_eval(value)).replace("\n", " ").strip()
    return found


def _named_paths(values: Iterable[str]) -> list[_Bind]:
    """Return what settings name of this machine's file system: indexes, wheels, constraints, certificates."""
    words = {word for value in values for word in value.split()}
    paths = {Path(word) for word in words if word.startswith("/")}
    # An index refers to files beside it.
    paths |= {Path(word.removeprefix("file://")).parent for word in words if word.startswith("file:///")}
    return [_Bind(path, path) for path in sorted(paths) if path.exists()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def _wait_until(
    is_so: Callable[[], bool], timeout_s: float, otherwise: str, explain: Callable[[], str] = str
) -> None:
    """Ask again and again, some milliseconds a time, until it is so."""
    until = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > until:
            raise SiteError(f"{otherwise} within {timeout_s:.0f} s\n{explain()}")
        time.sleep(0.1)


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _tail(path: Path, n_chars: int = 2000) -> str:
    return path.read_text(errors="replace")[-n_chars:]
