"""A site over an etcd that answers badly: replies that get lost, no room left, a deposed leader."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from node import keys
from node.election import Candidate, Deposed
from node.kv import KV, DeleteRange, Entry, Guard, Ok, Op, Outcome, Put, Range, prefix
from node.kv_etcd import Access, EtcdKV
from node.records import Action, Cursor, Parked
from node.reference import Repository
from node.wire import codec
from node.wire.follow_codec import FollowRecord
from replicator.checkpoint import Checkpoint
from replicator.duties import following
from tests.etcd import Etcd, keyspace, opened, running
from tests.faults.lossy import lossy
from tests.faults.registry import OCI_MANIFEST, Blob, Image, Refused, Registry, new_image
from tests.kv_calls import commit, get
from tests.nodes import health, nodes, prefix_of
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY: Final = "team/app"
WITHIN_S: Final = 120.0


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """Another process's gateway is what is tested: a guard here would only be slow."""
    return iter([None])


@asynccontextmanager
async def _gateway(
    folder: Path, etcd: Etcd, *endpoints: str
) -> AsyncIterator[tuple[Site, Registry]]:
    """A gateway over an etcd that is reached at other endpoints if given, and its client."""
    site, _ = nodes("fra", folder, etcd, programs=("gateway",), endpoints=endpoints)
    with ended(site):
        await site.start()
        try:
            async with Registry.at(site.url) as at:
                yield site, at
        finally:
            site.show_logs()
        await site.stop_all()


# --- F27

Told: TypeAlias = tuple[Action, str | None, str]
"""An event: what was done, to which tag (None: to a manifest), of which digest."""


async def _one_round(at: Registry, tag: str, first: Image, other: Image) -> list[Told]:
    """Four pushes and two deletes, each answered as if nothing was lost; the events they are."""
    await at.push(REPOSITORY, first, tag)
    await at.put_manifest(REPOSITORY, first.manifest, tag)
    await at.put_manifest(REPOSITORY, other.manifest, tag)
    await at.delete(REPOSITORY, tag)
    await at.put_manifest(REPOSITORY, first.manifest, tag)
    await at.delete(REPOSITORY, other.digest)
    return [
        (Action.PUSH, tag, first.digest),
        (Action.PUSH, tag, other.digest),
        (Action.DELETE, tag, other.digest),
        (Action.PUSH, tag, first.digest),
        (Action.DELETE, None, other.digest),
    ]


def _again(image: Image, number: int) -> Image:
    """Another image of the same blobs."""
    document = json.loads(image.manifest.content) | {"annotations": {"number": str(number)}}
    return replace(image, manifest=Blob(OCI_MANIFEST, json.dumps(document).encode()))


async def _lose_replies(folder: Path, etcd: Etcd, pushes: int) -> None:
    dice = random.Random(27)
    rounds = {f"v{number}": new_image(dice) for number in range(pushes // 4)}
    others = {tag: _again(image, 2) for tag, image in rounds.items()}
    expected: Counter[Told] = Counter()
    started = asyncio.Event()  # a first start that is not sure of its record begins anew
    async with (
        lossy(etcd.endpoints[0], lambda _: started.is_set() and dice.random() < 0.1) as address,
        _gateway(folder, etcd, address) as (site, at),
        opened(*etcd.endpoints, at=prefix_of(site)) as kv,
    ):
        left = iter(rounds.items())
        started.set()

        async def work() -> None:
            for tag, image in left:
                expected.update(await _one_round(at, tag, image, others[tag]))

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(work())
        for tag, image in rounds.items():
            assert await at.pull(REPOSITORY, tag) == image.digest
            assert await at.shows(REPOSITORY, others[tag].digest) is None
        (entries,) = (await kv.read([prefix(b"ev/")])).ranges
    events = [codec.decode_event(entry.value) for entry in entries]
    assert Counter((event.action, event.tag, str(event.digest)) for event in events) == expected


async def test_a_lost_reply_is_no_second_push(tmp_path: Path, etcd: Etcd) -> None:
    """F27: a tenth of etcd's replies is lost; each push and delete is one: its status, its event.

    120 pushes, fresh ones and of what is there, and 60 deletes: 1,000 would take minutes.
    """
    await _lose_replies(tmp_path, etcd, 120)


@pytest.mark.torture
@pytest.mark.timeout(2 * 3600)
async def test_lost_replies_are_no_second_pushes(tmp_path: Path, etcd: Etcd) -> None:
    """F27, 50,000 pushes and 25,000 deletes."""
    await _lose_replies(tmp_path, etcd, 50_000)


# --- F17


def _etcdctl(etcd: Etcd, *command: str) -> str:
    return subprocess.run(
        ("etcdctl", f"--endpoints={','.join(etcd.endpoints)}", *command),
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


async def test_a_full_etcd_takes_no_push_and_answers_every_pull(tmp_path: Path) -> None:
    """F17: pushes get 503, pulls go on, and the documented steps mend it within a minute."""
    dice = random.Random(17)
    kept, refused = new_image(dice), new_image(dice)
    with running(1, f"--quota-backend-bytes={4 << 20}") as etcd:
        async with _gateway(tmp_path, etcd) as (site, at), opened(*etcd.endpoints) as other:
            await at.push(REPOSITORY, kept, "kept")
            big = (Put(b"big/%d" % number, bytes(200_000)) for number in count())
            while isinstance(await other.txn([], [next(big)]), Ok):
                pass
            await _refuses(at, refused)
            await _refuses_manifest(at, kept)
            for _ in range(20):
                assert await at.pull(REPOSITORY, "kept") == kept.digest

            async def says_so() -> bool:
                said = await health(site)
                assert said["ready"], said
                return [one.partition(":")[0] for one in said["status"]["store"]] == ["full"]

            await eventually(says_so, WITHIN_S, "the site says that it is full")
            await commit(other, DeleteRange(b"big/", b"big0"))
            await asyncio.to_thread(_make_room, etcd)

            async def pushed() -> bool:
                try:
                    await at.push(REPOSITORY, refused, "after")
                except Refused as err:
                    raise AssertionError(str(err)) from err
                return True

            await eventually(pushed, WITHIN_S, "pushes are taken again")
            for tag, image in (("kept", kept), ("after", refused)):
                assert await at.pull(REPOSITORY, tag) == image.digest


async def _refuses(at: Registry, image: Image) -> None:
    with pytest.raises(Refused) as caught:
        await at.push(REPOSITORY, image, "refused")
    assert caught.value.status == 503


async def _refuses_manifest(at: Registry, image: Image) -> None:
    with pytest.raises(Refused) as caught:
        await at.put_manifest(REPOSITORY, image.manifest, "other")
    assert caught.value.status == 503
    assert await at.shows(REPOSITORY, "other") is None


def _make_room(etcd: Etcd) -> None:
    """What docs/operations.md tells to do once what took the room was deleted."""
    revision = _etcdctl(etcd, "endpoint", "status", "--write-out=fields")
    newest = next(line for line in revision.splitlines() if line.startswith('"Revision"'))
    _etcdctl(etcd, "compact", "--physical", newest.rpartition(" ")[2])
    _etcdctl(etcd, "defrag")
    _etcdctl(etcd, "alarm", "disarm")


# --- I4


class _Held(EtcdKV):
    """What its process sends stays here while `go_on` is not set, as if it was paused just then."""

    def __init__(self, access: Access, at: bytes) -> None:
        super().__init__(access, at)
        self.holding, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
        """Send it when that is allowed."""
        if not self.go_on.is_set():
            self.holding.set()
        await self.go_on.wait()
        return await super().txn(guards, ops)


@asynccontextmanager
async def _closed(kv: EtcdKV) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await kv.close()


@pytest.mark.parametrize("parked", [0, 150], ids=["cursor", "parks before the cursor"])
async def test_a_deposed_follower_is_refused(etcd: Etcd, parked: int) -> None:
    """F6: what a follower sends when its lease has run out and another leads comes to nothing.

    Nobody has moved the cursor since, so only the leader's own key tells that it is too late; many
    parks go before the cursor and bind nothing to the lease.
    """
    at = keyspace()
    parks = {Repository(f"r{n}"): Parked(1, 1, 1, "why", 1) for n in range(parked)}
    paused = _Held(Access(etcd.endpoints), at)
    async with _closed(paused), opened(*etcd.endpoints, at=at) as other:
        lease = await paused.grant(60)
        old = Candidate(paused, following("nyc"), "paused", lease)
        deposed = await old.enter()
        assert await old.is_first(deposed)
        checkpoint = Checkpoint(paused, "nyc", deposed)
        await checkpoint.load()
        await checkpoint.save(Cursor("life", 5), {}, FollowRecord("following"))
        paused.go_on.clear()

        async def succeed() -> dict[bytes, Entry]:
            await paused.holding.wait()
            await other.revoke(lease)  # as if it had run out
            await _succeed(other)
            before = await _all(other)
            paused.go_on.set()
            return before

        saving = checkpoint.save(Cursor("life", 9), parks, FollowRecord("following"))
        saved, before = await asyncio.gather(saving, succeed(), return_exceptions=True)
        assert await _all(other) == before
        assert isinstance(saved, Deposed)
        found = await get(other, keys.cursor("nyc"))
        assert found is not None
        assert codec.decode_cursor(found.value) == Cursor("life", 5)


async def _succeed(kv: KV) -> None:
    """Stand in line until it is one's turn."""
    candidate = Candidate(kv, following("nyc"), "other", await kv.grant(60))
    leadership = await candidate.enter()

    async def leads() -> bool:
        return await candidate.is_first(leadership)

    await eventually(leads, WITHIN_S, "the next one leads")


async def _all(kv: KV) -> dict[bytes, Entry]:
    (found,) = (await kv.read([Range(b"\0", b"\xff")])).ranges
    return {entry.key: entry for entry in found}
