"""`qgexec report` of several runs and from a repository, and `aggregate-reports`: use and misuse."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.butler.repos import N_QUANTA, OUTPUT_RUN, MockRepository
from tests.kit.commands.qgexec import Moods, call, one_message

Refused = Callable[[MockRepository], list[object]]


def _run(repository: MockRepository, *options: object) -> int | object:
    given = ["run", "-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
    return call(*given, *options).code


def test_runs_that_recovered_each_other(repository: MockRepository, moods: Moods, folder: Path) -> None:
    """The exit code is that of what holds in the end."""
    moods.set({"isr 1,1": "raise"})
    assert _run(repository, "--run-dir", "first") == 1
    moods.set({})
    assert (
        _run(repository, "--extend-run", "--skip-existing", "--clobber-outputs", "--run-dir", "second") == 0
    )
    result = call("report", "second", "first")
    assert result.code == 0
    assert "recovered" in result.out
    report = json.loads(call("report", "first", "second", "--json").out)
    assert [run["recovered"] for run in report["runs"]] == [0, report["total"]["recovered"]]
    assert report["total"]["recovered"] > 1
    assert report["total"]["succeeded"] == N_QUANTA
    assert call("report", "first", "--brief").code == 1


def test_from_the_repository(repository: MockRepository, moods: Moods, folder: Path) -> None:
    """Without the run directory: text, JSON, a drawing, and the file that reports are put together from."""
    moods.set({"isr 1,1": "raise"})
    assert _run(repository, "--run-dir", "first") == 1
    given = ["report", "-b", repository.root, "-g", repository.graph]
    result = call(*given, "--full-output-filename", "one.json")
    assert (result.code, "ValueError" in result.out) == (1, False)
    assert "1 x isr: ValueError" in " ".join(call(*given).out.split())
    report = json.loads(call(*given, "--json", "--read-caveats", "exhaustive").out)
    books = json.loads(call("report", "first", "--json").out)
    for key in ("n_quanta", "succeeded", "failed", "blocked", "caveats"):
        assert report["total"][key] == books["total"][key], key
    assert report["failures"][0]["quantum_id"] == books["failures"][0]["quantum_id"]
    assert report["failures"][0]["message"] == books["failures"][0]["attempts"][0]["message"]
    drawn = call(*given, "--view-graph")
    assert drawn.code == 1
    assert "blk" in drawn.out
    together = call("aggregate-reports", "one.json", "--full-output-filename", "all.json", "--json")
    assert together.code == 1
    assert json.loads(together.out)["total"]["failed"] == 1
    assert json.loads(Path("all.json").read_text()) == json.loads(Path("one.json").read_text())


def test_as_pipetask_is_called(repository: MockRepository, moods: Moods, folder: Path) -> None:
    """Repository and graphs as arguments, before or after options, are those of -b and -g."""
    moods.set({"isr 1,1": "raise"})
    assert _run(repository, "--run-dir", "first") == 1
    told = call("report", "-b", repository.root, "-g", repository.graph, "--json")
    for given in (
        ["report", repository.root, repository.graph, "--json"],
        ["report", "--force-v2", "--json", repository.root, repository.graph],
        ["report", "-b", repository.root, repository.graph, "--json"],
        ["report", repository.root, "first/../" + str(os.path.relpath(repository.graph)), "--json"],
    ):
        result = call(*given)
        assert (result.code, result.err) == (1, "")
        ours, theirs = json.loads(result.out), json.loads(told.out)
        assert [ours[key] for key in ("total", "failures")] == [theirs[key] for key in ("total", "failures")]
    twice = call("report", repository.root, repository.graph, repository.graph)
    one_message(twice, "graph.qg is named twice")


def test_damaged_files(repository: MockRepository, moods: Moods, folder: Path) -> None:
    """A log that cannot be read hides no other; metadata that cannot be read are named, and not needed."""
    moods.set({"isr 1,1": "raise", "isr 2,1": "raise"})
    assert _run(repository, "--run-dir", "first") == 1
    given = ["report", "-b", repository.root, "-g", repository.graph]
    failed = {
        failure["data_id"]["visit"]: failure for failure in json.loads(call(*given, "--json").out)["failures"]
    }
    logs, metadata = (sorted((repository.root / OUTPUT_RUN / name).rglob("*.json")) for name in _TYPES)
    (log,) = (path for path in logs if '"bad pixels in isr 1,1' in path.read_text())
    log.write_bytes(log.read_bytes()[:100])
    report = json.loads(call(*given, "--json").out)
    again = {failure["data_id"]["visit"]: failure for failure in report["failures"]}
    assert again[2] == failed[2]
    assert "cannot be read" in again[1]["message"]
    metadata[0].write_bytes(b"")
    one_message(call(*given, "--read-caveats", "exhaustive"), "isr_metadata", "--read-caveats none")
    assert call(*given, "--read-caveats", "none", "--no-logs").code == 1


_TYPES = ("isr_log", "isr_metadata")


def test_a_run_that_nobody_executed(repository: MockRepository, folder: Path) -> None:
    """All is unknown, and it is said why that may be."""
    result = call("report", "-b", repository.root, "-g", repository.graph)
    assert result.code == 1
    assert "The registry has no outputs of graph 1 in its RUN." in result.out
    assert "unknown" in result.out


def _other_json(folder: Path) -> Path:
    file = folder / "other.json"
    file.write_text('{"tasks": {}}')
    return file


REFUSED: dict[str, tuple[Refused, str]] = {
    "nothing": (lambda _: ["report"], "nothing to report on"),
    "a repository alone": (lambda r: ["report", "-b", r.root], "nothing to report on"),
    "graphs alone": (lambda r: ["report", "-g", r.graph], "nothing to report on"),
    "a graph alone": (lambda r: ["report", r.graph], "nothing to report on"),
    "graph and repository": (lambda r: ["report", r.graph, r.root], "first"),
    "two repositories": (lambda r: ["report", r.root, "other", r.graph], "other is no graph"),
    "a repository twice": (lambda r: ["report", r.root, r.graph, "-b", r.root], "is no graph"),
    "an alias that is none": (lambda r: ["report", "nowhere", r.graph], "nowhere"),
    "both kinds": (lambda r: ["report", r.root, "-b", r.root, "-g", r.graph], "-b is about graphs"),
    "an option of the other": (lambda r: ["report", r.root, "--no-logs"], "--logs/--no-logs is about graphs"),
    "a drawing as JSON": (
        lambda r: ["report", "-b", r.root, "-g", r.graph, "--view-graph", "--json"],
        "--view-graph draws",
    ),
    "no such graph": (lambda r: ["report", "-b", r.root, "-g", "nowhere.qg"], "nowhere.qg"),
    "no such old graph": (lambda r: ["report", "-b", r.root, "-g", "nowhere.qgraph"], "nowhere.qgraph"),
    "no such repository": (lambda r: ["report", "-b", "nowhere", "-g", r.graph], "nowhere"),
    "no such collection": (
        lambda r: ["report", "-b", r.root, "-g", r.graph, "--collections", "nowhere"],
        "nowhere",
    ),
    "all logs are cursed": (
        lambda r: ["report", "-b", r.root, "-g", r.graph, "--curse-failed-logs"],
        "--collections",
    ),
    "a file that cannot be written": (
        lambda r: ["report", "-b", r.root, "-g", r.graph, "--full-output-filename", "nowhere/x.json"],
        "nowhere/x.json",
    ),
    "a file without a name": (
        lambda r: ["report", "-b", r.root, "-g", r.graph, "--full-output-filename", ""],
        "it is empty",
    ),
    "a graph named twice": (
        lambda r: ["report", "-b", r.root, "-g", r.graph, "-g", r.graph],
        "graph.qg is named twice",
    ),
    "a pattern": (
        lambda r: ["report", "-b", r.root, "-g", r.graph, "--collections", "u/*"],
        "--collections u/*",
    ),
    "a file that is not there": (lambda _: ["aggregate-reports", "nowhere.json"], "nowhere.json"),
    "some other JSON": (lambda r: ["aggregate-reports", _other_json(r.root.parent)], "not a summary"),
    "a file of another kind": (lambda r: ["aggregate-reports", r.graph], "not a summary"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refused(repository: MockRepository, folder: Path, case: str) -> None:
    """With one message that says what is wrong and what to do, and nothing on stdout."""
    make, said = REFUSED[case]
    one_message(call(*make(repository)), said)
    assert list(folder.iterdir()) == []


def test_summary_into_a_pipe(repository: MockRepository, folder: Path) -> None:
    """What is there and no file is written to, and not replaced by a file."""
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDWR)  # to both ends, so that nobody waits
    try:
        given = ["-b", repository.root, "-g", repository.graph]
        assert call("report", *given, "--full-output-filename", "pipe").code == 1
        assert os.read(reader, 1) == b"{"
    finally:
        os.close(reader)
    assert Path("pipe").is_fifo()
    assert [path.name for path in folder.iterdir()] == ["pipe"]


def test_summary_through_a_link(repository: MockRepository, folder: Path) -> None:
    """The file is written that a link leads to, and the link stays one."""
    Path("link.json").symlink_to("file.json")
    given = ["-b", repository.root, "-g", repository.graph]
    assert call("report", *given, "--full-output-filename", "link.json").code == 1
    assert Path("link.json").is_symlink()
    assert "tasks" in json.loads(Path("file.json").read_text())


def test_an_expression_that_is_none(repository: MockRepository, folder: Path) -> None:
    """It is quoted."""
    assert _run(repository, "--run-dir", "first") == 0
    given = ["report", "-b", repository.root, "-g", repository.graph, "--where"]
    one_message(call(*given, "visit ="), "'visit ='")
    one_message(call(*given, "nonsense = 3"), "'nonsense = 3'")


def test_a_run_named_twice(repository: MockRepository, folder: Path) -> None:
    """It is refused: each would recover the other."""
    assert _run(repository, "--run-dir", "first") == 0
    one_message(call("report", "first", folder / "first"), "twice")
