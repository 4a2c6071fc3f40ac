"""Where an image is, and where not and why: as this site knows it, from what its peers have acked.

A peer that has acked a revision has applied everything up to it that both filters let through, so
what was last written before that is there.  A later write of the same name is another revision, and
takes a later ack.  What a peer did to an image on its own is known here once it is applied here.

Of an image that this site does not have it knows what keeps it from having it: whether it was
deleted, which peers it does not reach, which of their repositories it has parked, and what is still
on its way.  When that is expected is by the speed of the last minute, of all that is fetched from
one site: nobody knows more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from node import keys
from node.acked import MOST, acked, applied, behind, let_through, park_of, read_ack
from node.config_models import Peer
from node.digest import Digest
from node.errors import ImageUnknown
from node.keys import ManifestName, Name, TagName
from node.kv import KV, only
from node.records import Ack, Parked, ParkedThere, Pushed, SiteRecord, site_of
from node.reference import Reference, Repository
from node.register import Dot
from node.roots import passes
from node.tag_transactions import is_live, register_at, sibling_ranges
from node.transaction import Reader, Seen, look
from node.wire import codec, follow_codec
from node.wire.follow_codec import FollowRecord


class State(StrEnum):
    """Whether a site has an image."""

    THERE = "there"
    ON_ITS_WAY = "on its way"
    PARKED = "parked"
    NOT_TAKEN = "not taken"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Place:
    """One site, and whether it has the image; times are in ms since the epoch by this site's clock.

    `detail` says it in words.  `address` is where the site is reached from here, None of this site.
    `acked` is this site's revision up to which all of the repository is applied there, `behind` how
    many changes come before the image and with it (`MOST`: so many or more), `heard_ms` when the
    site last spoke, None if it never did.
    What is on its way comes with `bytes_to_go` that are being fetched, and is expected with the
    last of them at `expected_ms`; None where nobody knows.
    A repository that is parked is so since `since_ms`, was tried `attempts` times in vain, failed
    with `error`, and is tried again at `next_ms`.
    """

    site: str
    state: State
    detail: str
    address: str | None = None
    since_ms: int | None = None
    acked: int | None = None
    behind: int | None = None
    heard_ms: int | None = None
    attempts: int | None = None
    next_ms: int | None = None
    error: str | None = None
    bytes_to_go: int | None = None
    expected_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """What a reference shows at this site, since which revision; pushed when (ms) and where."""

    repository: Repository
    reference: str
    digest: Digest
    media_type: str
    size: int
    revision: int
    pushed_ms: int
    pushed_at: str
    sites: tuple[Place, ...]
    now_ms: int


@dataclass(frozen=True, slots=True)
class _Shown:
    """A name that shows something: what, by which write, since which revision of the KV."""

    name: Name
    value: Pushed
    dot: Dot
    revision: int


class Whereabouts:
    """Says where images of one site are; `reader` may be stale where the caller lets it."""

    def __init__(
        self,
        record: SiteRecord,
        reader: Reader,
        kv: KV,
        peers: Sequence[Peer],
        *,
        clock_ms: Callable[[], int],
    ) -> None:
        self._record = record
        self._reader = reader
        self._kv = kv
        self._peers = peers
        self._clock_ms = clock_ms

    async def find(self, repository: Repository, reference: Reference) -> Image:
        """Where the image is that a reference shows here.

        Raises:
            ImageUnknown: It shows none here; why not, as far as that is known.
            MetadataUnavailable: No answer in time.
        """
        name = _name(repository, reference)
        shown, seen = await self._shown(name)
        parks = {peer.site: _park(seen, peer, repository) for peer in self._peers}
        if shown is None:
            raise self._absent(name, seen, parks)
        places = [self._here(shown, parks)]
        for peer in self._peers:
            ack = read_ack(seen.entry(keys.ack(peer.site)))
            before = None
            stands = ack is not None and acked(peer, ack, self._record.incarnation) > 0
            if ack is not None and stands and applied(ack.report, repository) < shown.revision:
                before = await behind(self._kv, peer, ack, shown.revision)
            places.append(place(self._record, peer, ack, name, shown.revision, before=before))
        return Image(
            repository,
            str(reference),
            shown.value.digest,
            shown.value.media_type,
            shown.value.size,
            shown.revision,
            shown.value.ms,
            site_of(shown.dot.actor),
            tuple(places),
            self._clock_ms(),
        )

    async def _shown(self, name: Name) -> tuple[_Shown | None, Seen]:
        """What the name shows, and what its manifests, the peers' acks and parks were then."""
        key, repository = keys.register(name), name.repository
        more = [
            only(of(peer.site))
            for peer in self._peers
            for of in (keys.ack, keys.status, lambda site: keys.parked(site, repository))
        ]
        seen = await look(self._reader, [only(key)])
        while True:
            entry = seen.entry(key)
            register = register_at(seen, key)
            ranges = [only(key), *sibling_ranges(repository, [register]), *more]
            seen = await look(self._reader, ranges)
            if seen.entry(key) == entry:
                break
        value = register.shown(lambda one: is_live(seen, repository, one.digest))
        if entry is None or value is None:
            return None, seen
        dot = next(dot for dot, one in register.siblings.items() if one == value)
        # A tag shows again what is pushed again by its digest alone.
        manifest = seen.entry(keys.manifest(repository, value.digest))
        revision = max(entry.modified, manifest.modified if manifest else 0)
        return _Shown(name, value, dot, revision), seen

    def _here(self, shown: _Shown, parks: Mapping[str, Parked | None]) -> Place:
        where = site_of(shown.dot.actor)
        own = where == self._record.name
        detail = "pushed here" if own else f"pushed at {where}"
        for site, park in parks.items():
            if park is not None:
                why = f"left out: {park.reason}" if park.attempts else "being fetched"
                detail += f"; what {site} changed since in {shown.name.repository} is {why}"
        return Place(
            self._record.name, State.THERE, detail, since_ms=shown.value.ms if own else None
        )

    def _absent(self, name: Name, seen: Seen, parks: Mapping[str, Parked | None]) -> ImageUnknown:
        here = self._record.name
        sources = [
            source(here, peer, name, parks[peer.site], _followed(seen, peer))
            for peer in self._peers
        ]
        reasons = [one.detail for one in sources if one.error or one.state is not State.UNKNOWN]
        if seen.entry(keys.register(name)) is not None:
            reasons.insert(0, f"{here} knows that it was deleted")
        told = [asdict(one) for one in sources]
        return ImageUnknown(spelt(name), here, reasons, told, self._clock_ms())


def _name(repository: Repository, reference: Reference) -> Name:
    if isinstance(reference, Digest):
        return ManifestName(repository, reference)
    return TagName(repository, reference)


def spelt(name: Name) -> str:
    """A tag or a manifest as people write it."""
    match name:
        case TagName(repository, tag):
            return f"{repository}:{tag}"
        case ManifestName(repository, digest):
            return f"{repository}@{digest}"


def place(
    here: SiteRecord, peer: Peer, ack: Ack | None, name: Name, revision: int, *, before: int | None
) -> Place:
    """Whether a peer has what was written here under a name at a revision, by its last ack.

    `before` is how many changes it lacks up to that.
    """
    site, ours = peer.site, let_through(peer)
    place = Place(site, State.UNKNOWN, f"{site} has never followed {here.name}", peer.http)
    if not passes(name, (ours,)):
        detail = f"{here.name} does not tell {site} of it"
        return replace(place, state=State.NOT_TAKEN, detail=detail)
    if ack is None:
        return place
    place = replace(place, heard_ms=ack.ms)
    if not passes(name, (ack.theirs,)):
        detail = f"{site} does not take it from {here.name}"
        return replace(place, state=State.NOT_TAKEN, detail=detail)
    if ack.report.incarnation != here.incarnation or ack.ours != ours.fingerprint:
        detail = f"what {site} said last was about another life, or other filters, of {here.name}"
        return replace(place, detail=detail)
    return _by_ack(replace(place, behind=before), here.name, ack, name.repository, revision)


def _by_ack(place: Place, here: str, ack: Ack, repository: Repository, revision: int) -> Place:
    has = applied(ack.report, repository)
    said = replace(place, acked=has)
    if has >= revision:
        return replace(said, state=State.THERE, detail=_there(place.site, ack))
    park = park_of(ack.report, repository)
    park = park if park is not None and park.first <= revision else None
    if park is not None and park.attempts:
        return _parked(said, f"{place.site} has parked {repository} of {here}", park)
    detail, error = _on_its_way(said, ack, park)
    said = replace(said, state=State.ON_ITS_WAY, detail=detail, error=error)
    if error is not None:
        return said
    since_ms = park.since_ms or None if park else None
    report = ack.report
    return _expected(replace(said, since_ms=since_ms), report.bytes_to_go, report.seconds_left, ack)


def _there(site: str, ack: Ack) -> str:
    if ack.stream:
        return f"{site} has applied it"
    return f"{site} had applied it when it was last heard, and is not connected now"


def _parked(place: Place, what: str, park: Parked | ParkedThere) -> Place:
    return replace(
        place,
        state=State.PARKED,
        detail=f"{what}: {park.reason}",
        since_ms=park.since_ms,
        attempts=park.attempts,
        next_ms=park.next_ms or None,
        error=park.reason,
    )


def _expected(
    place: Place, bytes_to_go: int | None, seconds_left: int | None, told: Ack | FollowRecord
) -> Place:
    """A place, with when all is there that was said to be on its way."""
    expected_ms = None if seconds_left is None else told.ms + 1000 * seconds_left
    return replace(place, bytes_to_go=bytes_to_go or None, expected_ms=expected_ms)


def _on_its_way(place: Place, ack: Ack, at_work: ParkedThere | None) -> tuple[str, str | None]:
    if not ack.stream:
        error = f"{place.site} is not connected"
        return f"{error}, and has not been heard since", error
    if at_work is not None:
        return f"{place.site} is at work on {at_work.repository}", None
    before = place.behind
    count = "some" if before is None else f"{before}{' or more' if before >= MOST else ''}"
    detail = f"{place.site} has {count} changes to go ({ack.report.state or 'following'})"
    unlisted = ack.report.parked_count - len(ack.report.parked)
    if unlisted > 0:
        detail += f", and has parked {unlisted} repositories more than it could name"
    return detail, None


def source(
    here: str,
    peer: Peer,
    name: Name,
    park: Parked | None,
    record: FollowRecord | None,
) -> Place:
    """Why an image that a peer may have is not here; unknown, and no error, where nothing is."""
    site = peer.site
    place = Place(site, State.UNKNOWN, f"nothing is on its way from {site}", peer.http)
    if not peer.follow or not passes(name, (let_through(peer),)):
        detail = f"{here} does not take it from {site}"
        return replace(place, state=State.NOT_TAKEN, detail=detail)
    if park is not None and park.attempts:
        return _parked(place, f"{here} has parked {name.repository} of {site}", park)
    if record is None:
        error = f"no replicator of {here} follows {site}"
        return replace(place, detail=error, error=error)
    if record.state not in {"following", "parked", "scanning"}:
        error = record.last_error or "not everything has been read"
        detail = f"{site} is {record.state}: {error}"
        since_ms, heard_ms = record.unheard_since_ms or None, record.heard_ms or None
        return replace(place, detail=detail, since_ms=since_ms, heard_ms=heard_ms, error=error)
    waiting = max(0, record.head - record.revision)
    if park is not None:
        detail = f"{here} is at work on {name.repository} of {site}"
        place = replace(place, detail=detail, since_ms=park.since_ms)
    elif record.state == "scanning":
        place = replace(place, detail=f"{here} does not have all of {site} yet")
    elif waiting:
        detail = f"{here} has {waiting} revisions of {site} to go"
        place = replace(place, detail=detail, behind=waiting)
    else:
        return place
    place = replace(place, state=State.ON_ITS_WAY)
    return _expected(place, record.bytes_to_go, record.expected_s, record)


def _park(seen: Seen, peer: Peer, repository: Repository) -> Parked | None:
    entry = seen.entry(keys.parked(peer.site, repository))
    return None if entry is None else codec.decode_parked(entry.value)


def _followed(seen: Seen, peer: Peer) -> FollowRecord | None:
    entry = seen.entry(keys.status(peer.site))
    return None if entry is None else follow_codec.decode_follow(entry.value)
