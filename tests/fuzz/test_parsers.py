"""Whatever text comes in, a parser reads it or says in its own words that it can't."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from gateway.headers import matches, parse_content_range, parse_page
from gateway.ranges import Span, choose_spans
from gateway.routes import endpoint_of, parse_target
from node.digest import Algorithm, Digest
from node.errors import (
    DigestInvalid,
    DigestUnsupported,
    ManifestInvalid,
    NameInvalid,
    PageInvalid,
    RangeInvalid,
    RegistryError,
    TagInvalid,
)
from node.manifest import MEDIA_TYPES, parse_manifest
from node.reference import parse_reference, parse_repository
from tests.registry import descriptor

# As aiohttp hands it over: what is no UTF-8 comes as surrogates.
RAW: Final = st.binary(max_size=80).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
TEXT: Final = RAW | st.text(alphabet="0123456789abcdefx/:%-,=.&?;+* \t\u0663", max_size=80)
NUMBERS: Final = st.integers(0, 10**25) | st.integers(0, 300)
DIGESTS: Final = st.builds(Digest.of, st.binary(max_size=4), st.sampled_from(Algorithm))
SIZE: Final = 100

LEAVES: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXT,
    st.sampled_from(["\ud800", 10**400, 2**63, *sorted(MEDIA_TYPES)]),
    DIGESTS.map(str),
    st.just(descriptor(b"x")),
)
MEMBERS: Final = st.sampled_from(
    [
        *("schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "annotations"),
        *("artifactType", "blobs", "urls", "digest", "size"),
    ]
)
VALUES: Final = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS | TEXT, inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS: Final = st.dictionaries(MEMBERS, VALUES, max_size=8).map(
    lambda members: {"schemaVersion": 2, **members}
)


@given(TEXT, st.sampled_from(["GET", "PUT", "POST", "PATCH", "DELETE", "\udcff"]), st.booleans())
def test_targets(text: str, method: str, below: bool) -> None:
    """A target is an endpoint of ours or an error; so is everything that is asked of it."""
    try:
        target = parse_target(f"/v2/{text}" if below else text)
        endpoint_of(method, target)
        _ = [target.parameters(name) for name in ("n", "last", "tag", "x")]
        _ = target.media_types("artifactType"), target.digest_parameter("digest")
        _ = target.repository, target.digest
    except RegistryError:
        pass


@given(TEXT)
def test_names(text: str) -> None:
    """What is taken for a name, a tag or a digest is written as it was read."""
    with suppress(NameInvalid):
        assert parse_repository(text) == text
    with suppress(TagInvalid, DigestInvalid, DigestUnsupported):
        assert str(parse_reference(text)) == text


@given(DIGESTS)
def test_digests(digest: Digest) -> None:
    """A digest is read as it is written, packed or not."""
    assert Digest.parse(str(digest)) == digest
    assert Digest.take(digest.packed) == (digest, len(digest.packed))


@given(TEXT | TEXT.map(lambda text: f"bytes={text}"), TEXT, st.integers(0, SIZE))
def test_ranges(text: str, if_range: str, size: int) -> None:
    """Spans lie in the blob, whatever asks for them."""
    for condition in (None, if_range):
        try:
            spans = choose_spans(text, condition, etag='"e"', size=size)
        except RangeInvalid:
            continue
        assert all(0 <= span.first <= span.last < size for span in spans or ())


@given(NUMBERS, NUMBERS)
def test_a_range_is_clamped(first: int, last: int) -> None:
    """One range of any numbers is cut to the blob, or lies outside of it."""
    try:
        spans = choose_spans(f"bytes={first}-{last}", None, etag='"e"', size=SIZE)
    except RangeInvalid:
        assert first >= SIZE or last < first
    else:
        assert spans == (Span(first, min(last, SIZE - 1)),)


@given(TEXT, NUMBERS, NUMBERS)
def test_content_ranges(text: str, first: int, last: int) -> None:
    """A chunk's range is two numbers in order, or none."""
    chunk = parse_content_range(text)
    assert chunk is None or 0 <= chunk[0] <= chunk[1]
    readable = first <= last and len(str(last)) < 20
    assert parse_content_range(f"{first}-{last}") == ((first, last) if readable else None)


@given(TEXT, DIGESTS)
def test_entity_tags(text: str, digest: Digest) -> None:
    """Any text is compared with a digest, and the digest in any list is found."""
    assert matches([text], digest) in {True, False}
    assert matches([f'{text}, W/"{digest}"'], digest)
    assert matches([text, f'"{digest}"'], digest)


@given(TEXT, st.integers(1, 1000))
def test_pages(text: str, limit: int) -> None:
    """A page is never larger than the limit."""
    with suppress(PageInvalid):
        assert 0 <= parse_page(text, limit) <= limit


@given(st.binary(max_size=200), TEXT)
def test_bodies_that_are_bytes(body: bytes, content_type: str) -> None:
    """Bytes are a manifest or are refused."""
    with suppress(ManifestInvalid):
        parse_manifest(body, content_type)


@given(DOCUMENTS, st.none() | st.sampled_from(sorted(MEDIA_TYPES)) | TEXT)
def test_bodies_that_are_documents(document: object, content_type: str | None) -> None:
    """A document is a manifest whose parts can all be written in UTF-8, or is refused."""
    try:
        manifest = parse_manifest(json.dumps(document).encode(), content_type)
    except ManifestInvalid:
        return
    assert manifest.media_type in MEDIA_TYPES
    texts = [manifest.artifact_type or "", *manifest.annotations, *manifest.annotations.values()]
    assert all(text.encode() is not None for text in texts)
    assert all(0 <= part.size < 2**63 for part in (*manifest.blobs, *manifest.children))
