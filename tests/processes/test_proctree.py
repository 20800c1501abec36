"""`qgexec.processes.proctree`: real processes, and a folder that looks like `/proc`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from qgexec.processes.proctree import look_at

PAGE = os.sysconf("SC_PAGE_SIZE")


def fake_process(
    proc: Path, pid: int, *, pages: int, children: tuple[int, ...] = (), pss_kb: int | None = None
) -> None:
    """Make a process with an awkward name."""
    folder = proc / str(pid)
    (folder / "task" / str(pid)).mkdir(parents=True)
    fields = ["S", *["0"] * 20, str(pages), *["0"] * 20]
    (folder / "stat").write_text(f"{pid} (a) b (c) {' '.join(fields)}\n")
    (folder / "task" / str(pid) / "children").write_text(" ".join(map(str, children)))
    if pss_kb is not None:
        (folder / "smaps_rollup").write_text(f"0-f ---p 0 0 0 [rollup]\nRss:   1 kB\nPss:   {pss_kb} kB\n")


def test_alone(tmp_path: Path) -> None:
    """A process without children uses its resident set."""
    fake_process(tmp_path, 7, pages=1000, pss_kb=1)
    sight = look_at(7, tmp_path)
    assert sight is not None
    assert (sight.state, sight.used_bytes) == ("S", 1000 * PAGE)


def test_shared_pages_count_once(tmp_path: Path) -> None:
    """With descendants, at any depth, the proportional shares are added."""
    fake_process(tmp_path, 7, pages=10, children=(8,), pss_kb=4000)
    fake_process(tmp_path, 8, pages=5000, children=(9,), pss_kb=4000)
    fake_process(tmp_path, 9, pages=5000, pss_kb=2000)
    sight = look_at(7, tmp_path)
    assert sight is not None
    assert sight.used_bytes == 10_000 * 1024


def test_never_less_than_the_process_itself(tmp_path: Path) -> None:
    """What a worker shares with the server that forked it is its own, too."""
    fake_process(tmp_path, 7, pages=5000, children=(8,), pss_kb=100)
    fake_process(tmp_path, 8, pages=1, pss_kb=1)
    sight = look_at(7, tmp_path)
    assert sight is not None
    assert sight.used_bytes == 5000 * PAGE


def test_shares_that_cannot_be_read(tmp_path: Path) -> None:
    """Where the kernel does not tell shares, the resident sets are added."""
    fake_process(tmp_path, 7, pages=5000, children=(8,))
    fake_process(tmp_path, 8, pages=300)
    sight = look_at(7, tmp_path)
    assert sight is not None
    assert sight.used_bytes == 5300 * PAGE


def test_child_that_ends_meanwhile(tmp_path: Path) -> None:
    """A child that is gone when it is its turn uses nothing."""
    fake_process(tmp_path, 7, pages=5000, children=(8,))
    sight = look_at(7, tmp_path)
    assert sight is not None
    assert sight.used_bytes == 5000 * PAGE


def test_nobody(tmp_path: Path) -> None:
    """There is nothing to be seen of a process that does not exist."""
    assert look_at(7, tmp_path) is None


def test_this_process_and_a_child() -> None:
    """A real child's memory is in its parent's sight, from the moment at which it has it."""
    before = look_at(os.getpid())
    code = "import sys; block = bytearray(b'x') * (100 << 20); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = look_at(os.getpid())
        of_child = look_at(child.pid)
        child.kill()
    assert before is not None
    assert with_child is not None
    assert of_child is not None
    assert of_child.used_bytes > 100 << 20
    assert with_child.used_bytes > 100 << 20
    assert before.state == "R"
