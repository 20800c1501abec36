"""An HTCondor that is this process: a module `htcondor2` that takes DAGs, and what DAGMan does with one.

It reads the DAG that was written, starts a node when its parents have ended, has the POST script decide
whether another try follows, and writes the log of the nodes. It runs one try of a node each time that
a queue is asked. All of it is as with HTCondor, but nothing takes time.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qgexec.batch.dagfile import NODES_LOG, job_of_node
from qgexec.batch.system import JobEnd, JobState
from tests.kit.batch.standins import StandIn, open_round

__all__ = ["CondorStandIn", "condor_standin"]

_IDLE, _RUNNING, _REMOVED, _COMPLETED, _HELD = 1, 2, 3, 4, 5
_SCHEDULER_UNIVERSE = 7
_N_STARTS = 9
"""Tries of a node in one round: the first, and as many again as the DAG says."""

_AT = "2026-11-27 12:00:00"
_HOST = "<127.0.0.1:9618?addrs=127.0.0.1-9618&alias=localhost&noUDP&sock=schedd_1_2>"


class HTCondorError(Exception):
    """What the package raises."""


@dataclass(slots=True)
class _Node:
    """A node of a DAG, and the job of its last try."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    parents: set[str] = field(default_factory=set)
    priority: int = 0
    n_retries: int = 0
    post: Sequence[str] = ()
    retry: int = 0
    cluster: int | None = None
    job_status: int = _IDLE
    is_over: bool = False


@dataclass
class _Dag:
    """DAGMan, with one DAG."""

    cluster: int
    batch_name: str
    folder: Path
    nodes: dict[str, _Node] = field(default_factory=dict)
    final: str = ""
    is_removed: bool = False
    is_over: bool = False
    exit_code: int = 0

    def read(self, path: Path) -> None:
        """Take in the DAG file."""
        for line in path.read_text().splitlines():
            match shlex.split(line, comments=True):
                case ["JOB" | "FINAL" as kind, name, description]:
                    assert (self.folder / description).exists()
                    self.nodes[name] = _Node(name)
                    self.final = name if kind == "FINAL" else self.final
                case ["VARS", name, *pairs]:
                    self.nodes[name].variables.update(_pair(pair) for pair in pairs)
                case ["PRIORITY", name, number]:
                    self.nodes[name].priority = int(number)
                case ["RETRY", name, number]:
                    self.nodes[name].n_retries = int(number)
                case ["SCRIPT", "POST", name, *command]:
                    self.nodes[name].post = command
                case ["PARENT", *names]:
                    at = names.index("CHILD")
                    self._order(names[:at], names[at + 1 :])
                case ["CONFIG", name]:
                    assert (self.folder / name).exists()
                case []:
                    continue
                case words:
                    raise HTCondorError(f"{path}: DAGMan does not know {words}")
        self.nodes[self.final].parents = {*self.nodes} - {self.final}

    def _order(self, parents: Sequence[str], children: Sequence[str]) -> None:
        """Have children wait for parents; between several of both DAGMan puts a node of its own."""
        if len(parents) > 1 and len(children) > 1:
            join = f"_condor_join_node{len(self.nodes)}"
            self.nodes[join] = _Node(join, parents={*parents})
            parents = [join]
        for child in children:
            self.nodes[child].parents |= {*parents}

    def log(self, number: str, node: _Node, what: str, *details: str) -> None:
        """Write an event as HTCondor does."""
        lines = [f"{number} ({node.cluster:03d}.000.000) {_AT} {what}", *details, "..."]
        with (self.folder / NODES_LOG).open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def ready(self) -> list[_Node]:
        """Return the nodes that may begin, the least urgent first: any order is HTCondor's right."""
        left = {name for name, node in self.nodes.items() if not node.is_over}
        ready = [self.nodes[name] for name in left if not self.nodes[name].parents & left]
        ready = [node for node in ready if node.job_status != _RUNNING]
        return sorted(ready, key=lambda node: (node.priority, node.name))

    def ads(self) -> Iterator[dict[str, Any]]:
        """Yield what is in the queue."""
        if self.is_over:
            return
        status = _REMOVED if self.is_removed else _RUNNING
        yield {
            "ClusterId": self.cluster,
            "JobUniverse": _SCHEDULER_UNIVERSE,
            "JobBatchName": self.batch_name,
            "JobStatus": status,
        }
        for node in self.nodes.values():
            if node.cluster is not None and not node.is_over:
                yield {
                    "ClusterId": node.cluster,
                    "DAGManJobId": self.cluster,
                    "DAGNodeName": node.name,
                    "JobStatus": node.job_status,
                }


@dataclass
class CondorStandIn(StandIn):
    """What the schedd and its DAGMans know."""

    n_runs: int = _N_STARTS
    misses: set[int] = field(default_factory=set)
    """Jobs of whose end DAGMan hears nothing, for it could not be written."""
    others: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What is in the queue besides DAGs and their nodes."""
    _dags: list[_Dag] = field(default_factory=list)
    _clusters: Iterator[int] = field(default_factory=lambda: itertools.count(7))

    def left(self, name: str) -> set[int]:
        nodes = [
            node
            for dag in self._dags
            if dag.batch_name == name and not dag.is_over
            for node in dag.nodes.values()
        ]
        jobs = {job_of_node(node.name) for node in nodes if not node.is_over}
        return {job for job in jobs if job is not None} - self.loses

    def called(self) -> None:
        """Raise where nobody answers."""
        if self.silent:
            raise HTCondorError("Failed to fetch ads from schedd, errmsg=Failed to connect")

    def submit(self, description: dict[str, str], dag: Path | None) -> int:
        self.called()
        if dag is None:
            cluster = next(self._clusters)
            self.others[cluster] = {"ClusterId": cluster, "JobStatus": _HELD}
            assert "\nhold = true" in description["text"]
            return cluster
        if self.refuses:
            raise HTCondorError(self.refuses)
        made = _Dag(next(self._clusters), description["My.JobBatchName"].strip('"'), dag.parent)
        made.read(dag)
        self._dags.append(made)
        self.submitted.append(made.batch_name)
        return made.cluster

    def query(self, constraint: str, projection: Sequence[str]) -> list[dict[str, Any]]:
        self.called()
        dag = next((dag for dag in self._dags if any(_fits(ad, constraint) for ad in dag.ads())), None)
        if dag is not None and not (self.pause or self.garbled):
            self._run_one(dag)
        ads = [*self.others.values(), *(ad for dag in self._dags for ad in dag.ads())]
        found = [{name: ad.get(name) for name in projection} for ad in ads if _fits(ad, constraint)]
        return [dict.fromkeys(ad, object()) for ad in found] if self.garbled else found

    def history(self, constraint: str, projection: Sequence[str], match: int) -> list[dict[str, Any]]:
        self.called()
        ended = [
            {
                "ClusterId": dag.cluster,
                "JobUniverse": _SCHEDULER_UNIVERSE,
                "JobBatchName": dag.batch_name,
                "JobStatus": _REMOVED if dag.is_removed else _COMPLETED,
                "ExitCode": dag.exit_code,
            }
            for dag in reversed(self._dags)
            if dag.is_over and not self.forgets
        ]
        return [{name: ad.get(name) for name in projection} for ad in ended if _fits(ad, constraint)][:match]

    def remove(self, constraint: str) -> None:
        self.called()
        for cluster in [cluster for cluster, ad in self.others.items() if _fits(ad, constraint)]:
            del self.others[cluster]
        for dag in self._dags:
            if any(_fits(ad, constraint) for ad in dag.ads()):
                self._remove(dag)

    def _remove(self, dag: _Dag) -> None:
        """Remove all that is in the queue; DAGMan starts its FINAL node then, unless that was it."""
        self.cancelled.append(dag.batch_name)
        final = dag.nodes[dag.final]
        dag.is_over = dag.is_removed
        dag.is_removed = True
        for node in dag.nodes.values():
            if node.cluster is not None and not node.is_over:
                dag.log("009", node, "Job was aborted.", "\tPython-initiated action (by user someone)")
            node.is_over = node is not final or dag.is_over
        if not dag.is_over:
            self._submit_node(dag, final)

    def _submit_node(self, dag: _Dag, node: _Node) -> None:
        node.cluster, node.job_status = next(self._clusters), _IDLE
        dag.log("000", node, f"Job submitted from host: {_HOST}", f"    DAG Node: {node.name}")

    def _run_one(self, dag: _Dag) -> None:
        """Hand over what may begin, and run a try of one."""
        ready = [node for node in dag.ready() if job_of_node(node.name) not in self.loses]
        if not ready and self.loses:
            dag.is_over = True  # DAGMan itself was lost
        for node in ready:
            if node.cluster is None:
                self._submit_node(dag, node)
        if ready:
            self._run(dag, ready[0])

    def _run(self, dag: _Dag, node: _Node) -> None:
        job = job_of_node(node.name)
        if job is None:  # a node of DAGMan's own; or the closing job, for which a driver has left nothing
            self._end(dag, node, 0)
            dag.is_over = node.name == dag.final
            return
        assert node.variables["job"] == str(job)
        node.job_status = _RUNNING
        slot = "\tSlotName: slot1_1@localhost"
        dag.log("001", node, f"Job executing on host: {_HOST}", slot, "\tCpus = 1", "\tMemory = 256")
        status = self.runs(open_round(dag.folder), job)
        if job in self.misses:
            node.cluster = None
        if status.state is JobState.RUNNING or job in self.misses:
            return
        node.job_status = _IDLE
        if status.end is JobEnd.LOST:
            dag.log(
                "004",
                node,
                "Job was evicted.",
                "\t(0) CPU times",
                "\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Remote Usage",
            )
        elif status.end is JobEnd.CANCELLED:
            dag.log("009", node, "Job was aborted.", "\tPython-initiated action (by user someone)")
            self._decide(dag, node, -1004)
        else:
            self._end(dag, node, status.exit_code or 0)

    def _end(self, dag: _Dag, node: _Node, code: int) -> None:
        how = (
            f"\t(1) Normal termination (return value {code})"
            if code >= 0
            else f"\t(0) Abnormal termination (signal {-code})"
        )
        dag.log("005", node, "Job terminated.", how)
        self._decide(dag, node, code)

    def _decide(self, dag: _Dag, node: _Node, code: int) -> None:
        """Have the POST script say whether the node is done; if it is not, its next try is another job."""
        if node.post:
            values = {"$RETURN": code, "$RETRY": node.retry, "$MAX_RETRIES": node.n_retries}
            command = [str(values.get(word, word)) for word in node.post]
            code = subprocess.run(command, cwd=dag.folder, check=False).returncode
            what = f"\t(1) Normal termination (return value {code})"
            dag.log("016", node, "POST Script terminated.", what, f"    DAG Node: {node.name}")
        node.cluster = None
        node.is_over = code == 0 or node.retry == node.n_retries
        node.retry += 1
        assert not node.is_over or code == 0, f"{node.name} has failed: nothing that follows it would start"


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _fits(ad: Mapping[str, Any], constraint: str) -> bool:
    """Return whether an ad fits a constraint of the few kinds that are asked."""
    return any(
        all(
            str(ad.get(name)) == value.strip('"')
            for name, _, value in (term.strip().partition(" == ") for term in part.split("&&"))
        )
        for part in constraint.split("||")
    )


class _Kinds(Enum):
    Schedd = 1
    Startd = 2
    Remove = 3


def _module(standin: CondorStandIn) -> ModuleType:
    """Return the module as jobs are submitted by it."""

    class Submit(dict[str, str]):
        dag: Path | None = None

        def __init__(self, text: str = "") -> None:
            super().__init__(text=text)

        @classmethod
        def from_dag(cls, path: str, options: Mapping[str, object]) -> Submit:
            assert options == {"UseDagDir": True, "Force": True}
            made = cls()
            made.dag = Path(path)
            return made

    class Result(int):
        def cluster(self) -> int:
            return int(self)

    class Schedd:
        def __init__(self, found: object = None) -> None:
            standin.called()

        def submit(self, description: Submit) -> Result:
            return Result(standin.submit(description, description.dag))

        def query(self, *, constraint: str, projection: Sequence[str]) -> list[dict[str, Any]]:
            return standin.query(constraint, projection)

        def history(self, constraint: str, projection: Sequence[str], match: int) -> list[dict[str, Any]]:
            return standin.history(constraint, projection, match)

        def act(self, action: object, constraint: str) -> None:
            assert action is _Kinds.Remove
            standin.remove(constraint)

    class Collector:
        def locate(self, kind: object, name: str = "here") -> dict[str, str]:
            standin.called()
            return {"Name": name}

        def query(self, kind: object, *, constraint: str, projection: Sequence[str]) -> list[dict[str, int]]:
            standin.called()
            return [{"TotalSlotCpus": 4, "TotalSlotMemory": 8000}]

    module = ModuleType("htcondor2")
    names = {"HTCondorException": HTCondorError, "DaemonType": _Kinds, "AdType": _Kinds, "JobAction": _Kinds}
    vars(module).update(names, Submit=Submit, Schedd=Schedd, Collector=Collector)
    return module


@contextmanager
def condor_standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[CondorStandIn]:
    """Be what the module `htcondor2` speaks to."""
    standin = CondorStandIn()
    monkeypatch.setitem(sys.modules, "htcondor2", _module(standin))
    monkeypatch.setattr("qgexec.batch.htcondor.is_root", lambda: False)
    yield standin
