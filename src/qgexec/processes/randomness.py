"""Seeds the global random generators of this process: Python's and numpy's old one."""

from __future__ import annotations

import os
import random
import sys
from typing import Any

__all__ = ["draw_seed", "generator_states", "restore_generators", "seed_children", "seed_generators"]

_STEP = 0x9E3779B9
"""2**32 divided by the golden ratio: multiples of it, modulo 2**32, are far from one another."""


class _Current:
    """What the generators were seeded with last, and how many children have been forked since."""

    seed = 0
    n_children = 0
    is_registered = False


def draw_seed() -> int:
    """Return 32 random bits; about 2 us."""
    return int.from_bytes(os.urandom(4))


def seed_generators(seed: int) -> None:
    """Seed `random` and, where it has been imported, `numpy.random`; about 20 us.

    Parameters
    ----------
    seed
        32 bits.
    """
    _Current.seed, _Current.n_children = seed, 0
    random.seed(seed)
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed(seed)


def seed_children() -> None:
    """Give each child that is forked from here a seed of its own, which follows from the last one here.

    A fork copies the state of numpy's generator: parent and children would draw the same numbers.
    """
    if not _Current.is_registered:
        _Current.is_registered = True
        os.register_at_fork(after_in_parent=_count, after_in_child=_seed_child)


def _count() -> None:
    _Current.n_children += 1


def _seed_child() -> None:
    seed_generators((_Current.seed + _STEP * (_Current.n_children + 1)) & 0xFFFFFFFF)


def generator_states() -> tuple[Any, Any]:
    """Return the states of both generators, for `restore_generators`."""
    numpy = sys.modules.get("numpy.random")
    return random.getstate(), None if numpy is None else numpy.get_state()


def restore_generators(states: tuple[Any, Any]) -> None:
    """Put back the states of both generators."""
    random.setstate(states[0])
    if states[1] is not None:
        sys.modules["numpy.random"].set_state(states[1])
