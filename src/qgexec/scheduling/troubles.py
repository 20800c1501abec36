"""What attempts that ended badly have cost each quantum, and what its next one asks for; knows no states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qgexec.events import FailureEvent
from qgexec.quantum import Resources
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Account, Policy

__all__ = ["Past", "Troubles"]


@dataclass(frozen=True, slots=True)
class Past:
    """What is behind a quantum."""

    n_attempts: int = 0
    """Attempts so far, the running one included."""

    charged: Mapping[Account, int] = field(default_factory=dict)
    """What those that ended badly were charged to."""

    n_out_of_memory: int = 0
    """How many of them ran out of memory."""


class Troubles:
    """The retries that quanta have used up, and the memory that they were found to need.

    Parameters
    ----------
    plan
        The quanta.
    policy
        What they may use, and what to do about failures.
    """

    def __init__(self, plan: Plan, policy: Policy) -> None:
        self._plan = plan
        self._policy = policy
        self._charged: dict[int, dict[Account, int]] = {}
        self._n_out_of_memory: dict[int, int] = {}
        self.grown: dict[int, Resources] = {}
        """What quanta ask for, by index, that ask for something else than at first."""

    def wants_retry(self, event: FailureEvent) -> bool:
        """Return whether another attempt follows after this event, by the policy."""
        index = event.index
        charged, n_out_of_memory = self._charged.get(index, {}), self._n_out_of_memory.get(index, 0)
        return self._policy.wants_retry(event, self._plan.label(index), charged, n_out_of_memory)

    def charge(self, event: FailureEvent) -> None:
        """Note what an attempt that ended badly has cost its quantum."""
        index, label = event.index, self._plan.label(event.index)
        charged = self._charged.setdefault(index, {})
        account, _ = self._policy.account(event, label)
        charged[account] = charged.get(account, 0) + 1
        n_out_of_memory = self._n_out_of_memory.get(index, 0)
        if self._policy.rules_of(label).ran_out_of_memory(event, n_out_of_memory):
            self._grow(index, n_out_of_memory + 1)

    def _grow(self, index: int, n_out_of_memory: int) -> None:
        self._n_out_of_memory[index] = n_out_of_memory
        rules = self._policy.rules_of(self._plan.label(index))
        self.grown[index] = rules.request_after(n_out_of_memory)

    def forgive(self) -> None:
        """Give back all retries; what is known of quanta's memory stays true."""
        self._charged.clear()

    def past(self, index: int, n_attempts: int) -> Past:
        """Return what is behind a quantum after so many attempts."""
        return Past(n_attempts, dict(self._charged.get(index, {})), self._n_out_of_memory.get(index, 0))

    def take_up(self, index: int, past: Past) -> None:
        """Begin with what `past` returned of a quantum."""
        if past.charged:
            self._charged[index] = dict(past.charged)
        if past.n_out_of_memory:
            self._grow(index, past.n_out_of_memory)
