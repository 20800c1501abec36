"""All that touches the LSST middleware: graph files, butlers, the registry; knows nothing of processes.

Nothing is imported here: importing the middleware takes seconds, and `PRELOAD`
is asked for before.
"""

PRELOAD = ("qgexec.rubin.workbench", "qgexec.rubin.ingest")
"""Modules that a worker process needs; the server that forks workers imports them once."""

JOB_PRELOAD = ("qgexec.rubin.jobbench",)
"""The same for a batch job, which takes nothing into the registry."""
