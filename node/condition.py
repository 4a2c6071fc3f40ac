"""Conditional requests: what a reference must show for a request to go ahead (RFC 9110 13.1).

A client that read a tag, and changes it only if it still shows what was read, loses no other
client's push.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.digest import Digest
from node.errors import PreconditionFailed
from node.reference import Reference

# Stands for any content at all.
ANY: Final = "*"


@dataclass(frozen=True, slots=True)
class Condition:
    """What a reference has to show, if anything is wanted, and what it may not show.

    Both hold digests as text, or `ANY`.  Each site decides by what it shows itself: across a cut
    two sites may both go ahead, and the tag is then in conflict (RELIABILITY 6.2).
    """

    reference: Reference
    wanted: frozenset[str] | None = None
    unwanted: frozenset[str] = frozenset()

    def allows(self, shown: Digest | None) -> bool:
        """Whether the reference does not show what is unwanted."""
        return self.unwanted.isdisjoint(_names(shown))

    def require_wanted(self, shown: Digest | None) -> None:
        """Check that the reference shows what is wanted, if anything is.

        Raises:
            PreconditionFailed: It does not.
        """
        if self.wanted is not None and self.wanted.isdisjoint(_names(shown)):
            raise PreconditionFailed(str(self.reference), "" if shown is None else str(shown))

    def require(self, shown: Digest | None) -> None:
        """Check both for a write.

        Raises:
            PreconditionFailed: One of them does not hold.
        """
        self.require_wanted(shown)
        if not self.allows(shown):
            raise PreconditionFailed(str(self.reference), str(shown))


def _names(shown: Digest | None) -> frozenset[str]:
    return frozenset() if shown is None else frozenset({ANY, str(shown)})
