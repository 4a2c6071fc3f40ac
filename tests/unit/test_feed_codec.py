"""Feed messages: what a site says arrives as it was said, and nonsense is refused whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.change import Change
from node.digest import Digest
from node.globs import Filter
from node.keys import ManifestName, Name, TagName
from node.manifest import OCI_MANIFEST
from node.records import Cursor, Pushed, Report
from node.reference import Repository, Tag
from node.register import Dot, Register
from node.wire import feed_codec, follow_codec, hello_codec
from node.wire import feed_pb2 as pb
from node.wire.ack_codec import ack_message
from node.wire.feed_codec import Batch, Start
from node.wire.follow_codec import FollowRecord
from node.wire.hello_codec import Hello

DIGEST = Digest.of(b"manifest")
ACTOR = "fra#1"


def _change(name: Name | None = None) -> Change:
    value = Pushed(5, DIGEST, OCI_MANIFEST, 8, "op", subject=Digest.of(b"s"), artifact_type="x/y")
    register = Register({ACTOR: 7, "nyc#2": 3}, {Dot(ACTOR, 7): value})
    return Change(name or ManifestName(Repository("team/app"), DIGEST), register, 9, b"manifest")


def _tombstone() -> Change:
    name = TagName(Repository("team/app"), Tag("v1"))
    return Change(name, Register({ACTOR: 2}, {}), 4)


def test_a_batch_arrives_as_it_was_sent() -> None:
    """Manifests with bodies, tags and tombstones survive the wire."""
    tag = TagName(Repository("a/b"), Tag("v1"))
    batch = Batch("life", (_change(), _change(tag), _tombstone()), 9, False, 12)
    sent = feed_codec.batch_message(batch).SerializeToString()
    assert feed_codec.read_batch(pb.ChangeBatch.FromString(sent)) == batch


def test_requests_and_replies_arrive_as_they_were_sent() -> None:
    """Every other message too."""
    start = Start(Cursor("life", 3), Filter(("a/**",), ("v*",)))
    assert feed_codec.read_changes_request(feed_codec.start_message(start)) == start
    ack = Report("life", 5)
    assert feed_codec.read_changes_request(ack_message(ack)) == ack
    hello = Hello("fra", "life", 99, 4, filters="f")
    assert hello_codec.read_hello(hello_codec.hello_reply(hello)) == hello
    names: list[Name] = [_change().name, _tombstone().name]
    assert feed_codec.read_keys_request(feed_codec.keys_request(names)) == names
    reply = feed_codec.keys_reply([_tombstone()])
    told = {names[0]: None, names[1]: _tombstone()}
    assert feed_codec.read_keys_reply(reply, names) == told
    have = feed_codec.have_request(Repository("a"), [DIGEST])
    assert feed_codec.read_have_request(have) == ("a", [DIGEST])
    assert feed_codec.read_have_reply(feed_codec.have_reply([DIGEST])) == {DIGEST}
    asked = feed_codec.repository_request(Repository("a"), Filter())
    assert feed_codec.read_repository_request(asked) == ("a", Filter())
    record = FollowRecord("following", 1, 2, 3, 4, "error", 5, unheard_since_ms=6)
    assert follow_codec.decode_follow(follow_codec.encode_follow(record)) == record


def _spoilt(spoil: Callable[[pb.Change], object]) -> pb.Change:
    message = feed_codec.change_message(_change())
    spoil(message)
    return message


def _set(field: str, value: object) -> Callable[[pb.Change], object]:
    return lambda change: setattr(change, field, value)


def _set_sibling(field: str, value: object) -> Callable[[pb.Change], object]:
    return lambda change: setattr(change.register.siblings[0], field, value)


SPOILT: dict[str, Callable[[pb.Change], object]] = {
    "no repository": _set("repository", ""),
    "an upper-case repository": _set("repository", "Team/App"),
    "a path for a repository": _set("repository", "../../etc"),
    "a tag with a space": _set("tag", "no tag"),
    "a cut digest": _set("digest", b"\x01short"),
    "a digest of no algorithm": _set("digest", b"\x09" + bytes(32)),
    "a digest and more": _set("digest", DIGEST.packed + b"more"),
    "another manifest's digest": _set("digest", Digest.of(b"another").packed),
    "a revision out of range": _set("revision", 2**63),
    "no name": lambda change: change.ClearField("digest"),
    "a sibling outside of the context": lambda change: change.register.ctx.clear(),
    "an actor without a name": lambda change: change.register.ctx.update({"": 4}),
    "a dot out of range": lambda change: change.register.ctx.update({"x": 2**63}),
    "a dot of nothing": lambda change: change.register.ctx.update({"x": 0}),
    "a sibling without a digest": _set_sibling("digest", b""),
    "a sibling without a dot": _set_sibling("n", 0),
    "a sibling that nobody has seen": _set_sibling("n", 8),
    "a time before time": _set_sibling("ms", -1),
    "a time that can't be outdone": _set_sibling("ms", 2**60),
    "a header in a media type": _set_sibling("media_type", "a/b\r\nSet-Cookie: x"),
    "no media type": _set_sibling("media_type", ""),
    "a size out of range": _set_sibling("size", 2**63),
    "a cut subject": _set_sibling("subject", b"\x01"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_change_that_no_site_could_have_written_is_refused(
    spoil: Callable[[pb.Change], object],
) -> None:
    """One bad field is enough; in a batch it costs its repository and no other."""
    spoilt = _spoilt(spoil)
    with pytest.raises(ValueError, match=r"\w"):
        feed_codec.read_change(spoilt)
    good = feed_codec.change_message(_change())
    message = pb.ChangeBatch(incarnation="life", changes=[good, spoilt], revision=1)
    if spoilt.repository == good.repository:
        batch = feed_codec.read_batch(message)
        assert batch.changes == (_change(),)
        assert list(batch.unreadable) == [good.repository]
    else:
        with pytest.raises(ValueError, match=r"\w"):
            feed_codec.read_batch(message)


REQUESTS = {
    "neither start nor ack": pb.ChangesRequest(),
    "an ack of no life": pb.ChangesRequest(ack=pb.Ack(revision=1)),
    "a cursor out of range": pb.ChangesRequest(start=pb.Start(after=2**64 - 1)),
    "too many patterns": pb.ChangesRequest(start=pb.Start(filter=pb.Filter(tags=["*"] * 1000))),
    "a long pattern": pb.ChangesRequest(
        start=pb.Start(filter=pb.Filter(repositories=["*" * 1000]))
    ),
}


@pytest.mark.parametrize("message", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_that_makes_no_sense_is_refused(message: pb.ChangesRequest) -> None:
    """Neither numbers without bound nor filters without end are taken from a peer."""
    with pytest.raises(ValueError, match=r"\w"):
        feed_codec.read_changes_request(message)


def test_an_answer_to_what_was_not_asked_is_refused() -> None:
    """A peer can't slip other registers in."""
    reply = feed_codec.keys_reply([_tombstone()])
    with pytest.raises(ValueError, match="not asked"):
        feed_codec.read_keys_reply(reply, [_change().name])


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(content: bytes) -> None:
    """Whatever a message holds, reading it ends in a value or in a ValueError."""
    message = pb.ChangeBatch()
    try:
        message.ParseFromString(content)
    except Exception:  # noqa: BLE001 - what grpc refuses before we see it
        return
    with suppress(ValueError):
        feed_codec.read_batch(message)
