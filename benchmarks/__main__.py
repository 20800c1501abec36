"""``python -m benchmarks``: measures, prints Markdown, and keeps everything as JSON where asked to."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import compare, parts
from benchmarks.compare import Settings
from benchmarks.measure import BenchmarkError
from benchmarks.reporting import reporting
from benchmarks.soak import soak
from benchmarks.status import status
from benchmarks.tables import Section, Table, machine_facts
from benchmarks.waves import waves_cost

BENCHMARKS: dict[str, Callable[[Settings], Section]] = {
    "small": compare.small,
    "large": compare.large,
    "sleep": compare.sleep,
    "transport": parts.transport,
    "read": parts.read,
    "plan": parts.plan,
    "submit": parts.submit,
    "where": parts.where,
    "status": status,
    "report": reporting,
    "waves": waves_cost,
    "soak": soak,
}

ONLY_BY_NAME = frozenset({"soak"})
"""They measure no speed, and take long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks named on the command line, or all."""
    options = _parser().parse_args(arguments)
    facts = machine_facts()
    sections: list[Section] = []
    failed: list[str] = []
    if options.scratch:
        Path(options.scratch).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="qgexec-bench-", dir=options.scratch) as scratch:
        settings = Settings(
            scratch=Path(scratch),
            say=lambda text: print(text, file=sys.stderr, flush=True),
            repeat=options.repeat,
            repeat_slow=options.repeat_slow,
            workers=options.workers,
            exposures=options.exposures,
            detectors=options.detectors,
            qbb=options.qbb,
            slow=not options.skip_slow,
            timeout_s=options.timeout,
            kills=options.kills,
            seed=options.seed,
        )
        for name in options.names or [name for name in BENCHMARKS if name not in ONLY_BY_NAME]:
            try:
                sections.append(BENCHMARKS[name](settings))
            except BenchmarkError as error:
                failed.append(name)
                print(f"{name}: {error}", file=sys.stderr)
            _write(options, facts, sections)
    print(_markdown(facts, sections))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; default: all but soak"
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument(
        "--repeat-slow", type=int, default=1, help="runs of sides that take minutes (default 1)"
    )
    parser.add_argument("--skip-slow", action="store_true", help="leave them out")
    parser.add_argument("--qbb", action="store_true", help="run pipetask run-qbb as well")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--exposures", type=int, help="instead of each benchmark's own size")
    parser.add_argument("--detectors", type=int, help="instead of each benchmark's own size")
    parser.add_argument("--kills", type=int, default=200, help="processes to kill in the soak (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the soak (default 1)")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="S", help="limit of one command")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where repositories are made and removed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="keep the tables")
    return parser


def _write(options: argparse.Namespace, facts: dict[str, str], sections: Sequence[Section]) -> None:
    """Write after each benchmark: the next may take an hour and fail."""
    if options.json:
        found = {"machine": facts, "benchmarks": [asdict(section) for section in sections]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(_markdown(facts, sections) + "\n")


def _markdown(facts: dict[str, str], sections: Sequence[Section]) -> str:
    machine = Table(("machine", ""), tuple(facts.items()))
    names = " ".join(section.name for section in sections)
    head = f"Measured by `python -m benchmarks {names}`; ratios are of figures of the same hour."
    return "\n\n".join([head, machine.markdown(), *(section.markdown() for section in sections)])


if __name__ == "__main__":
    sys.exit(main())
