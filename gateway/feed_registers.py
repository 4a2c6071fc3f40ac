"""Read the site's registers for its feed; what no peer could take is left out of it.

One register that can't be read (it is damaged, or a newer version wrote it) would else end every
stream at the same place, for ever and for all repositories.  It is told again when it is written
anew; until then the log has named it once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from node import keys
from node.change import Change
from node.keys import Name
from node.kv import Entry
from node.wire import feed_codec

# Beyond that there is nothing to learn from another line, and the memory is not for it.
_NAMED: Final = 10_000

_log = structlog.stdlib.get_logger(__name__)


class Registers:
    """The registers of one site, for all of its streams."""

    def __init__(self) -> None:
        self._named = set[bytes]()

    def read(self, entry: Entry, wanted: Callable[[Name], bool]) -> Change | None:
        """The change that an entry is, if it is one that is wanted and that peers can take."""
        try:
            name = keys.parse_register(entry.key)
            return None if name is None or not wanted(name) else feed_codec.read_entry(name, entry)
        except ValueError as err:
            self._name(entry.key, str(err))
            return None

    def _name(self, key: bytes, reason: str) -> None:
        if key in self._named or len(self._named) >= _NAMED:
            return
        self._named.add(key)
        shown = key.decode(errors="backslashreplace")
        _log.error("a register is left out of the feed", register=shown, reason=reason)
