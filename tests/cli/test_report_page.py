"""docs/report.md: its commands run, and the tables that it shows are those that reports have."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qgexec.reports.fold import TaskReport
from qgexec.reports.measured import Spread
from qgexec.reports.tasktables import task_columns, use_lines
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository
from tests.kit.commands.qgexec import Moods, call

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
COMMANDS = re.findall(r"^    (qgexec .*)$", PAGE, flags=re.MULTILINE)
HEADERS = [
    block.strip().splitlines()
    for block in re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
]


@pytest.fixture
def place(repository: MockRepository, moods: Moods, folder: Path) -> Path:
    """A folder that looks as the page's reader's: repository, graph, two runs, and a file from each."""
    (folder / "REPO").symlink_to(repository.root)
    (folder / "graph.qg").symlink_to(repository.graph)
    given = ["run", "-b", "REPO", "-g", "graph.qg", "--register-dataset-types"]
    moods.set({"isr 1,1": "raise"})
    assert call(*given).code == 1
    moods.set({})
    again = ["--extend-run", "--skip-existing", "--clobber-outputs", "--run-dir", "qgexec-runs/second"]
    assert call(*given, *again).code == 0
    assert call("report", "-b", "REPO", "-g", "graph.qg", "--full-output-filename", "FILE").code == 0
    return folder


def test_commands_run(place: Path) -> None:
    """All of them, as they stand."""
    assert len(COMMANDS) >= 7
    for line in COMMANDS:
        text = line.replace("<RUN>", OUTPUT_RUN).replace("<SECOND>", "second").partition("  #")[0]
        result = call(*shlex.split(text)[1:])
        assert (result.code in (0, 1), result.err) == (True, ""), line
        assert result.out


def test_tables_are_as_shown() -> None:
    """No column of the page is unknown to the reports, and each row has as many cells as the header."""
    full: dict[str, Any] = {
        field.name: 1 for field in fields(TaskReport) if field.name not in {"label", "caveats"}
    }
    spread = Spread(1.0, 1.0, 1.0, 1)
    task = TaskReport(**full | {"label": "isr", "memory": spread, "wall": spread})
    lines = [*use_lines([task], 200), "  ".join(column.title for column in task_columns([task], task))]
    known = {title for line in lines for title in re.split(r"\s{2,}", line)}
    known |= {"dataset type", "expected", "visible", "shadowed", "predicted only", "unsuccessful", "cursed"}
    known |= {"run", "state"}
    assert len(HEADERS) >= 5
    for block in HEADERS:
        if block[0].startswith(("Peak", "Wall")):
            assert block.pop(0) in known
            block.pop(0)
        titles, *rows = (re.split(r"\s{2,}", line) for line in block)
        assert set(titles) <= known
        assert {len(row) for row in rows} == {len(titles)}
        assert max(map(len, block)) <= 80
