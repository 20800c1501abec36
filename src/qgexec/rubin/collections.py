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
from lsst.pipe.base.pipeline_graph import NodeType, PipelineGraph

from qgexec.errors import CollectionError
from qgexec.rubin.compat import is_half_registered

__all__ = [
    "Replacement",
    "RunCollections",
    "collection_type",
    "parents_of",
    "prune_replaced",
    "register_anew",
    "resolve_collections",
]


@dataclass(frozen=True, slots=True)
class Replacement:
    """The newest RUN of the output collection gives way to the new one."""

    prune: str | None = None
    """What becomes of its datasets: ``purge`` (the RUN too), ``unstore`` (their files), or nothing."""

    known: str | None = None
    """Which RUN that is, where an earlier start that was cut off has found out."""


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

    replaced: str | None = None
    """RUN that is taken out of the CHAINED collection for the new one; no more in `chain`."""

    rebased: bool = False
    """`chain` is not the CHAINED collection's as it is, but with the inputs put in."""

    def search_path(self) -> list[str]:
        """Return where a graph builder looks for inputs."""
        path = [*self.inputs]
        if self.output is not None and self.output_exists:
            path = [*self.chain] if self.replaced or self.rebased else [self.output]
        own = [self.output_run] if self.run_exists else []
        return [*dict.fromkeys([*own, *path])]

    def define(self, butler: Butler) -> None:
        """Make the RUN, and a CHAINED collection in which it comes first; what is there already stays."""
        if not self.run_exists:
            butler.collections.register(self.output_run, CollectionType.RUN)
        elif is_half_registered(butler, self.output_run):
            # It was there when the run was checked, long ago for a register: whoever was at it is gone.
            register_anew(butler, self.output_run)
        is_as_it_should = self.output_exists and self.run_exists and not (self.half_chained or self.rebased)
        if self.output is None or is_as_it_should:
            return
        if not self.output_exists:
            butler.collections.register(self.output, CollectionType.CHAINED)
        members = _flatten(butler, self.chain) if self.chain else self.inputs
        others = [member for member in members if member != self.output_run]
        butler.collections.redefine_chain(self.output, [self.output_run, *others])


def register_anew(butler: Butler, run: str) -> None:
    """Remove an empty RUN and register it again, in the place that it has in CHAINED collections.

    Whoever is killed over it leaves it missing from some of those, at worst: our own output collection gets
    it again when the run is prepared once more.
    """
    doc = butler.registry.getCollectionDocumentation(run)
    chains = {name: butler.collections.get_info(name).children for name in sorted(parents_of(butler, run))}
    for name in chains:
        butler.collections.remove_from_chain(name, run)
    butler.registry.removeCollection(run)
    butler.collections.register(run, CollectionType.RUN, doc)
    for name, members in chains.items():
        butler.collections.redefine_chain(name, members)


def prune_replaced(butler: Butler, replaced: str, prune: str | None, pipeline: PipelineGraph) -> None:
    """Remove what was in a RUN that is replaced, as far as that is asked for; it may be gone already.

    Parameters
    ----------
    butler
        The repository.
    replaced
        The RUN; in no CHAINED collection any more.
    prune
        ``purge``; ``unstore`` (files of what quanta wrote: not init-outputs, configs and versions); `None`.
    pipeline
        Tells what is written by quanta.
    """
    if prune is None or collection_type(butler, replaced) is None:
        return
    if prune == "purge":
        butler.removeRuns([replaced])
        return
    refs = []
    for name in butler.collections.get_info(replaced, include_summary=True).dataset_types or ():
        producer = pipeline.producer_of(name) if name in pipeline.dataset_types else None
        if producer is not None and producer.key.node_type is NodeType.TASK:
            refs += butler.query_datasets(name, replaced, find_first=False, explain=False, limit=None)
    butler.pruneDatasets(refs, unstore=True, disassociate=False)


def resolve_collections(
    butler: Butler,
    *,
    inputs: Sequence[str],
    output: str | None,
    output_run: str | None,
    extend_run: bool | None,
    inputs_given: bool = True,
    begun_fresh: bool | None = None,
    replacement: Replacement | None = None,
    rebase: bool = False,
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
    replacement
        Take the newest RUN of ``output`` out of it; `None` to leave it there.
    rebase
        Where ``output`` exists and was made from other inputs, put these in behind its own collections.

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
    run_type = collection_type(butler, run)
    if run_type not in (None, CollectionType.RUN):
        raise CollectionError(
            f"the output RUN {run!r} exists as a {run_type.name} collection",
            hint="Choose another name for the output RUN.",
        )
    # A start that was cut off as it registered the RUN anew has removed it.
    if run_type is None and extend_run and begun_fresh is None:
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
    rebased = False
    if chain is not None and not made_in_vain and (inputs_given or run not in chain):
        if rebase and not _includes(chain, flat):
            chain, rebased = _rebased(str(output), chain, flat, run), True
        _check_chain(str(output), chain, flat)
    half_chained = made_in_vain or (bool(begun_fresh) and run not in (chain or ()))
    replaced = None
    if replacement is not None:
        if begun_fresh and chain and chain[0] == run:
            replaced = replacement.known  # an earlier start has taken it out
        else:
            replaced = _replaced(butler, output, chain, flat, replacement)
            chain = tuple(name for name in chain or () if name != replaced)
    return RunCollections(
        output,
        chain is not None,
        chain or (),
        run,
        run_type is not None,
        flat,
        half_chained,
        replaced,
        rebased,
    )


def _replaced(
    butler: Butler,
    output: str | None,
    chain: tuple[str, ...] | None,
    inputs: tuple[str, ...],
    replacement: Replacement,
) -> str:
    """Return the RUN that a new one takes the place of; what must not be lost is not replaced."""
    if not chain:
        raise CollectionError(
            f"there is no RUN to replace: the output collection {output!r} does not exist, or is empty",
            hint="Leave --replace-run out for the first run; name the output collection with -o.",
        )
    first = chain[0]
    kind = collection_type(butler, first)
    if kind is not CollectionType.RUN:
        raise CollectionError(
            f"{first!r}, the first of {output!r}, is no RUN and cannot be replaced",
            hint="Leave --replace-run out.",
        )
    if first in inputs:
        raise CollectionError(
            f"{first!r}, the first of {output!r}, is one of the inputs and cannot be replaced",
            hint="Leave --replace-run out for the first run.",
        )
    parents = parents_of(butler, first) - {output}
    if replacement.prune == "purge" and parents:
        raise CollectionError(
            f"the RUN {first!r} cannot be purged: it is also in {', '.join(sorted(parents))}",
            hint="Take it out of there, or leave --prune-replaced out.",
        )
    return first


def _rebased(output: str, chain: tuple[str, ...], inputs: tuple[str, ...], run: str) -> tuple[str, ...]:
    """Return a chain with its own collections first, then the inputs, then what else it had."""
    if not run.startswith(output):
        raise CollectionError(
            f"the output collection {output!r} cannot be rebased for the output RUN {run!r}",
            hint="The RUN's name must begin with the output collection's: leave --output-run out.",
        )
    own = [name for name in chain if name.startswith(output)]
    return tuple(dict.fromkeys([*own, *inputs, *chain]))


def collection_type(butler: Butler, name: str) -> CollectionType | None:
    """Return the type of a collection; `None` where there is none of this name."""
    try:
        return butler.collections.get_info(name).type
    except MissingCollectionError:
        return None


def parents_of(butler: Butler, name: str) -> set[str]:
    """Return the CHAINED collections that a collection is a member of."""
    return set(butler.collections.get_info(name, include_parents=True).parents or ())


def _members(butler: Butler, output: str) -> tuple[str, ...] | None:
    """Return the members of a CHAINED collection; `None` where it does not exist."""
    existing = collection_type(butler, output)
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
        missing = [repr(name) for name in names if collection_type(butler, name) is None]
        raise CollectionError(
            f"the repository has no input collection {', '.join(missing or names)}",
            hint="Check -i, and that this is the repository that the graph was built from.",
        ) from None


def _includes(chain: tuple[str, ...], inputs: tuple[str, ...]) -> bool:
    """Tell whether the inputs stand in a chain as they are: one after another, in this order."""
    starts = range(len(chain) - len(inputs) + 1)
    return any(chain[start : start + len(inputs)] == inputs for start in starts)


def _check_chain(output: str, chain: tuple[str, ...], inputs: tuple[str, ...]) -> None:
    if not _includes(chain, inputs):
        raise CollectionError(
            f"the output collection {output!r} exists and was made from other inputs: it holds "
            f"{', '.join(chain) or 'nothing'}, which does not include {', '.join(inputs)} in this order",
            hint="Give another output collection with -o, or the inputs that it was made from with -i; "
            "--rebase puts these into it.",
        )
