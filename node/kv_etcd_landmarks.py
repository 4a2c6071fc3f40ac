"""How far a page of a long range should be asked for.

etcd goes through all keys of a range, whatever limit it is given: a page of 100,000 keys takes it
some 50 ms.  So where a page has cost that, its end is remembered as a landmark, and the next one
is asked for up to a landmark only.  What it then lacks is asked for too, so a landmark that keys
have come or gone around costs a request or two, and never an entry.  Pure: no I/O.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from node.kv import Range

# etcd goes through so many keys in some 2 ms, which is what a request takes.
FAR: Final = 4_000
MOST: Final = 10_000


class Landmarks:
    """Keys at which pages have ended; the oldest are all forgotten where there are too many."""

    def __init__(self, far: int = FAR, most: int = MOST) -> None:
        self._far = far
        self._most = most
        self._keys: list[bytes] = []

    def near(self, within: Range, ahead: int = 1) -> Range:
        """The part of a range up to the landmark that is so many ahead; all of it if none is."""
        index = bisect_right(self._keys, within.start) + ahead - 1
        if index >= len(self._keys) or self._keys[index] >= within.end:
            return within
        return within._replace(end=self._keys[index])

    def learn(self, end: bytes, passed: int) -> None:
        """A page has ended before this key, and etcd went through so many keys for it."""
        if passed < self._far:
            return
        if len(self._keys) >= self._most:
            self._keys.clear()
        index = bisect_left(self._keys, end)
        if self._keys[index : index + 1] != [end]:
            self._keys.insert(index, end)
