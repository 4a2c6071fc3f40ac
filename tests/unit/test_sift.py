"""What of a batch is new here: by one read, and only to save work."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pytest

from node.change import Change
from node.digest import Digest
from node.errors import MetadataUnavailable
from node.keys import Name, TagName
from node.kv import Put
from node.manifest import OCI_MANIFEST
from node.records import Pushed
from node.reference import Repository, Tag
from node.register import Dot, Register
from replicator import sift as sift_module
from replicator.sift import sift
from tests.following import DEADLINE_S, Here, There
from tests.waiting import eventually

IMAGE, OTHER = Digest.of(b"image"), Digest.of(b"other")
NEVER: Register[Pushed] = Register()


def _name(number: int) -> TagName:
    return TagName(Repository("app"), Tag(f"v{number}"))


def _pushed(
    digest: Digest, actor: str = "a", n: int = 1, before: Register[Pushed] = NEVER
) -> Register[Pushed]:
    return before.push(Dot(actor, n), Pushed(n, digest, OCI_MANIFEST, 7, f"{actor}{n}"))


@dataclass
class _Site:
    """What a site holds; its KV answers only so many reads."""

    held: dict[Name, Register[Pushed]] = field(default_factory=dict)
    answers: int = 10
    asked: int = 0

    async def registers(self, names: Collection[Name]) -> Mapping[Name, Register[Pushed]]:
        """See Held."""
        self.asked += 1
        if self.asked > self.answers:
            raise MetadataUnavailable("it snows")
        return {name: self.held.get(name, NEVER) for name in names}


HERE = _pushed(IMAGE)


@pytest.mark.parametrize(
    ("held", "told", "known"),
    [
        pytest.param(NEVER, HERE, False, id="never heard of"),
        pytest.param(HERE, HERE, True, id="the same"),
        pytest.param(_pushed(OTHER, "b", 2, HERE), HERE, True, id="what was replaced here"),
        pytest.param(HERE, _pushed(OTHER, "b", 2, HERE), False, id="a newer push"),
        pytest.param(HERE, _pushed(OTHER, "b", 2), False, id="a concurrent push"),
        pytest.param(HERE, HERE.delete(Dot("b", 2)), False, id="a delete"),
        pytest.param(HERE.delete(Dot("b", 2)), HERE, False, id="what is dead here"),
    ],
)
async def test_what_is_known(held: Register[Pushed], told: Register[Pushed], known: bool) -> None:
    """Known is what changes nothing of what lives; the dead may have something left to clear."""
    change = Change(_name(1), told, 1)
    sifted = await sift(_Site({_name(1): held}), [change])
    assert (list(sifted.news), list(sifted.known)) == (([], [change]) if known else ([change], []))


async def test_a_name_that_is_told_twice() -> None:
    """Each of its changes is looked at for itself."""
    old, new = Change(_name(1), HERE, 1), Change(_name(1), _pushed(OTHER, "b", 2, HERE), 2)
    sifted = await sift(_Site({_name(1): HERE}), [old, new])
    assert (list(sifted.news), list(sifted.known)) == ([new], [old])


async def test_both_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it takes several reads."""
    monkeypatch.setattr(sift_module, "_AT_ONCE", 3)
    site = _Site({_name(n): HERE for n in range(0, 10, 2)})
    changes = [Change(_name(n), HERE, n) for n in range(10)]
    sifted = await sift(site, changes)
    assert list(sifted.news) == changes[1::2]
    assert list(sifted.known) == changes[::2]
    assert site.asked == 4


async def test_without_an_answer_all_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told before is believed, and what was not is left to whoever applies it."""
    monkeypatch.setattr(sift_module, "_AT_ONCE", 3)
    site = _Site({_name(n): HERE for n in range(10)}, answers=1)
    changes = [Change(_name(n), HERE, n) for n in range(10)]
    sifted = await sift(site, changes)
    assert list(sifted.known) == changes[:3]
    assert list(sifted.news) == changes[3:]
    assert not (await sift(_Site(), [])).news


async def test_what_another_peer_has_brought_is_acknowledged_and_not_applied() -> None:
    """Whoever waits for it may ask any peer; told by a scan or not, it is no work."""
    here, there = Here(forgetful=False), There()
    await there.model.image("v1")
    await _brought(here, there)
    async with here.following(there.peer):
        async with there.up():
            await eventually(here.passed, DEADLINE_S, "the scan is over")
        await there.model.image("v2", layer=b"other")
        pushed = await there.revision()
        await _brought(here, there)
        async with there.up():
            await eventually(lambda: there.acked() >= pushed, DEADLINE_S, "it is acknowledged")
            assert here.measured("replication_lag_seconds_count") == 2
            await there.model.image("v3", layer=b"another")
            await eventually(lambda: here.tags == ["v3"], DEADLINE_S, "what is new is applied")
    assert len(here.applied) == 2


async def test_what_is_known_of_a_parked_repository_is_counted_once() -> None:
    """Its catching up counts what was left out, and this with it."""
    here, there = Here(forgetful=False, failing="no blob"), There()
    await there.model.image("v1")
    async with here.following(there.peer):
        async with there.up():
            await eventually(lambda: here.parks, DEADLINE_S, "it is parked")
            await eventually(here.passed, DEADLINE_S, "the scan is over")
        await there.model.image("v2", layer=b"other")
        pushed = await there.revision()
        await _brought(here, there)
        async with there.up():
            await eventually(lambda: here.reached >= pushed, DEADLINE_S, "it is told")
            assert not here.measured("replication_lag_seconds_count")
            here.failing = ""
            await eventually(lambda: not here.parks, DEADLINE_S, "it has caught up")
    assert here.measured("replication_lag_seconds_count") == 4


async def _brought(here: Here, there: There) -> None:
    for key, value in there.model.kv.entries().items():
        if key.startswith((b"M/", b"T/")):
            await here.kv.txn([], [Put(key, value)])
