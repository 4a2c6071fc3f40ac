"""A tag in conflict: pushes of other sites that this one had not heard of, just arrived."""

from __future__ import annotations

from typing import Final

from node.digest import Digest
from node.keys import ManifestName, TagName
from node.manifest import parse_manifest
from node.records import Pushed
from node.reference import Repository, Tag
from node.register import Dot, Register, merge
from node.replica import Landed, Replica
from tests.registry import REPOSITORY, Served

_REPOSITORY: Final = Repository(REPOSITORY)


async def arrives(registry: Served, tag: str, body: bytes, *, site: str, ms: int) -> str:
    """Apply a push to a tag that another site made at a time by its clock, and return its digest.

    All that the manifest needs is here.
    """
    digest = Digest.parse(await registry.push_manifest(body))
    manifest = parse_manifest(body, None)
    value = Pushed(ms, digest, manifest.media_type, len(body), f"op of {site}")
    actor = f"{site}#1"
    theirs = Register({actor: ms}, {Dot(actor, ms): value})
    replica = Replica(registry.site.decider, registry.site.staging, new_id=registry.new_id)
    name, of = ManifestName(_REPOSITORY, digest), TagName(_REPOSITORY, Tag(tag))
    held = await replica.manifest(name, manifest)
    landed = await replica.apply_manifest(name, held, merge(held.register, theirs))
    assert landed is Landed.APPLIED
    tagged = await replica.tag(of, theirs)
    landed = await replica.apply_tag(of, tagged, merge(tagged.register, theirs), ())
    assert landed is Landed.APPLIED
    return str(digest)
