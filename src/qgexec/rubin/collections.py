"""The collections that a run reads and writes: what the options mean, and whether that fits the repository.

The rules are those of ``pipetask`` (`lsst.ctrl.mpexec`): an output CHAINED
collection begins with the newest output RUN and ends with the flattened
inputs, and a RUN that exists is written to only when that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lsst.daf.butler import Butler, CollectionType, MissingCollectionError
from lsst.pipe.base import Instrument

from qgexec.errors import CollectionError

__all__ = ["RunCollections", "resolve_collections"]


@dataclass(frozen=True, slots=True)
class RunCollections:
    """The collections of one run, checked against the repository."""

    output: str | None
    """CHAINED collection, where there is to be one."""

    output_exists: bool
    """The CHAINED collection is there already."""

    chain: tuple[str, ...]
    """Its members before the run; empty where it is new."""

    output_run: str
    """RUN collection."""

    run_exists: bool
    """The RUN collection is there already: what it holds is extended."""

    inputs: tuple[str, ...]
    """Input collections, CHAINED ones replaced by their members."""

    half_chained: bool = False
    """An earlier start was cut off before it had put the RUN into the CHAINED collection."""

    def search_path(self) -> list[str]:
        """Return where a graph builder looks for inputs."""
        path = [self.output] if self.output is not None and self.output_exists else [*self.inputs]
        return [self.output_run, *path] if self.run_exists else path

    def define(self, butler: Butler) -> None:
        """Make the RUN, and a CHAINED collection in which it comes first; what is there already stays."""
        if not self.run_exists:
            butler.collections.register(self.output_run, CollectionType.RUN)
        if self.output is None or (self.output_exists and self.run_exists and not self.half_chained):
            return
        if not self.output_exists:
            butler.collections.register(self.output, CollectionType.CHAINED)
        members = _flatten(butler, self.chain) if self.chain else self.inputs
        others = [member for member in members if member != self.output_run]
        butler.collections.redefine_chain(self.output, [self.output_run, *others])


def resolve_collections(
    butler: Butler,
    *,
    inputs: Sequence[str],
    output: str | None,
    output_run: str | None,
    extend_run: bool | None,
    inputs_given: bool = True,
    begun_fresh: bool | None = None,
) -> RunCollections:
    """Find out what a run's collections are to be, and check that they can be; nothing is written.

    Parameters
    ----------
    butler
        The repository.
    inputs
        Input collections, in search order.
    output
        CHAINED collection, or `None`.
    output_run
        RUN collection; `None` for the newest one of ``output`` (``extend_run``), or for a new one named after
        ``output`` and the time.
    extend_run
        Write to a RUN that exists; `None` where it may or may not exist.
    inputs_given
        The user asks for these inputs: an output collection that exists must have them. Otherwise they are
        what the graph was built from, and an output collection that has the RUN already is good as it is.
    begun_fresh
        An earlier start was cut off, perhaps in the middle of making these collections: whether the RUN
        did not exist before it; `None` if there was no such start.

    Raises
    ------
    qgexec.errors.CollectionError
        A collection is missing, in the way, of another type, or inconsistent with the others.
    """
    chain = _members(butler, output) if output is not None else None
    run = _run_name(output, chain, output_run, extend_run=bool(extend_run))
    if run == output:
        raise CollectionError(
            f"{run!r} cannot be the output RUN and the output CHAINED collection",
            hint="Give them different names.",
        )
    run_type = _type(butler, run)
    if run_type not in (None, CollectionType.RUN):
        raise CollectionError(
            f"the output RUN {run!r} exists as a {run_type.name} collection",
            hint="Choose another name for the output RUN.",
        )
    if run_type is None and extend_run:
        raise CollectionError(
            f"the output RUN {run!r} does not exist and cannot be extended",
            hint="Leave --extend-run out for the first run.",
        )
    if run_type is not None and extend_run is False:
        raise CollectionError(
            f"the output RUN {run!r} exists already",
            hint=f"To go on with its run: qgexec resume qgexec-runs/{run} (or what its --run-dir was)\n"
            "Where that run directory is lost, give --extend-run --clobber-outputs; "
            "or build the graph with another output RUN.",
        )
    flat = _flatten(butler, inputs)
    if begun_fresh:  # one of them may be a chain that the RUN is in by now
        flat = tuple(name for name in flat if name != run)
    # A CHAINED collection is made empty, and filled afterwards.
    made_in_vain = begun_fresh is not None and chain == ()
    if chain is not None and not made_in_vain and (inputs_given or run not in chain):
        _check_chain(str(output), chain, flat)
    half_chained = made_in_vain or (bool(begun_fresh) and run not in (chain or ()))
    return RunCollections(
        output, chain is not None, chain or (), run, run_type is not None, flat, half_chained
    )


def _type(butler: Butler, name: str) -> CollectionType | None:
    try:
        return butler.collections.get_info(name).type
    except MissingCollectionError:
        return None


def _members(butler: Butler, output: str) -> tuple[str, ...] | None:
    """Return the members of a CHAINED collection; `None` where it does not exist."""
    existing = _type(butler, output)
    if existing is None:
        return None
    if existing is not CollectionType.CHAINED:
        raise CollectionError(
            f"the output collection {output!r} exists as a {existing.name} collection, not CHAINED",
            hint="Choose another name with -o, or give it as --output-run.",
        )
    return tuple(butler.collections.get_info(output).children)


def _run_name(
    output: str | None, chain: tuple[str, ...] | None, output_run: str | None, *, extend_run: bool
) -> str:
    if output_run:
        return output_run
    if not output:
        raise CollectionError(
            "there is no output collection", hint="Name one with -o COLLECTION or --output-run RUN."
        )
    if not extend_run:
        return f"{output}/{Instrument.makeCollectionTimestamp()}"
    if not chain:
        raise CollectionError(
            f"there is no RUN to extend: the output collection {output!r} does not exist, or is empty",
            hint="Leave --extend-run out for the first run.",
        )
    return chain[0]


def _flatten(butler: Butler, names: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(butler.collections.query(list(names), flatten_chains=True)) if names else ()
    except MissingCollectionError:
        missing = [repr(name) for name in names if _type(butler, name) is None]
        raise CollectionError(
            f"the repository has no input collection {', '.join(missing or names)}",
            hint="Check -i, and that this is the repository that the graph was built from.",
        ) from None


def _check_chain(output: str, chain: tuple[str, ...], inputs: tuple[str, ...]) -> None:
    """Check that the inputs stand in an existing chain as they are: one after another, in this order."""
    starts = range(len(chain) - len(inputs) + 1)
    if not any(chain[start : start + len(inputs)] == inputs for start in starts):
        raise CollectionError(
            f"the output collection {output!r} exists and was made from other inputs: it holds "
            f"{', '.join(chain) or 'nothing'}, which does not include {', '.join(inputs)} in this order",
            hint="Give another output collection with -o, or the inputs that it was made from with -i.",
        )
