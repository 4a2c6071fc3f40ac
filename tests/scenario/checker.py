"""Whether a site's metadata is sound: everything that must hold at every revision of its KV.

`check_site` reads plain keys and values, so it judges a simulated site and a real one alike.  The
local indexes are recomputed from the registers and compared; of what is being tidied up behind a
dead manifest, less is asked until `quiet`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from node import keys
from node.digest import Digest
from node.keys import ManifestName, TagName
from node.manifest import MEDIA_TYPES, Manifest
from node.records import BlobRecord, Pushed
from node.reference import Repository
from node.register import Register
from node.wire import codec


class Violation(AssertionError):
    """A promise was broken; the text says which and where."""


def require(held: object, what: str, *about: object) -> None:
    """Raise a Violation unless something holds; what it is about is formatted only then."""
    if not held:
        raise Violation(what.format(*about))


decode_register = lru_cache(maxsize=1 << 16)(codec.decode_register)
parse_register = lru_cache(maxsize=1 << 16)(keys.parse_register)


@dataclass
class State:
    """A site's entries, sorted by what they are."""

    manifests: dict[ManifestName, Register[Pushed]] = field(default_factory=dict)
    tags: dict[TagName, Register[Pushed]] = field(default_factory=dict)
    blobs: dict[Digest, BlobRecord] = field(default_factory=dict)
    pins: dict[bytes, bytes] = field(default_factory=dict)
    references: dict[bytes, bytes] = field(default_factory=dict)
    stages: set[ManifestName] = field(default_factory=set)
    indexes: dict[bytes, set[bytes]] = field(default_factory=dict)

    def live(self, name: ManifestName) -> bool:
        """Whether a manifest is live."""
        register = self.manifests.get(name)
        return register is not None and register.live


def read_state(entries: Mapping[bytes, bytes]) -> State:
    """Sort a site's keys and values."""
    state = State(indexes={kind: set() for kind in (b"tr", b"l", b"f", b"c", b"x")})
    for key, value in entries.items():
        kind = key[: key.find(b"/")]
        if kind in (b"M", b"T"):
            match parse_register(key):
                case ManifestName() as manifest:
                    state.manifests[manifest] = decode_register(value)
                case TagName() as tag:
                    state.tags[tag] = decode_register(value)
                case None:
                    raise Violation(f"{key!r} is no replicated name")
        elif kind == b"b":
            state.blobs[Digest.take(key, 2)[0]] = codec.decode_blob(value)
        elif kind == b"u":
            state.pins[key] = value
        elif kind == b"r":
            state.references[key] = value
        elif kind in state.indexes:
            state.indexes[kind].add(key)
    state.stages = {keys.staged(key) for key in entries if key.startswith(b"g/")}
    return state


def check_site(
    entries: Mapping[bytes, bytes],
    manifest_of: Callable[[Digest], Manifest],
    *,
    quiet: bool = False,
) -> State:
    """Check a site's metadata; `quiet` if nothing is in work and all clearing is done.

    Raises:
        Violation: It is not sound.
    """
    state = read_state(entries)
    for name, register in state.manifests.items():
        if register.live:
            _check_live(state, name, manifest_of(name.digest))
    _check_blobs(state)
    _check_references(state)
    _check_tag_indexes(state)
    _check_manifest_indexes(state, manifest_of, quiet=quiet)
    if quiet:
        _check_quiet(state)
    return state


def _check_live(state: State, name: ManifestName, manifest: Manifest) -> None:
    repository, digest = name
    for needed in (digest, *(d.digest for d in (*manifest.blobs, *manifest.children))):
        key = keys.reference(needed, repository, digest)
        require(key in state.references, "live {} lacks its reference to {}", name, needed)
    for child in manifest.children:
        if child.media_type in MEDIA_TYPES:
            live = state.live(ManifestName(repository, child.digest))
            require(live, "live index {} refers to a dead child {}", name, child.digest)


def _check_blobs(state: State) -> None:
    for key in (*state.references, *state.pins):
        digest = Digest.take(key, 2)[0]
        require(digest in state.blobs, "a reference or pin of {} stands without its blob", digest)


def _check_references(state: State) -> None:
    for key in state.references:
        name = _referring(key)
        known = name in state.manifests or name in state.stages
        require(known, "a reference by {} stands, and nobody will ever find it", name)


def _referring(key: bytes) -> ManifestName:
    _, start = Digest.take(key, 2)
    repository = Repository(key[start : key.index(b"\0", start)].decode())
    return ManifestName(repository, keys.referring(key))


def _check_tag_indexes(state: State) -> None:
    tagged, live, conflicts = set(), set(), set()
    for (repository, tag), register in state.tags.items():
        for dot, value in register.siblings.items():
            manifest = state.manifests.get(ManifestName(repository, value.digest))
            seen = manifest is not None and manifest.has_seen(dot)
            require(seen, "tag {}:{} shows a push that its manifest has not seen", repository, tag)
        named = {value.digest for value in register.siblings.values()}
        tagged |= {keys.tagged(repository, digest, tag) for digest in named}
        if named:
            live.add(keys.live_tag(repository, tag))
        if len(named) > 1:
            conflicts.add(keys.conflict(repository, tag))
    require(tagged == state.indexes[b"tr"], "the reverse index of tags is not what the tags say")
    require(live == state.indexes[b"l"], "the list of tags is not what the tags say")
    require(conflicts == state.indexes[b"x"], "the list of conflicts is not what the tags say")


def _check_manifest_indexes(
    state: State, manifest_of: Callable[[Digest], Manifest], *, quiet: bool
) -> None:
    referrers: set[bytes] = set()
    repositories: set[Repository] = set()
    for name, register in state.manifests.items():
        if not register.live:
            continue
        repositories.add(name.repository)
        subject = manifest_of(name.digest).subject
        if subject is not None:
            referrers.add(keys.referrer(name.repository, subject.digest, name.digest))
    require(referrers == state.indexes[b"f"], "the referrers are not what the manifests say")
    catalog = {keys.repository(repository) for repository in repositories}
    require(catalog <= state.indexes[b"c"], "a repository with live content is not listed")
    require(not quiet or catalog == state.indexes[b"c"], "an empty repository is listed")


def _check_quiet(state: State) -> None:
    for (repository, tag), register in state.tags.items():
        for value in register.siblings.values():
            live = state.live(ManifestName(repository, value.digest))
            require(live, "tag {}:{} names a dead manifest {}", repository, tag, value.digest)
    for key in state.references:
        name = _referring(key)
        require(state.live(name), "a reference by {}, which is dead, is left", name)
    require(not state.stages, "a stage of {} is left", state.stages)
