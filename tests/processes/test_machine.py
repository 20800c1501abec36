"""`qgexec.processes.machine`: fake trees of `/proc` and control groups of both versions, and this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgexec.processes.machine import find_memory_group, machine_memory_bytes

GIB = 1 << 30
UNLIMITED = 9223372036854771712

V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""

V2_MOUNTS = "25 20 0:24 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


class Tree:
    """A root folder with what the kernel would show there."""

    def __init__(self, root: Path, *, total_bytes: int = 64 * GIB) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal:       {total_bytes // 1024} kB\nMemFree:  1 kB\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def v1(self, path: str, root: str = "/") -> None:
        """Be in this group of version 1."""
        self.write("proc/self/cgroup", f"9:cpu:/elsewhere\n4:memory:{path}\n0::/\n")
        self.write("proc/self/mountinfo", V1_MOUNTS.format(root=root))

    def v2(self, path: str, root: str = "/") -> None:
        """Be in this group of version 2."""
        self.write("proc/self/cgroup", f"0::{path}\n")
        self.write("proc/self/mountinfo", V2_MOUNTS.format(root=root))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_no_control_groups(tree: Tree) -> None:
    """Without control groups there is what the machine has."""
    assert machine_memory_bytes(tree.root) == 64 * GIB
    assert find_memory_group(tree.root) is None


def test_nothing_is_known(tmp_path: Path) -> None:
    """Where the system tells nothing, the memory is unknown."""
    assert machine_memory_bytes(tmp_path) is None


@pytest.mark.parametrize("where", ["", "/job_7", "/job_7/step_0"])
def test_v2_limit_anywhere_above(tree: Tree, where: str) -> None:
    """The smallest limit of the group and those above it counts, wherever it is set."""
    tree.v2("/job_7/step_0")
    for folder in ("", "/job_7", "/job_7/step_0"):
        tree.write(f"sys/fs/cgroup{folder}/memory.max", f"{4 * GIB}\n" if folder == where else "max\n")
    assert machine_memory_bytes(tree.root) == 4 * GIB


def test_v2_limit_above_the_memory(tree: Tree) -> None:
    """A limit that is larger than the memory is none."""
    tree.v2("/a")
    tree.write("sys/fs/cgroup/a/memory.max", f"{100 * GIB}\n")
    assert machine_memory_bytes(tree.root) == 64 * GIB


def test_v1_limit(tree: Tree) -> None:
    """In version 1, too, groups above count; the number that stands for no limit does not."""
    tree.v1("/slurm/uid_1/job_2/step_0")
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{UNLIMITED}\n")
    tree.write("sys/fs/cgroup/memory/slurm/uid_1/job_2/memory.limit_in_bytes", f"{8 * GIB}\n")
    tree.write("sys/fs/cgroup/memory/slurm/uid_1/job_2/step_0/memory.limit_in_bytes", f"{UNLIMITED}\n")
    assert machine_memory_bytes(tree.root) == 8 * GIB


@pytest.mark.parametrize(
    ("path", "shown_root"),
    [
        ("/docker/abc", "/docker/abc"),  # the container sees its own group as the root of what is mounted
        ("/", "/"),  # it has a namespace of its own
        ("/../../somewhere", "/"),  # it was moved out of what it can see
    ],
)
def test_container(tree: Tree, path: str, shown_root: str) -> None:
    """In a container the limit is where the container sees it."""
    tree.v1(path, shown_root)
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2 * GIB}\n")
    assert machine_memory_bytes(tree.root) == 2 * GIB
    tree.v2(path, shown_root)
    tree.write("sys/fs/cgroup/memory.max", f"{3 * GIB}\n")
    assert machine_memory_bytes(tree.root) == 3 * GIB


def test_kills_v2(tree: Tree) -> None:
    """The count is that of the group itself, and of kills, not of limits that were reached."""
    tree.v2("/a b")
    tree.write("sys/fs/cgroup/a b/memory.events", "low 0\nhigh 3\nmax 9\noom 4\noom_kill 2\n")
    group = find_memory_group(tree.root)
    assert group is not None
    assert group.n_oom_kills() == 2
    tree.write("sys/fs/cgroup/a b/memory.events", "oom_kill 3\n")
    assert group.n_oom_kills() == 3


def test_kills_v1(tree: Tree) -> None:
    """Version 1 has the count in another file, and kernels before 4.13 have none."""
    tree.v1("/a")
    tree.write("sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    group = find_memory_group(tree.root)
    assert group is not None
    assert group.n_oom_kills() == 5
    tree.write("sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n")
    assert group.n_oom_kills() is None


def test_mount_point_with_a_space(tree: Tree) -> None:
    """The kernel writes a space in a path as its octal code."""
    tree.write("proc/self/cgroup", "0::/\n")
    tree.write("proc/self/mountinfo", "25 20 0:24 / /my\\040groups rw - cgroup2 cgroup2 rw\n")
    tree.write("my groups/memory.max", f"{GIB}\n")
    assert machine_memory_bytes(tree.root) == GIB


def test_this_machine() -> None:
    """Here, there is some memory, and no more than the machine has."""
    text = Path("/proc/meminfo").read_text()
    total = int(text.partition("MemTotal:")[2].split()[0]) * 1024
    memory = machine_memory_bytes()
    assert memory is not None
    assert 0 < memory <= total
