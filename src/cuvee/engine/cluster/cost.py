"""How long a run takes on a cluster: the slowest of storage, network and arithmetic, since they overlap.

Fed by measured rates; docs/guides/merge-on-a-cluster.md says how to measure them, and how near the model comes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClusterRates:
    """Bytes per second: of the storage as a whole, between it and one node, and through one worker's arithmetic; and
    the seconds from the command to the first byte (workers start, and each builds the plan)."""

    storage: float
    node: float
    worker: float
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that each resource needs for its part, and of the whole run."""

    storage: float
    network: float
    arithmetic: float
    total: float

    @property
    def limit(self) -> str:
        """What the run waits for."""
        parts = {"storage": self.storage, "network": self.network, "arithmetic": self.arithmetic}
        return max(parts, key=lambda name: parts[name])


def estimate(nbytes: int, nodes: int, workers: int, rates: ClusterRates) -> Estimate:
    """The time for `nbytes` read and written together (every pass counts), with so many workers in all."""
    storage = nbytes / rates.storage
    network = nbytes / (nodes * rates.node)
    arithmetic = nbytes / (workers * rates.worker)
    return Estimate(storage, network, arithmetic, rates.start + max(storage, network, arithmetic))
