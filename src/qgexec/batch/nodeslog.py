"""Reads what HTCondor wrote of a DAG's nodes: where each job is, and how its tries ended; asks nobody.

The text is that of HTCondor's job event log, which has been the same for decades: a line with number,
job and time, lines of details, and a line of three dots. A log in another format (a site can choose
XML or JSON) tells nothing here; what is asked of the queue is enough to go on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from qgexec.batch.dagfile import CLOSING_NODE, job_of_node
from qgexec.batch.system import JobEnd, JobState, JobStatus
from qgexec.books.holder import silent_for
from qgexec.books.linefile import file_error
from qgexec.errors import RunDirError
from qgexec.regularfile import open_regular

__all__ = ["NodeStory", "NodesLog", "is_memory_hold", "is_time_hold"]

_HEAD = re.compile(rb"(\d{3}) \((-?\d+)\.\d+\.\d+\) ")
_NODE = re.compile(rb"^\s*DAG Node: (\S+)", re.MULTILINE)
_SLOT = re.compile(rb"^\s*SlotName: (\S+)", re.MULTILINE)
_RETURNED = re.compile(rb"\(1\) Normal termination \(return value (-?\d+)\)")
_SIGNALLED = re.compile(rb"\(0\) Abnormal termination \(signal (\d+)\)")
_CODES = re.compile(rb"^\s*Code (\d+) Subcode (-?\d+)", re.MULTILINE)
_END = b"\n...\n"

_SUBMITTED, _EXECUTING, _EVICTED, _TERMINATED = b"000", b"001", b"004", b"005"
_ABORTED, _HELD, _RELEASED, _LOST, _POST = b"009", b"012", b"013", b"024", b"016"

_CHUNK = 16 << 20
"""Bytes that are read at a time: the log of a large run has hundreds of megabytes."""


def is_memory_hold(code: int, subcode: int) -> bool:
    """Return whether a job was put on hold for its memory; as `qgexec.batch.dagfile.HELD_FOR_MEMORY`."""
    return code == 34 or (code, subcode) in {(21, 102), (3, 34)}


def is_time_hold(code: int, subcode: int) -> bool:
    """Return whether ... for the time that it ran; as `qgexec.batch.dagfile.HELD_FOR_TIME`."""
    return code in {46, 47} or (code, subcode) == (3, 47)


@dataclass(slots=True)
class NodeStory:
    """What the log says of one node."""

    state: JobState = JobState.QUEUED
    reason: str = ""
    end: JobEnd | None = None
    """How its last try ended, perhaps of several."""
    exit_code: int | None = None
    host: str = ""

    def status(self, *, is_over: bool) -> JobStatus:
        """Return it as a status; where all is over no further try follows."""
        state = JobState.ENDED if is_over else self.state
        if state is not JobState.ENDED:
            return JobStatus(state, self.reason, host=self.host)
        end = self.end
        if end is None:  # its end was not written: the schedd, or DAGMan, was gone before
            end = JobEnd.LOST if self.state is JobState.RUNNING else JobEnd.NOT_STARTED
        return JobStatus(state, self.reason, end, self.exit_code, self.host)


@dataclass(slots=True)
class NodesLog:
    """The log of one DAG, which may still grow."""

    path: Path
    nodes: dict[int, NodeStory] = field(default_factory=dict)
    """By job."""
    closing: NodeStory | None = None
    """Of the node that comes after all; `None` before it was submitted."""
    _of_cluster: dict[int, NodeStory] = field(default_factory=dict)
    _offset: int = 0

    def silent_s(self) -> float:
        """Return for how long nothing has been written, seconds; 0 where nothing ever was."""
        try:
            return silent_for(self.path)
        except FileNotFoundError:
            return 0.0

    def read(self) -> None:
        """Take in what is new; a last event that is not whole waits for the next time.

        Raises
        ------
        qgexec.errors.RunDirError
            The log is there and cannot be read.
        """
        try:
            with open_regular(self.path) as file:
                file.seek(self._offset)
                rest = b""
                while chunk := file.read(_CHUNK):
                    *events, rest = (rest + chunk).split(_END)
                    for event in events:
                        self._offset += len(event) + len(_END)
                        self._take(event)
        except FileNotFoundError:
            return
        except OSError as error:
            raise file_error("read", self.path, error, RunDirError) from error

    def _take(self, event: bytes) -> None:
        head = _HEAD.match(event)
        if head is None:
            return
        kind, cluster = head[1], int(head[2])
        if kind in {_SUBMITTED, _POST} and (node := _NODE.search(event)):
            self._of_cluster[cluster] = story = self._story(node[1].decode("ascii", "replace"))
            if kind == _SUBMITTED:
                story.state, story.reason = JobState.QUEUED, ""
        story_of = self._of_cluster.get(cluster)
        if story_of is not None:
            _tell(story_of, kind, event)

    def _story(self, name: str) -> NodeStory:
        job = job_of_node(name)
        if job is not None:
            return self.nodes.setdefault(job, NodeStory())
        if name == CLOSING_NODE and self.closing is None:
            self.closing = NodeStory()
        return self.closing if name == CLOSING_NODE and self.closing is not None else NodeStory()


def _tell(story: NodeStory, kind: bytes, event: bytes) -> None:
    match kind:
        case b"001":
            slot = _SLOT.search(event)
            story.state, story.reason, story.end, story.exit_code = JobState.RUNNING, "", None, None
            story.host = slot[1].decode("ascii", "replace").rpartition("@")[2] if slot else ""
        case b"004" | b"024":
            story.state, story.end = JobState.QUEUED, JobEnd.LOST
            story.reason = "it had to leave its machine, or its machine was lost"
        case b"005":
            _tell_end(story, event)
        case b"012":
            _tell_hold(story, event)
        case b"013":
            story.state = JobState.QUEUED
        case b"009":
            story.state = JobState.QUEUED  # until DAGMan has said that no other try follows
            if story.end not in {JobEnd.OUT_OF_MEMORY, JobEnd.TIMED_OUT}:
                story.end, story.reason = JobEnd.CANCELLED, _words(event)
        case b"016":
            returned = _RETURNED.search(event)
            is_last = returned is not None and int(returned[1]) == 0
            story.state = JobState.ENDED if is_last else JobState.QUEUED
        case _:
            return


def _tell_end(story: NodeStory, event: bytes) -> None:
    story.state = JobState.QUEUED
    if returned := _RETURNED.search(event):
        story.end, story.exit_code = JobEnd.EXITED, int(returned[1])
        story.reason = f"it ended with exit status {story.exit_code}"
    elif signalled := _SIGNALLED.search(event):
        story.end, story.exit_code = JobEnd.SIGNALLED, -int(signalled[1])
        story.reason = f"it was ended by signal {-story.exit_code}"


def _tell_hold(story: NodeStory, event: bytes) -> None:
    found = _CODES.search(event)
    code, subcode = (int(found[1]), int(found[2])) if found else (0, 0)
    story.state, story.reason = JobState.HELD, _words(event)
    if is_memory_hold(code, subcode):
        story.state, story.end = JobState.QUEUED, JobEnd.OUT_OF_MEMORY
    elif is_time_hold(code, subcode):
        story.state, story.end = JobState.QUEUED, JobEnd.TIMED_OUT
    else:
        story.end = JobEnd.CANCELLED


def _words(event: bytes) -> str:
    """Return the line after the first: the reason, in HTCondor's words."""
    lines = event.decode("utf-8", "replace").splitlines()
    return lines[1].strip() if len(lines) > 1 else ""
