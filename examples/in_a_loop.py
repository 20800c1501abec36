"""Run a quantum graph in a plain loop: the simplest execution model there is.

python examples/in_a_loop.py REPO GRAPH
"""

import sys

from lsst.daf.butler import Butler
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from qgexec import GraphExecutor


class InALoop:
    """Each quantum comes after its prerequisites, so a loop will do."""

    def execute(self, quanta):
        context = quanta.context
        with Butler.from_config(context.repository, run=context.output_run, writeable=True) as butler:
            executor = SingleQuantumExecutor(butler=butler)
            for node in quanta:
                executor.execute(node.task_node, node.quantum(), quantum_id=node.quantum_id)
                print(f"{node.index:4d} {node} after {node.prerequisites}")


if __name__ == "__main__":
    repository, graph = sys.argv[1:]
    GraphExecutor(repository, model=InALoop()).execute(graph)
