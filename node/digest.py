"""Digests: what content is called, and the incremental check that content is what it is called.

A `Digest` that exists is valid: it is parsed once, at the edge.  sha256 and sha512 are computed
here (OCI image-spec, descriptor.md); any other algorithm is refused by name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Self

from node.errors import DigestInvalid, DigestMismatch, DigestUnsupported

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Algorithm(StrEnum):
    """The registered algorithms that Entrepot computes."""

    SHA256 = "sha256"
    SHA512 = "sha512"


# One byte each in keys: a stored format, never renumbered.
_TO_BYTE: Final = {Algorithm.SHA256: b"\x01", Algorithm.SHA512: b"\x02"}
_FROM_BYTE: Final = {code[0]: algorithm for algorithm, code in _TO_BYTE.items()}
_RAW_LENGTH: Final = {Algorithm.SHA256: 32, Algorithm.SHA512: 64}
# image-spec descriptor.md: algorithm-component [+._-] algorithm-component, ":" encoded
_GRAMMAR: Final = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX: Final = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content address; `raw` are the hash's 32 (sha256) or 64 (sha512) bytes."""

    algorithm: Algorithm
    raw: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `algorithm:hex`.

        Raises:
            DigestInvalid: The text is no digest (upper-case hex included: image-spec).
            DigestUnsupported: A digest of an algorithm that is not computed here.
        """
        name, _, encoded = text.partition(":")
        if not _GRAMMAR.fullmatch(text):
            raise DigestInvalid(text)
        try:
            algorithm = Algorithm(name)
        except ValueError as err:
            raise DigestUnsupported(text) from err
        if len(encoded) != 2 * _RAW_LENGTH[algorithm] or not _HEX.fullmatch(encoded):
            raise DigestInvalid(text)
        return cls(algorithm, bytes.fromhex(encoded))

    @classmethod
    def of(cls, content: ReadableBuffer, algorithm: Algorithm = Algorithm.SHA256) -> Self:
        """Hash content that is in memory already."""
        return cls(algorithm, hashlib.new(algorithm, content).digest())

    @classmethod
    def take(cls, packed: bytes, start: int = 0) -> tuple[Self, int]:
        """Read a packed digest from inside a key, and where the key goes on after it.

        Raises:
            ValueError: No whole packed digest stands there.
        """
        if start >= len(packed) or (algorithm := _FROM_BYTE.get(packed[start])) is None:
            raise ValueError("no packed digest here")
        end = start + 1 + _RAW_LENGTH[algorithm]
        if end > len(packed):
            raise ValueError("packed digest is cut short")
        return cls(algorithm, packed[start + 1 : end]), end

    @property
    def packed(self) -> bytes:
        """One algorithm byte and the raw hash: how keys hold a digest; its length is known."""
        return _TO_BYTE[self.algorithm] + self.raw

    @property
    def hex(self) -> str:
        """The encoded part, lower-case."""
        return self.raw.hex()

    def __str__(self) -> str:
        """`algorithm:hex`, as every client writes it."""
        return f"{self.algorithm}:{self.raw.hex()}"


class Verifier:
    """Hashes content as it passes; says at the end whether it was what it should be.

    `update` releases the GIL for buffers over 2 KiB, so it belongs in a worker thread.
    """

    __slots__ = ("_hash", "algorithm", "size")

    def __init__(self, algorithm: Algorithm = Algorithm.SHA256) -> None:
        self.algorithm = algorithm
        self.size = 0
        self._hash = hashlib.new(algorithm)

    def update(self, content: ReadableBuffer) -> None:
        """Take the next bytes in."""
        self._hash.update(content)
        self.size += len(memoryview(content))

    def digest(self) -> Digest:
        """The digest of everything so far; more may follow."""
        return Digest(self.algorithm, self._hash.digest())

    def verify(self, expected: Digest) -> None:
        """Do nothing if the content so far is `expected`.

        Raises:
            DigestMismatch: It is not.
        """
        actual = self.digest()
        if actual != expected:
            raise DigestMismatch(str(expected), str(actual))
