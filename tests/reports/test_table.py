"""Tests of `qgexec.reports.table`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qgexec.reports.table import Column, fit, render, render_parts

COLUMNS = [
    Column("task", ["isr", "makeDirectWarp"], is_text=True),
    Column("quanta", ["10", "200000"]),
    Column("time", ["1.0 s", "12.5 h"]),
]


def test_columns_are_aligned() -> None:
    """Text begins, and numbers end, at the same place in every row."""
    assert render(COLUMNS, 80) == [
        "task            quanta    time",
        "isr                 10   1.0 s",
        "makeDirectWarp  200000  12.5 h",
    ]


def test_text_is_shortened_before_anything_is_left_out() -> None:
    """A narrow terminal shows the beginning of long labels."""
    assert render(COLUMNS, 26) == [
        "task        quanta    time",
        "isr             10   1.0 s",
        "makeDirec…  200000  12.5 h",
    ]


def test_the_last_columns_are_left_out_where_nothing_else_helps() -> None:
    """What comes first matters most."""
    assert render(COLUMNS, 18) == ["task        quanta", "isr             10", "makeDirec…  200000"]


@given(
    cells=st.lists(st.tuples(st.text(max_size=30), st.text(max_size=9), st.text(max_size=9)), max_size=4),
    width=st.integers(1, 60),
)
def test_no_line_is_wider_than_the_terminal(cells: list[tuple[str, str, str]], width: int) -> None:
    """Whatever the table says."""
    columns = [
        Column("title", [row[0] for row in cells], is_text=True),
        Column("n", [row[1] for row in cells]),
        Column("quanta", [row[2] for row in cells], is_text=True),
    ]
    lines = render(columns, width)
    assert len(lines) == len(cells) + 1
    assert all(len(line) <= width for line in lines)


def test_text_that_fits_is_left_alone() -> None:
    """An ellipsis says that something is missing."""
    assert [fit("abcd", 4), fit("abcd", 3), fit("abcd", 0)] == ["abcd", "ab…", "…"]


def test_what_has_no_room_goes_to_a_table_below() -> None:
    """Each begins with the first column; nothing is left out."""
    assert render_parts(COLUMNS, 80) == render(COLUMNS, 80)
    assert render_parts(COLUMNS, 22) == [
        "task            quanta",
        "isr                 10",
        "makeDirectWarp  200000",
        "",
        "task              time",
        "isr              1.0 s",
        "makeDirectWarp  12.5 h",
    ]
