"""Which bytes of a blob a request asks for: `Range` and `If-Range`, read without doing any I/O.

RFC 9110 section 14, with the three choices that clients force on a registry (PROTOCOL B4-B11):

- `bytes=500-0` and a range that begins at or after the end answer 416, not 200: the conformance
  suite takes a 200 for "ranges unsupported".
- Several ranges are served as asked, in request order, one part for each: podman's zstd:chunked
  pulls count on it.  Those without a byte in the blob are left out; 416 only if none is left.
- A header that is malformed, of another unit, or of more than `MAX_RANGES` ranges is ignored:
  the answer is the whole blob, which every client must be able to take.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from node.errors import RangeInvalid

# containers/storage merges what a zstd:chunked layer lacks to 1,024 ranges, and takes a whole blob
# for an answer to none of them.
MAX_RANGES: Final = 2_048
# How often a blob's bytes are sent in one answer, at most.
_MOST_OF_SIZE: Final = 2

_UNIT: Final = "bytes"
_SPEC: Final = re.compile(r"([0-9]*)-([0-9]*)")
_BLANKS: Final = " \t"
# Longer numbers than any file has: Python refuses to read thousands of digits, we clamp instead.
_MOST_DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` to `last` of a blob, both included, both in it."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """Number of bytes, at least one."""
        return self.last - self.first + 1

    def content_range(self, size: int) -> str:
        """The `Content-Range` of these bytes in a blob of `size` bytes."""
        return f"bytes {self.first}-{self.last}/{size}"


def choose_spans(
    range_header: str | None, if_range: str | None, *, etag: str, size: int
) -> tuple[Span, ...] | None:
    """Say what to answer: the spans in request order, or None for the whole blob.

    `etag` is ours, quotes included.

    Raises:
        RangeInvalid: No range asked for holds a byte of the blob (416).
    """
    if range_header is None or not range_still_applies(if_range, etag):
        return None
    return parse_range(range_header, size)


def range_still_applies(if_range: str | None, etag: str) -> bool:
    """Whether `If-Range` lets the range stand (RFC 9110 13.1.5: strong comparison).

    A weak tag never compares equal, and a date never does either: blobs have no Last-Modified.
    """
    return if_range is None or if_range.strip(_BLANKS) == etag


def parse_range(header: str, size: int) -> tuple[Span, ...] | None:
    """Read a `Range` header against a blob of `size` bytes; None if it is to be ignored.

    Raises:
        RangeInvalid: It is well-formed, and none of its ranges holds a byte of the blob.
    """
    unit, equals, listed = header.partition("=")
    if not equals or unit.strip(_BLANKS).lower() != _UNIT:
        return None
    # RFC 9110 5.6.1.2: a recipient must take empty elements of a list in its stride.
    texts = [text for item in listed.split(",") if (text := item.strip(_BLANKS))]
    if not texts or len(texts) > MAX_RANGES:
        return None
    matches = [_SPEC.fullmatch(text) for text in texts]
    pairs = [match.groups() for match in matches if match is not None and match.group() != "-"]
    if len(pairs) != len(texts):
        return None
    spans = tuple(span for first, last in pairs if (span := _span(first, last, size)) is not None)
    if not spans:
        raise RangeInvalid(size)
    # RFC 9110 14.2: what overlaps is asked for to do harm, not to read.
    return spans if sum(span.length for span in spans) <= _MOST_OF_SIZE * size else None


def _span(first: str, last: str, size: int) -> Span | None:
    """One range clamped to the blob, or None if it holds no byte of it."""
    if first:
        begin, end = _number(first), _number(last) if last else size - 1
    else:
        begin, end = max(0, size - _number(last)), size - 1
    end = min(end, size - 1)
    return Span(begin, end) if begin <= end else None


def _number(digits: str) -> int:
    significant = digits.lstrip("0")[: _MOST_DIGITS + 1]
    return int(significant or "0")
