"""`qgexec.processes.interpreter`: what lies in the current folder is imported only where the driver would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qgexec.processes import interpreter
from tests.kit.checkout import PYTHONPATH

TRAPS = ("json", "random", "lsst", "selectors", "qgexec")


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder with modules that end whoever imports them."""
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the current folder was run')\n")
    return tmp_path


def _python(*words: str, folder: Path, path: str = PYTHONPATH) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


ECHO = """
from qgexec.processes.forked import start_process
from qgexec.processes.interpreter import driver_search_path
from tests.processes.test_forked import echo
child = start_process(echo, (), name="child", output=None, preload=("json", "random"))
child.channel.send(("said",))
print(child.channel.receive())
"""


def test_fork_server(trapped: Path) -> None:
    """The server of the workers, and the workers, import what the driver would."""
    done = _python(sys.executable, "-P", "-c", ECHO, folder=trapped)
    assert (done.stdout, done.stderr) == ("('said',)\n", "")


@pytest.mark.parametrize("module", ["qgexec", "qgexec.reports.keeper"])
def test_modules(module: str, trapped: Path) -> None:
    """Programs of ours that are started as modules, or by batch systems, run nothing that lies about."""
    done = _python(*interpreter.module_command(module, "--version"), folder=trapped)
    assert not any(name in done.stderr for name in TRAPS[:-1])
    assert "of the current folder" not in done.stdout + done.stderr


def test_python_path_counts(tmp_path: Path) -> None:
    """A site's packages are found by PYTHONPATH, which ``-I`` would leave out."""
    (tmp_path / "of_the_site.py").write_text("print('found')\n")
    done = _python(*interpreter.module_command("of_the_site"), folder=Path("/"), path=str(tmp_path))
    assert done.stdout == "found\n"


NOTEBOOK = """
import os, sys
assert sys.path[0] == ""
sys.path[1:1] = [".", "beside", 7, "__editable__.no_path"]
from qgexec.processes.forked import start_process
import mine
os.chdir("/")
child = start_process(mine.tell, (), name="child", output=None, preload=("mine",))
print(child.channel.receive())
"""

MINE = """
import sys
def tell(channel):
    import lying_there
    channel.send(tuple(sys.path[:4]))
"""


def test_module_beside_a_notebook(tmp_path: Path) -> None:
    """What an interactive session imports from the folder where it began its workers find there, too."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "lying_there.py").touch()
    done = _python(sys.executable, "-c", NOTEBOOK, folder=tmp_path)
    expected = (str(tmp_path), str(tmp_path), str(tmp_path / "beside"), "__editable__.no_path")
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_folder_of_the_driver_is_gone(tmp_path: Path) -> None:
    """Where the folder was removed in which the driver began, nothing can be imported from it."""
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "from qgexec.processes.interpreter import driver_search_path as path; assert '' not in path()"
    done = _python("sh", "-c", 'rmdir "$PWD" && exec "$0" -c "$1"', sys.executable, code, folder=gone)
    assert (done.returncode, done.stderr) == (0, "")
