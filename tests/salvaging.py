"""What takes a model's blobs from files that no record names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from replicator.salvage import Salvage
from tests.model import Model


def salvage_of(model: Model) -> Salvage:
    """The salvage of a model."""
    taken = Counter("salvaged", "Bytes.", registry=CollectorRegistry())
    return Salvage(model.uploads, model.blobs, taken)
