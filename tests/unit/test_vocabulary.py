"""Digests, names and references: what is valid, and that nothing else is."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import keys
from node.digest import Algorithm, Digest, Verifier
from node.errors import (
    DigestInvalid,
    DigestMismatch,
    DigestUnsupported,
    NameInvalid,
    RegistryError,
    TagInvalid,
)
from node.kv import prefix
from node.reference import Repository, Tag, parse_reference, parse_repository, parse_tag

DIGESTS = st.builds(
    Digest.of, st.binary(max_size=64), st.sampled_from([Algorithm.SHA256, Algorithm.SHA512])
)
REPOSITORIES = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)?(/[a-z0-9]+)?", fullmatch=True).map(
    lambda text: Repository(text[:255])
)
TAGS = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True).map(Tag)
HEX = "ab" * 32


@given(DIGESTS)
def test_a_digest_reads_back(digest: Digest) -> None:
    """Text and packed forms are each other's inverse, also inside a key."""
    assert Digest.parse(str(digest)) == digest
    assert Digest.take(b"x/" + digest.packed + b"rest", 2) == (digest, 2 + len(digest.packed))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        ":" + HEX,
        "sha256:" + HEX[:-1],
        "sha256:" + HEX + "0",
        "sha256:" + HEX.upper(),
        "sha256:" + "g" * 64,
        "sha512:" + HEX,
        "SHA256:" + HEX,
        " sha256:" + HEX,
        "sha256:" + HEX + "\n",
        "sha256:\uff11" + HEX[1:],
        "sha256:baddigeststring",
        "sha256::" + HEX,
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    """N3: the length, the case and the alphabet of a digest are its algorithm's."""
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


@pytest.mark.parametrize("text", ["md5:" + "a" * 32, "blake3:" + HEX, "sha256+b64:" + HEX])
def test_an_unknown_algorithm_is_said_to_be_one(text: str) -> None:
    """A well-formed digest that is not computed here is unsupported, not malformed."""
    with pytest.raises(DigestUnsupported):
        Digest.parse(text)


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda raw: raw.decode("latin-1")))
def test_no_text_breaks_a_parser(text: str) -> None:
    """Whatever comes, it is read or refused in our own words."""
    for parse in (Digest.parse, parse_repository, parse_tag, parse_reference):
        try:
            parse(text)
        except RegistryError:
            continue


@given(st.lists(st.binary(max_size=40)), st.sampled_from(list(Algorithm)))
def test_a_verifier_hashes_what_passes(parts: list[bytes], algorithm: Algorithm) -> None:
    """Fed in any pieces, it says what hashing the whole says."""
    verifier = Verifier(algorithm)
    for part in parts:
        verifier.update(part)
    whole = b"".join(parts)
    assert verifier.size == len(whole)
    assert verifier.digest().raw == hashlib.new(algorithm, whole).digest()
    verifier.verify(Digest.of(whole, algorithm))
    with pytest.raises(DigestMismatch):
        verifier.verify(Digest.of(whole + b"x", algorithm))


@pytest.mark.parametrize(
    "name", ["a", "library/ubuntu", "a-b", "a--b", "a__b", "a.b", "x/blobs/manifests/1", "0"]
)
def test_names_of_the_specification_are_taken(name: str) -> None:
    """N1, N6: any depth, and the separators of the grammar."""
    assert parse_repository(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "A",
        "a___b",
        "a..b",
        "-a",
        "a-",
        "_a",
        "a/../b",
        "a\0b",
        "a b",
        "ä",
        "a\n",
        "x" * 256,
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    """N1, N5: upper case, empty components, dots and NUL are no names."""
    with pytest.raises(NameInvalid):
        parse_repository(name)


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a/b", "a b", "a\n", "x" * 129, "ä", "a\0"])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    """N2: 128 characters of the grammar, the first no dot and no dash."""
    with pytest.raises(TagInvalid):
        parse_tag(tag)


def test_a_colon_makes_a_digest() -> None:
    """N7: what holds a colon is a digest, anything else a tag."""
    assert parse_reference("v1.0_x-y") == "v1.0_x-y"
    assert isinstance(parse_reference("sha256:" + HEX), Digest)
    with pytest.raises(DigestInvalid):
        parse_reference("v1:")


@given(REPOSITORIES, DIGESTS, DIGESTS, TAGS)
def test_keys_read_back(repository: Repository, one: Digest, two: Digest, tag: Tag) -> None:
    """Whatever bytes a digest holds (NUL, slashes), a key says what it was built from."""
    assert keys.parse_register(keys.manifest(repository, one)) == (repository, one)
    assert keys.parse_register(keys.tag(repository, tag)) == (repository, tag)
    assert keys.referring(keys.reference(one, repository, two)) == two
    assert keys.tagged_name(keys.tagged(repository, one, tag)) == tag
    assert keys.live_tag_name(keys.live_tag(repository, tag)) == tag
    assert keys.referrer_digest(keys.referrer(repository, one, two)) == two
    assert keys.repository_name(keys.repository(repository)) == repository
    for key, listed in ((keys.repository(repository), True), (keys.forgotten(repository), False)):
        assert keys.catalog_change(key) == (repository, listed)
        assert keys.CATALOG_CHANGES.start <= key < keys.CATALOG_CHANGES.end
        assert (keys.CATALOG.start <= key < keys.CATALOG.end) == listed


@given(st.sampled_from([b"N/", b"P/", b"S"]), st.binary())
def test_a_key_of_another_kind_is_none_of_ours(kind: bytes, rest: bytes) -> None:
    """Whatever a later version puts among the replicated keys is left alone, and is no damage."""
    assert keys.REPLICATED.start <= kind + rest < keys.REPLICATED.end
    assert keys.parse_register(kind + rest) is None


@given(REPOSITORIES, REPOSITORIES, DIGESTS, TAGS)
def test_a_repositorys_ranges_hold_its_keys_only(
    mine: Repository, other: Repository, digest: Digest, tag: Tag
) -> None:
    """No repository's name reaches into another's keys."""
    for within, key in [
        (keys.manifests(mine), keys.manifest(other, digest)),
        (keys.live_tags(mine), keys.live_tag(other, tag)),
        (keys.references(digest, mine), keys.reference(digest, other, digest)),
        (keys.tags_of(mine, digest), keys.tagged(other, digest, tag)),
    ]:
        assert (within.start <= key < within.end) == (mine == other)


@given(TAGS, TAGS)
def test_names_are_paged_in_byte_order(after: Tag, tag: Tag) -> None:
    """A page that begins after a name holds just the names behind it."""
    repository = Repository("a")
    within = keys.live_tags(repository, after)
    assert (within.start <= keys.live_tag(repository, tag) < within.end) == (tag > after)


def test_replicated_keys_lie_side_by_side() -> None:
    """The feed is one range: registers in it, everything local outside of it."""
    within = keys.REPLICATED
    local = [keys.SITE, b"L/x", b"b/x", b"r/x", b"tr/x", b"o/x", b"s/x", b"ev/x", b"cur/x"]
    assert not any(within.start <= key < within.end for key in [*local, b"c/x", b"c-/x"])
    catalog = keys.CATALOG_CHANGES
    assert not any(catalog.start <= key < catalog.end for key in local)
    repository = Repository("z")
    for key in (keys.manifest(repository, Digest.of(b"")), keys.tag(repository, Tag("z"))):
        assert within.start <= key < within.end


@given(st.binary(min_size=1, max_size=8).filter(lambda raw: raw.strip(b"\xff")))
def test_a_prefix_range_is_all_that_begins_so(start: bytes) -> None:
    """The end of a prefix is just behind its last key."""
    within = prefix(start)
    assert within.start <= start + os.urandom(3) < within.end
    assert within.start <= start + b"\xff" * 9 < within.end
