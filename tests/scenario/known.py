"""What a site of the world knows at a moment, and whom that keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from node import keys
from node.keys import ManifestName, TagName
from node.records import Pushed
from node.register import Register, merge
from tests.scenario.images import BY_DIGEST, Image
from tests.scenario.judge import NEVER
from tests.scenario.oracle import Intent
from tests.scenario.site import SimSite

N = TypeVar("N", ManifestName, TagName)


def newest(site: SimSite) -> int:
    """The revision of the last change."""
    return max((change.revision for change in site.registers()), default=0)


def registers(site: SimSite, kind: type[N]) -> dict[N, Register[Pushed]]:
    """All registers of manifests, or of tags."""
    return {c.name: c.register for c in site.registers() if isinstance(c.name, kind)}


def manifests(site: SimSite) -> dict[ManifestName, Register[Pushed]]:
    """All registers of manifests."""
    return registers(site, ManifestName)


def with_children(image: Image) -> list[Image]:
    """An image and all manifests that it needs."""
    return [image, *(one for child in image.children for one in with_children(child))]


def following(label: str, site: SimSite, source: SimSite) -> Intent:
    """What a site may do on account of a peer, from now."""
    return Intent(label, keeps=keeps(site, source), deletes=source.name not in site.kept_from)


def keeps(site: SimSite, source: SimSite) -> Callable[[ManifestName], bool]:
    """Whether some index of a manifest is live at a site, by all its source knew and knows, or on
    its way there.
    """
    known = manifests(source)

    def is_kept(child: ManifestName) -> bool:
        now = manifests(source)
        parents = [
            name
            for name, register in manifests(site).items()
            if register.live
            and any(merge(register, told.get(name, NEVER)).live for told in (known, now))
        ]
        staged = [keys.staged(entry.key) for entry in site.kv._stored.within(*keys.STAGES)]
        return any(_lists(name, child) for name in (*parents, *staged))

    return is_kept


def _lists(index: ManifestName, child: ManifestName) -> bool:
    children = {one.digest for one in BY_DIGEST[index.digest].manifest.children}
    return index.repository == child.repository and child.digest in children
