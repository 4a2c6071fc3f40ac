"""A change: what one site tells another about one replicated name."""

from __future__ import annotations

from dataclasses import dataclass

from node import keys
from node.records import Pushed
from node.register import Register


@dataclass(frozen=True, slots=True)
class Change:
    """The latest register of a tag or manifest at its source, and the revision that wrote it there.

    `body` are the bytes of a small live manifest, sent along to save a round trip; whoever uses
    them checks them against the digest first.
    """

    name: keys.Name
    register: Register[Pushed]
    revision: int
    body: bytes | None = None
