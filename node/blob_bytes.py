"""Write and copy all of some bytes, however few of them a call takes; all of this blocks."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

# A seam: tests fail it.
_copy_file_range = os.copy_file_range

_READ_BYTES: Final = 1 << 20
_NO_KERNEL_COPY: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


def write_all(descriptor: int, chunks: Sequence[bytes | memoryview]) -> None:
    """Write the chunks, in order, where the descriptor stands."""
    left = list(chunks)
    while left:
        written = os.writev(descriptor, left)
        whole = 0
        while whole < len(left) and written >= len(left[whole]):
            written -= len(left[whole])
            whole += 1
        del left[:whole]
        if left:
            left[0] = memoryview(left[0])[written:]


def copy_all(source: int, target: int, length: int) -> None:
    """Copy the next `length` bytes; in the kernel where the filesystem can."""
    while length:
        length -= _copy_in_kernel(source, target, length) or _copy_by_hand(source, target, length)


def _copy_in_kernel(source: int, target: int, most: int) -> int:
    try:
        return _copy_file_range(source, target, most)
    except OSError as err:
        if err.errno not in _NO_KERNEL_COPY:
            raise
        return 0


def _copy_by_hand(source: int, target: int, most: int) -> int:
    content = os.read(source, min(most, _READ_BYTES))
    if not content:
        raise OSError(errno.EIO, "a piece became shorter while it was read")
    write_all(target, [content])
    return len(content)
