"""Names: repositories, tags, and references (a tag or a digest).

The grammars are the distribution specification's; a value of these types is valid by construction.
"""

from __future__ import annotations

import re
from typing import Final, NewType, TypeAlias

from node.digest import Digest
from node.errors import NameInvalid, TagInvalid

Repository = NewType("Repository", str)
Tag = NewType("Tag", str)
Reference: TypeAlias = Tag | Digest

# distribution-spec, "Pulling manifests"; the length is what many clients bound host and name to.
_NAME: Final = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_NAME_LENGTH: Final = 255
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


def parse_repository(text: str) -> Repository:
    """Read a repository's name.

    Raises:
        NameInvalid: It breaks the grammar, or has over 255 characters.
    """
    if len(text) > _NAME_LENGTH or not _NAME.fullmatch(text):
        raise NameInvalid(text)
    return Repository(text)


def parse_tag(text: str) -> Tag:
    """Read a tag.

    Raises:
        TagInvalid: It breaks the grammar, or has over 128 characters.
    """
    if not _TAG.fullmatch(text):
        raise TagInvalid(text)
    return Tag(text)


def parse_reference(text: str) -> Reference:
    """Read a tag or a digest: what contains a colon is a digest.

    Raises:
        DigestInvalid: It has a colon and is no digest.
        DigestUnsupported: A digest of an unknown algorithm.
        TagInvalid: It has no colon and is no tag.
    """
    return Digest.parse(text) if ":" in text else parse_tag(text)
