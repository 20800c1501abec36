"""Write a quantum graph as shell scripts and a Makefile, for some other system to run.

python examples/write_scripts.py REPO GRAPH FOLDER
make -C FOLDER -j 4 --keep-going
"""

import shlex
import sys
from pathlib import Path

from qgexec import GraphExecutor


class ScriptWriter:
    """One script a quantum; the Makefile knows which come first."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def execute(self, quanta):
        self.folder.mkdir(parents=True)
        run_dir = shlex.quote(quanta.context.run_dir)
        qgexec = f"{shlex.quote(sys.executable)} -P -m qgexec"
        rules = []
        for node in quanta:
            script = self.folder / f"{node.index}.sh"
            script.write_text(f"#!/bin/sh\n# {node}\nexec {qgexec} worker {run_dir} --quantum {node.index}\n")
            before = " ".join(f"{index}.done" for index in node.prerequisites)
            rules.append(f"{node.index}.done: {before}\n\tsh {node.index}.sh && touch $@\n")
        everything = " ".join(f"{node.index}.done" for node in quanta)
        rules.insert(0, f"registry.done: {everything}\n\t{qgexec} collect {run_dir} && touch $@\n")
        (self.folder / "Makefile").write_text("\n".join(rules))


if __name__ == "__main__":
    repository, graph, folder = sys.argv[1:]
    GraphExecutor(repository, model=ScriptWriter(folder)).execute(graph)
