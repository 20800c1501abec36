"""A real Slurm of one node, of a test's own: its configuration, its daemons, and their end.

It knows nothing of qgexec. Everything of it is in one folder and on free ports of the loopback address:
several run side by side, and a Slurm that is installed on the machine is neither read nor touched. Needs root
and Debian's packages slurmctld, slurmd, slurm-client and munge (22.05 was tried); with accounting, also
slurmdbd and mariadb-server.

Each daemon is the child of a keeper, which is this file run as a program: see `_keep`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Slurm", "missing"]

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo", "scancel", "setpriv")
_ACCOUNTING_PROGRAMS = ("slurmdbd", "sacct", "sacctmgr", "mariadbd")
_START_S = 60.0
_CLIENT_S = 60.0
_END_S = 20.0
_MAX_SOCKET_PATH = 107
"""A path of a Unix socket has so many bytes at most: unix(7)."""

_PR_SET_CHILD_SUBREAPER = 36
"""See prctl(2)."""

_SETTINGS = {
    "ClusterName": "tests",
    "SlurmUser": "root",
    "AuthType": "auth/munge",
    "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core_Memory",
    "JobAcctGatherType": "jobacct_gather/linux",
    "JobAcctGatherFrequency": "task=1",
    "JobCompType": "jobcomp/filetxt",
    "MpiDefault": "none",
    "SwitchType": "switch/none",
    "ReturnToService": "2",
    "SlurmdParameters": "config_overrides",
    "SchedulerParameters": "batch_sched_delay=0,bf_interval=1",
}
"""What does not depend on the folder. The last two: a node may say that it has more CPUs and memory than the
machine; a job starts after a second at most, not three."""

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Debian's daemons are in sbin, which a user's path does not have."""


def missing(*, accounting: bool = False) -> str | None:
    """Say why a Slurm cannot be started here; `None` where it can.

    Parameters
    ----------
    accounting
        Whether it is to have an accounting database.
    """
    if not sys.platform.startswith("linux"):
        return "Slurm runs on Linux only"
    if os.geteuid() != 0:
        return "a Slurm of the tests' own is started by root only"
    programs = _PROGRAMS + (_ACCOUNTING_PROGRAMS if accounting else ())
    absent = [program for program in programs if shutil.which(program, path=_PATH) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client munge" + (" slurmdbd mariadb-server" if accounting else "")
        return f"no {', '.join(absent)} (apt-get install {packages})"
    return None


class Slurm:
    """A Slurm of one node; it runs between ``with`` and the end of that block.

    Parameters
    ----------
    parent
        Where it makes its folder. Keep it short: it holds Unix sockets.
    cpus
        Of its one node, ``node1``; they need not exist.
    memory_mb
        Of that node. A job that asks for none gets its share for each of its CPUs.
    max_array_size
        As Slurm counts: the highest index of an array, plus one.
    max_job_count
        How many jobs the controller remembers at a time, each task of an array one of them.
    min_job_age_s
        How long the controller remembers a job that has ended, at least.
    accounting
        Whether there is an accounting database, so that ``sacct`` answers; takes some seconds more to start.
    extra
        Further lines of ``slurm.conf``; they replace those of the same key.

    Raises
    ------
    RuntimeError
        When it cannot be started here, or does not start in a minute; with the daemons' own words.
    """

    def __init__(
        self,
        parent: Path,
        *,
        cpus: int = 2,
        memory_mb: int = 4000,
        max_array_size: int = 1001,
        max_job_count: int = 10_000,
        min_job_age_s: int = 300,
        accounting: bool = False,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self._parent = parent
        self._cpus = cpus
        self._memory_mb = memory_mb
        self._accounting = accounting
        self._settings = {
            "MaxArraySize": str(max_array_size),
            "MaxJobCount": str(max_job_count),
            "MinJobAge": str(min_job_age_s),
            "DefMemPerCPU": str(memory_mb // cpus),
            **(extra or {}),
        }
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = parent
        """Where all of it is: ``slurm.conf``, each daemon's ``NAME.log``, ``jobcomp.txt`` of ended jobs."""

    @property
    def env(self) -> dict[str, str]:
        """What Slurm's commands need of the environment to speak to this one."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _PATH}

    def __enter__(self) -> Self:
        """Start it, and wait until its node takes jobs."""
        reason = missing(accounting=self._accounting)
        if reason is not None:
            raise RuntimeError(f"Slurm cannot be started: {reason}")
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir=self._parent))
        try:
            self._configure()
            self._start_munged()
            if self._accounting:
                self._start_accounting()
            self.start_controller()
            self.start_node()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it and all of its jobs at once; its folder stays."""
        self._end()

    def run(
        self,
        *command: str | Path,
        timeout_s: float = _CLIENT_S,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str = "",
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that speaks to this Slurm.

        Parameters
        ----------
        command
            It, as a list of arguments.
        timeout_s
            How long it may take.
        env
            Further variables of its environment, which is otherwise this process's, and `env`.
        cwd
            Where it runs; this Slurm's folder by default, where jobs' logs go then.
        stdin
            What it reads.
        check
            Whether its failure is an error.

        Raises
        ------
        RuntimeError
            When it fails and may not; with what it wrote.
        subprocess.TimeoutExpired
            When it takes too long; it has been ended.
        """
        done = subprocess.run(
            command,
            env={**os.environ, **self.env, **(env or {})},
            cwd=cwd or self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            words = " ".join(map(str, command))
            raise RuntimeError(f"{words!r} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def pid(self, daemon: str) -> int:
        """Return the process of ``munged``, ``slurmctld``, ``slurmd``, ``slurmdbd`` or ``mariadbd``."""
        if daemon not in self._keepers:
            raise RuntimeError(f"{daemon} does not run")
        return int((self.folder / f"{daemon}.pid").read_text())

    def stop_controller(self) -> None:
        """End slurmctld, which saves its state first; the node and its jobs go on."""
        self._stop("slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld, with the state that it saved, and wait until it answers."""
        self._start("slurmctld", ["slurmctld", "-D", "-f", self.folder / "slurm.conf"])
        self._wait_until(self._controller_answers)

    def stop_node(self) -> None:
        """End slurmd and all jobs, as when its machine fails; the controller notices after SlurmdTimeout."""
        self._stop("slurmd")

    def start_node(self) -> None:
        """Start slurmd, and wait until the controller gives it jobs."""
        self._start("slurmd", ["slurmd", "-D", "-f", self.folder / "slurm.conf"])
        self._wait_until(self._node_is_up)

    def set_node(self, state: str, reason: str = "a test") -> None:
        """Say of the node what ``scontrol update`` knows as a state: ``drain``, ``resume``, ``down``.

        A node that is said to be down loses its jobs; it is idle again at once while its slurmd runs.
        """
        self.run("scontrol", "update", "nodename=node1", f"state={state}", f"reason={reason}")

    def _configure(self) -> None:
        """Write the configuration, and make what it names."""
        for name in ("d", "state"):
            (self.folder / name).mkdir()
        munge = self._socket("munge.socket")
        self._socket("d/node1_999999.4294967295")  # a step's own
        controller, node = _free_ports(2)
        host = socket.gethostname().split(".")[0]
        settings = {
            **_SETTINGS,
            "SlurmctldHost": f"{host}(127.0.0.1)",
            # A requeued job waits until its credential is void: 2 minutes if nothing is said.
            "AuthInfo": f"socket={munge},cred_expire=5",
            "SlurmctldPort": str(controller),
            "SlurmdPort": str(node),
            "StateSaveLocation": str(self.folder / "state"),
            "SlurmdSpoolDir": str(self.folder / "d"),
            "SlurmctldPidFile": str(self.folder / "slurmctld.pid"),
            "SlurmdPidFile": str(self.folder / "slurmd.pid"),
            "SlurmctldLogFile": str(self.folder / "slurmctld.log"),
            "SlurmdLogFile": str(self.folder / "slurmd.log"),
            "JobCompLoc": str(self.folder / "jobcomp.txt"),
            **self._settings,
        }
        size = f"CPUs={self._cpus} RealMemory={self._memory_mb}"
        node_line = f"NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 {size}\n"
        partition_line = "PartitionName=main Nodes=node1 Default=YES MaxTime=INFINITE State=UP\n"
        (self.folder / "slurm.conf").write_text(_lines(settings) + node_line + partition_line)

    def _socket(self, name: str) -> Path:
        path = self.folder / name
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise RuntimeError(f"{path} is too long for a socket: give Slurm a parent with a shorter path")
        return path

    def _start_munged(self) -> None:
        key, munge = self.folder / "munge.key", self.folder / "munge.socket"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        # By force: else it refuses a folder that its group may write to.
        command = ["munged", "--foreground", "--force", f"--socket={munge}", f"--key-file={key}", *options]
        self._start("munged", command)
        self._wait_until(munge.exists)

    def _start_accounting(self) -> None:
        """Start slurmdbd, which makes its tables in a database of its own, and tell slurmctld of it."""
        database = self._start_database()
        munge = self.folder / "munge.socket"
        [port] = _free_ports(1)
        settings = {
            "DbdHost": "localhost",
            "DbdPort": str(port),
            "SlurmUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={munge}",
            "CommunicationParameters": "NoInAddrAny",
            "PidFile": str(self.folder / "slurmdbd.pid"),
            "LogFile": str(self.folder / "slurmdbd.log"),
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "127.0.0.1",
            "StoragePort": str(database),
            "StorageUser": "root",
            "StorageLoc": "accounting",
        }
        path = self.folder / "slurmdbd.conf"
        path.touch(0o600)  # slurmdbd refuses one that others may read
        path.write_text(_lines(settings))
        self._start("slurmdbd", ["slurmdbd", "-D"])
        self._wait_until(lambda: _listens(port))
        storage = {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "localhost",
            "AccountingStoragePort": str(port),
            "AccountingStoragePass": str(munge),
            "AccountingStoreFlags": "job_comment",
        }
        with (self.folder / "slurm.conf").open("a") as conf:
            conf.write(_lines(storage))
        self.run("sacctmgr", "--immediate", "add", "cluster", "tests")

    def _start_database(self) -> int:
        """Start a database server, and return its port."""
        data = self.folder / "database"
        data.mkdir()
        [port] = _free_ports(1)
        options = {
            "user": "root",
            "datadir": data,
            "socket": self._socket("database.socket"),
            "bind-address": "127.0.0.1",
            "port": port,
            "pid-file": self.folder / "mariadbd.pid",
            "innodb-buffer-pool-size": "32M",
            "innodb-log-file-size": "16M",
            "innodb-flush-log-at-trx-commit": "0",
        }
        words = [f"--{key}={value}" for key, value in options.items()]
        # With no table of users, which takes seconds to make, whoever comes is root.
        self._start("mariadbd", ["mariadbd", "--no-defaults", "--skip-grant-tables", *words])
        self._wait_until(lambda: _listens(port))
        return port

    def _start(self, daemon: str, command: Sequence[str | Path]) -> None:
        if daemon in self._keepers:
            raise RuntimeError(f"{daemon} runs already")
        (self.folder / f"{daemon}.pid").unlink(missing_ok=True)
        keeper = [sys.executable, "-I", __file__, str(os.getpid())]
        with (self.folder / f"{daemon}.out").open("ab") as out:
            self._keepers[daemon] = subprocess.Popen(
                [*keeper, *command],
                env={**os.environ, **self.env},
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,  # an interrupt from the keyboard is for the tests alone
            )

    def _stop(self, daemon: str) -> None:
        keeper = self._keepers.pop(daemon)
        # Not by closing the pipe alone: a fork of the tests' process may have it too.
        keeper.communicate(b"\n", timeout=2 * _END_S)

    def _end(self) -> None:
        for daemon in reversed(list(self._keepers)):
            self._stop(daemon)

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + _START_S
        while not ready():
            ended = [name for name, keeper in self._keepers.items() if keeper.poll() is not None]
            if ended or time.monotonic() > until:
                what = f"{', '.join(ended)} ended" if ended else "it took too long"
                raise RuntimeError(f"Slurm did not start: {what}\n{self._words()}")
            time.sleep(0.02)

    def _words(self) -> str:
        logs = sorted(self.folder.glob("*.out")) + sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    def _controller_answers(self) -> bool:
        return self.run("scontrol", "ping", check=False).returncode == 0

    def _node_is_up(self) -> bool:
        # What the controller says may be from before: it asks the node rarely.
        state = self.run("sinfo", "--noheader", "--format=%T", check=False).stdout.strip()
        return (self.folder / "slurmd.pid").exists() and state in {"idle", "mixed", "allocated"}


def _lines(settings: Mapping[str, str]) -> str:
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=_CLIENT_S).close()
    except ConnectionRefusedError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _keep(parent: int, command: Sequence[str]) -> None:
    """Run a daemon until the parent says the word or is gone, then end it and all that came from it.

    slurmd detaches slurmstepd, which then is nobody's child, and its jobs with it: they would outlive tests
    that were killed. This process is a subreaper, whose children they become, whatever they do; and it is not
    the tests' process, for that one may be killed. It also goes when it has no child left: a daemon failed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    above = os.pidfd_open(parent)
    if os.getppid() != parent:
        return  # gone already; that number may be somebody else's now
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # The daemon must not outlive its keeper either, should that one be killed.
    daemon = subprocess.Popen(["setpriv", "--pdeathsig=KILL", *command], stdin=subprocess.DEVNULL)
    said = sys.stdin.fileno()
    while not {above, said} & set(_wait([above, said, woken])):
        os.read(woken, 4096)
        if not _reap():
            return
    if daemon.poll() is None:
        daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(_END_S)
    _kill_children()


def _wait(files: Sequence[int]) -> list[int]:
    """Wait until something can be read of some files, or their other ends are gone; return these."""
    poll = select.poll()
    for each in files:
        poll.register(each, select.POLLIN)
    return [each for each, _ in poll.poll()]


def _reap() -> bool:
    """Take leave of the children that have ended; return whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            continue
    except ChildProcessError:
        return False
    return True


def _kill_children() -> None:
    """Kill this process's children, and theirs as they become this one's, until there are none."""
    me = os.getpid()
    while _reap():
        for child in Path(f"/proc/{me}/task/{me}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)  # it may have ended, and keeps its number until it is reaped
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


if __name__ == "__main__":
    _keep(int(sys.argv[1]), sys.argv[2:])
