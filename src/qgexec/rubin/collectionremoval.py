"""Owns which collections `purge` and `cleanup` remove, and removes them; knows no graph.

The rules are those of ``pipetask``, but that nothing is removed that another
collection, which stays, still needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lsst.daf.butler import Butler, CollectionType
from sqlalchemy.exc import SQLAlchemyError

from qgexec.errors import CollectionError, RepositoryError
from qgexec.rubin.collections import collection_type, parents_of
from qgexec.rubin.repository import open_butler, require_writeable

__all__ = ["Removal", "find_cleanup", "find_purge", "remove"]


@dataclass(frozen=True, slots=True)
class Removal:
    """Collections to be removed."""

    runs: tuple[str, ...] = ()
    """RUN collections, with all that is in them."""

    chains: tuple[str, ...] = ()
    """CHAINED collections, each before its members."""

    others: tuple[str, ...] = ()
    """TAGGED and CALIBRATION collections: datasets stay where they are."""

    def __bool__(self) -> bool:
        return bool(self.runs or self.chains or self.others)


def find_purge(repository: str | Butler, collection: str, *, recursive: bool = False) -> Removal:
    """Find a CHAINED collection, and those of its members whose names begin with its own.

    Parameters
    ----------
    repository
        Repository, or a butler on it.
    collection
        The CHAINED collection.
    recursive
        Also the members of members that are CHAINED.

    Raises
    ------
    qgexec.errors.CollectionError
        It is missing or not CHAINED, or something that would be removed is in another collection.
    """
    with open_butler(repository) as butler:
        _require_chain(butler, collection)
        if parents := parents_of(butler, collection):
            raise CollectionError(
                f"{collection!r} is a member of {', '.join(sorted(parents))}, and cannot be purged",
                hint="Take it out of there first: butler collection-chain --mode remove.",
            )
        runs: list[str] = []
        chains = [collection]
        others: list[str] = []
        looked_at = 0
        while looked_at < len(chains):
            chain = chains[looked_at]
            looked_at += 1
            if chain != collection and not recursive:
                continue
            for member in butler.collections.get_info(chain).children:
                if not member.startswith(collection):
                    continue
                _require_only_parent(butler, member, chain)
                match butler.collections.get_info(member).type:
                    case CollectionType.RUN:
                        runs.append(member)
                    case CollectionType.CHAINED:
                        chains.append(member)
                    case _:
                        others.append(member)
    _require_plain(runs)
    return Removal(tuple(runs), tuple(chains), tuple(others))


def find_cleanup(repository: str | Butler, collection: str) -> Removal:
    """Find what stands below a CHAINED collection by its name, and is not in it.

    Parameters
    ----------
    repository
        Repository, or a butler on it.
    collection
        The CHAINED collection: ``u/me/test`` for all that is called ``u/me/test/...``.

    Raises
    ------
    qgexec.errors.CollectionError
        It is missing or not CHAINED, or something that would be removed is in another collection.
    """
    with open_butler(repository) as butler:
        _require_chain(butler, collection)
        kept = {*butler.collections.query(collection, flatten_chains=True, include_chains=True)}
        below = [name for name in butler.collections.query(f"{collection}/*") if name not in kept]
        _require_plain(below)
        types = {name: butler.collections.get_info(name).type for name in below}
        for name in below:
            if others := parents_of(butler, name) - set(below):
                raise CollectionError(
                    f"{name!r} is not in {collection!r}, but in {', '.join(sorted(others))}",
                    hint="Take it out of there first: butler collection-chain --mode remove.",
                )
        chains = [name for name in below if types[name] is CollectionType.CHAINED]
        # Those that are members of others go after them.
        chains.sort(key=lambda name: len(_ancestors(butler, name)))
    return Removal(
        runs=tuple(name for name in below if types[name] is CollectionType.RUN),
        chains=tuple(chains),
        others=tuple(
            name for name in below if types[name] not in (CollectionType.RUN, CollectionType.CHAINED)
        ),
    )


def remove(repository: str | Butler, removal: Removal) -> None:
    """Remove collections: all, or none of them.

    Raises
    ------
    qgexec.errors.RepositoryError
        The repository cannot be written.
    """
    with open_butler(repository, writeable=True) as butler:
        require_writeable(butler)
        try:
            with butler.transaction():
                for name in (*removal.chains, *removal.others):
                    butler.registry.removeCollection(name)
                butler.removeRuns(removal.runs)
        except (SQLAlchemyError, OSError) as error:
            raise RepositoryError(
                f"the collections cannot be removed: {type(error).__name__}: {error}"
            ) from error


def _require_chain(butler: Butler, collection: str) -> None:
    kind = collection_type(butler, collection)
    if kind is None:
        raise CollectionError(
            f"the repository has no collection {collection!r}", hint="Check its name, and -b."
        )
    if kind is not CollectionType.CHAINED:
        raise CollectionError(
            f"{collection!r} is a {kind.name} collection, not CHAINED",
            hint="'butler remove-runs' and 'butler remove-collections' remove others.",
        )
    _require_plain([collection])


def _require_plain(names: Iterable[str]) -> None:
    """Refuse names that upstream, which finds or removes by them, would take for patterns of others."""
    if patterns := [name for name in names if set(name) & set("*?[")]:
        raise CollectionError(
            f"{patterns[0]!r} is a pattern, by which others would be removed, too",
            hint="Remove it with the methods of Butler's registry, if it is a collection.",
        )


def _require_only_parent(butler: Butler, member: str, chain: str) -> None:
    if others := parents_of(butler, member) - {chain}:
        raise CollectionError(
            f"{member!r} is also a member of {', '.join(sorted(others))}, and cannot be removed",
            hint="Take it out of there first: butler collection-chain --mode remove.",
        )


def _ancestors(butler: Butler, name: str) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        new = parents_of(butler, todo.pop()) - found
        found |= new
        todo += new
    return found
