"""docs/tutorial.md: everything that it has a newcomer type is typed, in order, in an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.processes import warm

pytest.importorskip("photutils", reason="the extra [demo] is not installed")

from tests.kit.docs.commandlines import command_lines
from tests.kit.docs.pages import Block, blocks

PAGE = "docs/tutorial.md"

EXIT_CODE = "# exit code "
"""Follows a command that is to fail, and the code."""

LONGEST_S = 200


@pytest.mark.thorough
def test_tutorial(tmp_path: Path) -> None:
    """Every command ends as the page says, and prints what the page shows of it."""
    printed = ""
    for block in blocks(PAGE):
        match block.language:
            case "bash":
                printed = "".join(
                    run(command, code, tmp_path, block) for command, code in commands_of(block.text)
                )
            case "python":
                printed = run([sys.executable, "-c", block.text], 0, tmp_path, block)
            case "text":
                assert is_shown(block.text, printed), f"{block} shows something else:\n{printed}"
            case other:
                pytest.fail(f"{block}: {other} is nothing that is typed or shown")
    assert printed, "the page has nothing to type"


def is_shown(text: str, printed: str) -> bool:
    """Return whether all of a text was printed, in its order; ``...`` in it stands for anything.

    Lines are as wide as the terminal, so where they end does not count.
    """
    left = " ".join(printed.split())
    for part in text.split("..."):
        _, found, left = left.partition(" ".join(part.split())) if part.strip() else ("", "...", left)
        if not found:
            return False
    return True


def commands_of(text: str) -> list[tuple[list[str], int]]:
    """Return the words of each command, and the exit code that it is to have."""
    lines = text.replace("\\\n", " ").splitlines()
    return [
        (words, int(line.partition(EXIT_CODE)[2] or 0)) for line in lines for words in command_lines(line)
    ]


def run(words: list[str], code: int, folder: Path, block: Block) -> str:
    """Run one command, without a shell; return what it prints."""
    program, *arguments = words
    start: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
    if program == "pip":
        return ""  # what it installs is what runs the tests
    if program == "qgexec":
        words = [sys.executable, "-m", "qgexec", *arguments]
        start = warm.run
    elif program in {"cp", "truncate"}:
        words = [program, *(path for word in arguments for path in expanded(word, folder))]
    done = start(
        words,
        cwd=folder,
        env=os.environ | {"COLUMNS": "100"},
        check=False,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )
    assert done.returncode == code, (
        f"{block}: {words} ended with {done.returncode}: {done.stdout}{done.stderr}"
    )
    return done.stdout + done.stderr


def expanded(word: str, folder: Path) -> list[str]:
    """Return the paths that a pattern is for, as the shell does."""
    return sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word else [word]
