"""`qgexec.ingestion.process`: batches, confirmations, deaths; with an ingester that writes a list."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qgexec.books.journal import SegmentWriter, segment_path
from qgexec.errors import IngestError, UsageError
from qgexec.events import Event, OutputsIngested, WorkerEnded, WorkerStarted
from qgexec.ingestion.process import Batching, IngestionProcess, InlineIngestion
from qgexec.processes import forked
from qgexec.quantum import SegmentRef
from tests.kit.runs.benches import PATIENCE_S, wait_gone

Ingestion = InlineIngestion | IngestionProcess


class ListIngester:
    """Appends what it takes in to a file, one line a transaction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ingest(self, details: Sequence[Mapping[str, Any]]) -> int:
        outputs = [output for detail in details for output in detail["outputs"]]
        if "bad" in outputs or ("while locked" in outputs and (self.folder / "locked").exists()):
            raise IngestError("the table is locked", hint="Unlock it.")
        if "wrong" in outputs:
            raise ValueError("no such column")
        if "hang" in outputs:
            signal.pause()
        if "deadly" in outputs:
            tries = self.folder / "tries"
            tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
            if len(tries.read_text()) <= int((self.folder / "deaths").read_text()):
                os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder / "table").open("a") as table:
            table.write(json.dumps(outputs) + "\n")
        return len(outputs)

    def discard(self, indices: Sequence[int]) -> None:
        if 99999 in indices:
            raise IngestError("the folder is read-only")
        with (self.folder / "table").open("a") as table:
            table.write(json.dumps({"discard": indices}) + "\n")
        if (deaths := self.folder / "deaths").exists():
            deaths.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        (self.folder / "closed").touch()


@dataclass(frozen=True)
class ListOpener:
    """Opens a `ListIngester`."""

    folder: Path
    problem: str = ""

    def __call__(self) -> ListIngester:
        if self.problem:
            raise RuntimeError(self.problem)
        return ListIngester(self.folder)


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    folder = tmp_path / "segments"
    folder.mkdir()
    return folder


@pytest.fixture
def offers(segments: Path) -> Iterator[Callable[..., list[tuple[int, SegmentRef]]]]:
    """Writes details with these outputs, and returns their indices and places."""
    writer = SegmentWriter(segment_path(segments, 1, "driver"))

    def write(*outputs: str) -> list[tuple[int, SegmentRef]]:
        return [(i, writer.append({"outputs": [output]})) for i, output in enumerate(outputs)]

    yield write
    writer.close()


Offers = Callable[..., list[tuple[int, SegmentRef]]]
Maker = Callable[..., Ingestion]


@pytest.fixture(params=["inline", "process"])
def make(request: pytest.FixtureRequest, tmp_path: Path, segments: Path) -> Iterator[Maker]:
    """Makes an ingestion of either kind; closes it."""
    made: list[Ingestion] = []

    def maker(batching: Batching | None = None, problem: str = "") -> Ingestion:
        opener = ListOpener(tmp_path, problem)
        if request.param == "inline":
            made.append(InlineIngestion(opener, segments, batching))
        else:
            made.append(IngestionProcess(opener, segments, tmp_path, batching))
        return made[-1]

    yield maker
    for ingestion in made:
        ingestion.close()
        ingestion.close()
    forked.shut_down()


def table(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "table").read_text().splitlines()]


def ingested(events: Sequence[Event]) -> list[OutputsIngested]:
    """Leave out what is said of the ingester's process."""
    return [event for event in events if isinstance(event, OutputsIngested)]


def drain_all(ingestion: Ingestion, timeout_s: float = PATIENCE_S) -> list[Event]:
    """Do as the loop does: call it again where a process has begun."""
    found: list[Event] = []
    while True:
        events = ingestion.drain(timeout_s)
        found.extend(events)
        if not any(isinstance(event, WorkerStarted) for event in events):
            return found


def drain(ingestion: Ingestion) -> list[OutputsIngested]:
    return ingested(drain_all(ingestion))


def collect_until(ingestion: Ingestion, n: int) -> list[OutputsIngested]:
    """Collect until so many quanta are confirmed."""
    events: list[OutputsIngested] = []
    while sum(len(event.indices) for event in events) < n:
        found = ingestion.collect()
        events.extend(ingested(found))
        if isinstance(ingestion, IngestionProcess) and not found:
            ends: list[Any] = [ingestion, ingestion.process]
            assert select.select(ends, [], [], PATIENCE_S)[0]
    return events


def test_drain_takes_everything(make: Maker, offers: Offers, tmp_path: Path) -> None:
    """What was offered is taken in, in order, and confirmed by index, when the run drains."""
    ingestion = make()
    for offer in offers("a", "b", "c"):
        ingestion.offer(*offer)
    events = drain(ingestion)
    assert [event.indices for event in events] == [(0, 1, 2)]
    assert [event.n_datasets for event in events] == [3]
    assert table(tmp_path) == [["a", "b", "c"]]
    assert drain(ingestion) == []
    ingestion.close()
    assert (tmp_path / "closed").exists()


def test_batches_by_number(make: Maker, offers: Offers, tmp_path: Path) -> None:
    """A batch is taken in when it is full; the rest waits for the drain."""
    ingestion = make(Batching(quanta=2, seconds=3600))
    for offer in offers(*"abcde"):
        ingestion.offer(*offer)
    events = collect_until(ingestion, 4)
    assert [event.indices for event in events] == [(0, 1), (2, 3)]
    assert table(tmp_path) == [["a", "b"], ["c", "d"]]
    assert [event.indices for event in drain(ingestion)] == [(4,)]


def test_batches_by_age(make: Maker, offers: Offers, tmp_path: Path) -> None:
    """An offer that is old enough is taken in although the batch is not full."""
    ingestion = make(Batching(quanta=100, seconds=0))
    for offer in offers("a"):
        ingestion.offer(*offer)
    assert [event.indices for event in collect_until(ingestion, 1)] == [(0,)]


def test_many_offers(make: Maker, offers: Offers, tmp_path: Path) -> None:
    """More offers than any socket holds are all taken in, once."""
    ingestion = make(Batching(quanta=1000, seconds=0))
    events: list[OutputsIngested] = []
    for offer in offers(*map(str, range(20000))):
        ingestion.offer(*offer)
        if offer[0] % 100 == 0:
            events.extend(ingested(ingestion.collect()))
    events.extend(drain(ingestion))
    assert [i for event in events for i in event.indices] == list(range(20000))
    assert sum(map(len, table(tmp_path))) == 20000


@pytest.mark.parametrize(
    ("output", "words"), [("bad", "registry: the table is locked"), ("wrong", "ValueError: no such column")]
)
def test_ingester_that_fails(make: Maker, offers: Offers, output: str, words: str, tmp_path: Path) -> None:
    """What the ingester raises reaches the driver in its own words; nothing of that batch is confirmed."""
    ingestion = make()
    for offer in offers("a", output):
        ingestion.offer(*offer)
    with pytest.raises(IngestError, match=words) as caught:
        drain_all(ingestion)
    assert (caught.value.hint == "Unlock it.") == (output == "bad")
    with pytest.raises(IngestError, match=words):
        drain_all(ingestion)
    assert not (tmp_path / "table").exists()


def test_ingester_that_does_not_open(make: Maker, offers: Offers) -> None:
    """An ingester that cannot be opened is an error with its reason."""
    ingestion = make(problem="no registry")
    for offer in offers("a"):
        ingestion.offer(*offer)
    with pytest.raises(IngestError, match="RuntimeError: no registry"):
        drain_all(ingestion)


def test_detail_that_is_not_there(make: Maker) -> None:
    """A detail that cannot be read is an error that names the file."""
    ingestion = make(Batching(visibility_s=0.0))
    ingestion.offer(0, SegmentRef("0009-driver.jsonl", 10, 20))
    with pytest.raises(IngestError, match=r"what 1 quanta wrote is not to be seen .*/0009-driver\.jsonl"):
        drain_all(ingestion)


def hide(segments: Path) -> Path:
    """Make what was offered until now unseen; return where it is."""
    (segment,) = segments.iterdir()
    return segment.rename(segments / "hidden")


def test_details_that_are_seen_late(make: Maker, offers: Offers, segments: Path, tmp_path: Path) -> None:
    """An outcome may arrive before its segment can be seen: that is waited for, and others do not wait."""
    ingestion = make(Batching(quanta=1, seconds=0))
    late = offers("a", "b")
    hidden = hide(segments)
    writer = SegmentWriter(segment_path(segments, 1, "worker"))
    for offer in (*late, (2, writer.append({"outputs": ["c"]}))):
        ingestion.offer(*offer)
    assert [event.indices for event in collect_until(ingestion, 1)] == [(2,)]
    hidden.rename(segments / late[0][1].segment)
    assert [i for event in drain(ingestion) for i in event.indices] == [0, 1]
    assert table(tmp_path) == [["c"], ["a"], ["b"]]
    writer.close()


def test_segment_that_grows_late(make: Maker, offers: Offers, segments: Path, tmp_path: Path) -> None:
    """A segment of which only the beginning can be seen is waited for as well."""
    ingestion = make(Batching(quanta=2, seconds=0))
    late = offers("a", "b")
    whole = hide(segments)
    (segments / late[0][1].segment).write_bytes(whole.read_bytes()[: late[1][1].offset + 3])
    for offer in late:
        ingestion.offer(*offer)
    assert [event.indices for event in collect_until(ingestion, 1)] == [(0,)]
    whole.rename(segments / late[0][1].segment)
    assert [event.indices for event in drain(ingestion)] == [(1,)]
    assert table(tmp_path) == [["a"], ["b"]]


def test_details_that_are_never_seen(make: Maker, offers: Offers, segments: Path, tmp_path: Path) -> None:
    """All else is taken in, and cleaned up, before that is an error; what was done is told of."""
    ingestion = make(Batching(visibility_s=0.0))
    ingestion.offer(7, SegmentRef("0009-driver.jsonl", 10, 20))
    ingestion.discard(9)
    for offer in offers("a", "b"):
        ingestion.offer(*offer)
    with pytest.raises(IngestError, match="what 1 quanta wrote is not to be seen"):
        drain_all(ingestion)
    assert [event.indices for event in ingested(ingestion.close())] == [(0, 1)]
    assert sorted(map(str, table(tmp_path))) == ["['a', 'b']", "{'discard': [9]}"]


def test_what_failed_is_tried_once_more_at_the_end(make: Maker, offers: Offers, tmp_path: Path) -> None:
    """An ingester that could not go on in the middle of a run gets another chance when the run ends."""
    ingestion = make(Batching(quanta=1, seconds=3600))
    locked = tmp_path / "locked"
    locked.touch()
    for offer in offers("a", "while locked", "b"):
        ingestion.offer(*offer)
    with pytest.raises(IngestError, match="the table is locked"):
        collect_until(ingestion, 3)
    locked.unlink()
    assert [i for event in drain(ingestion) for i in event.indices][-2:] == [1, 2]
    assert table(tmp_path) == [["a"], ["while locked"], ["b"]]


def test_what_fails_at_the_end_too(make: Maker, offers: Offers, tmp_path: Path) -> None:
    """The other chance is the last one."""
    ingestion = make(Batching(quanta=1, seconds=3600))
    for offer in offers("bad"):
        ingestion.offer(*offer)
    with pytest.raises(IngestError, match="the table is locked"):
        collect_until(ingestion, 1)
    with pytest.raises(IngestError, match="the table is locked"):
        drain_all(ingestion)
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(("quanta", "seconds", "wait_s"), [(0, 1, 0), (5001, 1, 0), (10, -1, 0), (10, 1, -1)])
def test_impossible_batches(quanta: int, seconds: float, wait_s: float) -> None:
    """A batch of nothing, of more than a message can name, or of the past is refused."""
    with pytest.raises(UsageError, match="batches"):
        Batching(quanta, seconds, wait_s)


def test_dead_ingester_is_replaced(offers: Offers, segments: Path, tmp_path: Path) -> None:
    """What a killed ingester had not confirmed is offered to the next one."""
    (tmp_path / "deaths").write_text("2")
    ingestion = IngestionProcess(ListOpener(tmp_path), segments, tmp_path)
    for offer in offers("a", "deadly", "b"):
        ingestion.offer(*offer)
    events = drain(ingestion)
    ingestion.close()
    assert sorted(i for event in events for i in event.indices) == [0, 1, 2]
    assert table(tmp_path) == [["a", "deadly", "b"]]


def test_ingester_that_always_dies(offers: Offers, segments: Path, tmp_path: Path) -> None:
    """After a few deaths it is an error that says how it died."""
    (tmp_path / "deaths").write_text("100")
    ingestion = IngestionProcess(ListOpener(tmp_path), segments, tmp_path)
    for offer in offers("deadly"):
        ingestion.offer(*offer)
    with pytest.raises(IngestError, match=r"was killed by signal 9 \(SIGKILL\), as 2 before it"):
        drain_all(ingestion)
    ingestion.close()
    assert (tmp_path / "tries").read_text() == "xxx"


def test_drain_has_an_end(offers: Offers, segments: Path, tmp_path: Path) -> None:
    """An ingester that hangs does not hang the run; closing ends it."""
    ingestion = IngestionProcess(ListOpener(tmp_path), segments, tmp_path)
    for offer in offers("hang"):
        ingestion.offer(*offer)
    with pytest.raises(
        IngestError, match=r"outputs of 1 quanta were not taken into the registry, .* within 0 s"
    ):
        drain_all(ingestion, 0.0)
    pid = ingestion.pid
    while pid is None:
        assert select.select([ingestion.process], [], [], PATIENCE_S)[0]
        pid = ingestion.pid
    ingestion.close(patience_s=0.0)
    wait_gone(pid)


def test_discard(make: Maker, offers: Offers, tmp_path: Path) -> None:
    """What is to be removed is removed by the end of the drain, also where nothing is to be taken in."""
    ingestion = make()
    for index in (7, 3, 7):
        ingestion.discard(index)
    assert drain(ingestion) == []
    assert sorted({i for line in table(tmp_path) for i in line["discard"]}) == [3, 7]
    ingestion.discard(5)
    for offer in offers("a"):
        ingestion.offer(*offer)
    assert [event.indices for event in drain(ingestion)] == [(0,)]
    assert {"discard": [5]} in table(tmp_path)
    assert ["a"] in table(tmp_path)


def test_outputs_that_wait_come_before_their_quantum_is_cleaned_up(
    make: Maker, offers: Offers, tmp_path: Path
) -> None:
    """Taken in after the files are gone, outputs would be registered without files."""
    ingestion = make(Batching(quanta=1, seconds=3600))
    for offer in offers("a", "b", "c"):
        ingestion.offer(*offer)
    ingestion.discard(1)
    assert len(drain(ingestion)) == 3
    lines = table(tmp_path)
    assert lines.index({"discard": [1]}) > lines.index(["b"])


def test_many_discards(make: Maker, tmp_path: Path) -> None:
    """More than any message holds are all removed."""
    ingestion = make()
    for index in range(12000):
        ingestion.discard(index)
    assert drain(ingestion) == []
    assert sorted(i for line in table(tmp_path) for i in line["discard"]) == list(range(12000))


def test_discard_that_fails(make: Maker) -> None:
    """What cannot be removed is an error in the ingester's words, now and later."""
    ingestion = make()
    ingestion.discard(99999)
    for _ in range(2):
        with pytest.raises(IngestError, match="the folder is read-only"):
            drain_all(ingestion)


def test_dead_ingester_is_told_again_what_to_remove(segments: Path, tmp_path: Path) -> None:
    """What a killed ingester had not confirmed to have removed is removed by the next one."""
    (tmp_path / "deaths").touch()
    ingestion = IngestionProcess(ListOpener(tmp_path), segments, tmp_path)
    ingestion.discard(4)
    assert drain(ingestion) == []
    ingestion.close()
    assert table(tmp_path) == [{"discard": [4]}, {"discard": [4]}]


def of_process(events: Sequence[Event]) -> list[WorkerStarted | WorkerEnded]:
    return [event for event in events if isinstance(event, WorkerStarted | WorkerEnded)]


def test_process_is_told_of(offers: Offers, segments: Path, tmp_path: Path) -> None:
    """Each process of an ingester is named when it began and when it ended, once; also one that died."""
    (tmp_path / "deaths").write_text("1")
    ingestion = IngestionProcess(ListOpener(tmp_path), segments, tmp_path)
    for offer in offers("deadly"):
        ingestion.offer(*offer)
    events = of_process(drain_all(ingestion))
    last_pid = ingestion.pid
    events += of_process(ingestion.close())
    assert ingestion.close() == ()
    assert {event.worker for event in events} == {0}
    begins = [event for event in events if isinstance(event, WorkerStarted)]
    ends = [event for event in events if isinstance(event, WorkerEnded)]
    assert [event.exit_code for event in ends] == [-signal.SIGKILL, 0]
    assert len({event.pid for event in begins}) == 2
    assert begins[-1].pid == last_pid
    assert all(event.pid_started_at <= event.at for event in begins)
    assert begins[0].host == os.uname().nodename


def test_nothing_is_given_to_a_process_before_it_is_told_of(
    offers: Offers, segments: Path, tmp_path: Path
) -> None:
    """An ingester gets its first offers after the call that named it; so does one in its place."""
    (tmp_path / "deaths").write_text("1")
    ingestion = IngestionProcess(ListOpener(tmp_path), segments, tmp_path)
    for offer in offers("deadly"):
        ingestion.offer(*offer)
    known: list[int] = []
    while events := ingestion.drain(PATIENCE_S):
        begun = [event for event in of_process(events) if isinstance(event, WorkerStarted)]
        if begun:
            tries = tmp_path / "tries"
            assert (len(tries.read_text()) if tries.exists() else 0) == len(known)
        known += [event.pid for event in begun]
    assert len(known) == 2
    ingestion.close()


def test_process_that_fails_is_told_of(offers: Offers, segments: Path, tmp_path: Path) -> None:
    """An ingester that cannot go on is named as begun and ended, once."""
    ingestion = IngestionProcess(ListOpener(tmp_path), segments, tmp_path)
    for offer in offers("bad"):
        ingestion.offer(*offer)
    events = list(ingestion.drain(PATIENCE_S))
    with pytest.raises(IngestError, match="locked"):
        drain_all(ingestion)
    events += ingestion.close()
    assert [type(event) for event in of_process(events)] == [WorkerStarted, WorkerEnded]


def test_what_was_taken_in_before_an_error_is_told_of(make: Maker, offers: Offers) -> None:
    """A drain that fails loses no word of the batches before: closing tells of them at the latest."""
    ingestion = make(Batching(quanta=1, seconds=3600))
    for offer in offers("a", "bad"):
        ingestion.offer(*offer)
    with pytest.raises(IngestError, match="locked"):
        drain_all(ingestion)
    assert [event.indices for event in ingested(ingestion.close())] == [(0,)]
