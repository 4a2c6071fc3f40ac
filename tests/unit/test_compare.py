"""One comparison: what is asked for, what may be said of it, and what is not said without proof."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from node import keys
from node.change import Change
from node.errors import PeerUnavailable
from node.globs import Filter
from node.keys import Name, TagName
from node.kv import Put, only
from node.records import Pushed
from node.reference import Repository, Tag
from node.register import Register
from node.roots import Scanned
from node.scans import Scans
from node.wire import codec
from node.wire.follow_codec import Compared, Verdict
from node.wire.roots_codec import TheirNames, TheirRoots
from replicator import compare as compare_module
from replicator.compare import Compare, States
from tests.fake_kv import MemoryKV

FILTERS = (Filter(), Filter())
APP = Repository("app")


async def _nothing() -> None:
    pass


def _tag(n: int) -> TagName:
    return TagName(APP, Tag(f"v{n}"))


async def _write(kv: MemoryKV, *tags: int, n: int = 1) -> None:
    for tag in tags:
        value = codec.encode_register(Register({"fra#1": n}, {}))
        await kv.txn([], [Put(keys.register(_tag(tag)), value)])


@dataclass
class _Pair:
    """Two sites: `here` compares itself with `there`, of which it is the Peer too.

    `before` and `after` happen around the peer's roots, `amid` when names are asked for.
    """

    here: MemoryKV = field(default_factory=MemoryKV)
    there: MemoryKV = field(default_factory=MemoryKV)
    before: Callable[[], Awaitable[None]] = _nothing
    after: Callable[[], Awaitable[None]] = _nothing
    amid: Callable[[], Awaitable[None]] = _nothing
    life: str = "1"
    exact: bool = True
    lost: int = 0
    fed: list[Change] = field(default_factory=list)
    asked: int = 0
    descents: int = 0
    deletes: bool = True
    site: str = "fra"
    pages: tuple[int, int] = (500, 500)
    backwards: bool = False
    held: States | None = None

    async def compare(self, doubt: str = "") -> Compared:
        """What `here` finds."""
        compare = Compare(
            self.here,
            Scans(self.here, page=self.pages[0]),
            self,
            FILTERS,
            "1",
            doubt=lambda: doubt,
            feed=self._feed,
            clock_ms=lambda: 5,
            held=self.held,
        )
        found = await compare.run()
        self.held = compare.states
        return found

    async def _feed(self, changes: Sequence[Change]) -> None:
        self.fed += changes

    async def roots(self) -> TheirRoots | None:
        """See Peer."""
        await self.before()
        scanned: Scanned = await Scans(self.there).roots(FILTERS)
        await self.after()
        scanned = replace(scanned, exact=scanned.exact and self.exact)
        return TheirRoots(self.life, scanned, self.lost)

    async def names(self, buckets: Sequence[int]) -> AsyncGenerator[TheirNames, None]:
        """See Peer."""
        self.descents += 1
        pages = [
            page async for page in Scans(self.there, page=self.pages[1]).names(FILTERS, buckets)
        ]
        for page in pages[:: -1 if self.backwards else 1]:
            yield TheirNames(self.life, page)

    async def keys(self, names: Sequence[Name]) -> Mapping[Name, Change | None]:
        """See Peer."""
        self.asked += len(names)
        await self.amid()
        found: dict[Name, Change | None] = {}
        for name in names:
            ((*entries,),) = (await self.there.read([only(keys.register(name))])).ranges
            for entry in entries:
                register = codec.decode_register(entry.value)
                found[name] = Change(name, register, entry.modified)
        return found


@pytest.fixture
def pair() -> _Pair:
    """Two sites that have nothing."""
    return _Pair()


async def _both(pair: _Pair, *tags: int) -> None:
    await _write(pair.here, *tags)
    await _write(pair.there, *tags)


async def test_equal_states_are_the_same_with_proof(pair: _Pair) -> None:
    """It is said with both revisions, and nothing is asked for but sums."""
    await _both(pair, 1, 2)
    found = await pair.compare()
    here, there = (await pair.here.read([])).revision, (await pair.there.read([])).revision
    assert found == Compared(Verdict.SAME, 5, here, there, tombstones=2)
    assert (pair.asked, pair.fed) == (0, [])


async def test_a_site_that_has_lost_blobs_is_not_the_same(pair: _Pair) -> None:
    """Its tags and manifests are, and what they need is not there."""
    await _both(pair, 1, 2)
    pair.lost = 3
    found = await pair.compare()
    assert found.result is Verdict.UNKNOWN
    assert found.reason == "blobs are lost at the peer: 3"


async def test_what_the_peer_knows_more_of_is_fed(pair: _Pair) -> None:
    """What is missing and what is older here; not what is newer here, nor what only we have."""
    await _both(pair, 1, 2, 3)
    await _write(pair.there, 2, 4, n=7)
    await _write(pair.here, 3, 5, n=9)
    found = await pair.compare()
    assert (found.result, found.differing) == (Verdict.DIFFERS, 2)
    assert {change.name for change in pair.fed} == {_tag(2), _tag(4)}
    assert pair.asked == 3


async def test_what_only_we_have_is_more_than_the_peer_has(pair: _Pair) -> None:
    """We hold all that it has, and nothing of ours is asked about."""
    await _both(pair, 1)
    await _write(pair.here, 2)
    found = await pair.compare()
    assert (found.result, found.differing, pair.asked) == (Verdict.HOLDS, 0, 0)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_write_here_in_between_is_no_proof(pair: _Pair, when: str) -> None:
    """Whatever the sums say: then they were each of a time of its own."""
    await _both(pair, 1)
    setattr(pair, when, lambda: _write(pair.here, 1, n=3))
    found = await pair.compare()
    assert (found.result, bool(found.reason)) == (Verdict.UNKNOWN, True)


async def test_two_states_that_never_met_are_not_the_same(pair: _Pair) -> None:
    """The peer becomes what we were, when we are it no more: the sums are equal, the states not."""

    async def meanwhile() -> None:
        await _write(pair.here, 2)
        await _write(pair.there, 1)

    await _write(pair.here, 1)
    pair.before = meanwhile
    assert (await pair.compare()).result is Verdict.UNKNOWN


async def test_sums_of_no_moment_prove_nothing(pair: _Pair) -> None:
    """The peer says so itself."""
    await _both(pair, 1)
    pair.exact = False
    assert (await pair.compare()).result is Verdict.UNKNOWN


async def test_a_peer_that_goes_on_while_names_are_asked_for_is_not_held(pair: _Pair) -> None:
    """What it says of a name then is not what the sums were made of."""
    await _both(pair, 1, 2)
    await _write(pair.here, 1, n=5)

    async def goes_on() -> None:
        await _write(pair.there, 1, n=4)

    pair.amid = goes_on
    assert (await pair.compare()).result is Verdict.UNKNOWN
    pair.amid = _nothing
    assert (await pair.compare()).result is Verdict.HOLDS


@pytest.mark.parametrize("ours", [(), (9,)], ids=["same", "holds"])
async def test_what_the_follower_doubts_is_not_said(pair: _Pair, ours: tuple[int, ...]) -> None:
    """Something parked, on its way, or a stream that has ended."""
    await _both(pair, 1)
    await _write(pair.here, *ours)
    found = await pair.compare("it snows")
    assert (found.result, found.reason) == (Verdict.UNKNOWN, "it snows")


async def test_a_peer_in_another_life_is_not_compared_with(pair: _Pair) -> None:
    """Its revisions are another story's."""
    pair.life = "2"
    with pytest.raises(PeerUnavailable):
        await pair.compare()


async def test_a_comparison_is_bounded_and_the_next_goes_on(
    pair: _Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is missing: so much is asked for at a time, and in the end all is here."""
    monkeypatch.setattr(compare_module, "MOST", 30)
    monkeypatch.setattr(compare_module, "_ASKED", 10)
    await _write(pair.there, *range(100))
    rounds = 0
    while (found := await pair.compare()).result is Verdict.DIFFERS:
        rounds += 1
        assert 0 < found.differing <= 40
        for change in pair.fed:
            await _apply(pair.here, change)
        pair.fed.clear()
    assert found.result is Verdict.SAME
    assert rounds == 4


async def _apply(kv: MemoryKV, change: Change) -> None:
    register: Register[Pushed] = change.register
    await kv.txn([], [Put(keys.register(change.name), codec.encode_register(register))])


async def _apart(pair: _Pair) -> None:
    """Either has what the other lacks, and what it has later; in each bucket something is equal."""
    await _both(pair, *range(20), *range(100, 500))
    await _write(pair.here, *range(20, 30))
    await _write(pair.there, *range(30, 40))
    await _write(pair.here, *range(5), n=2)
    await _write(pair.there, *range(5, 10), n=2)


@pytest.mark.parametrize("pages", [(1, 3), (3, 1), (2, 2), (500, 4), (4, 500)])
async def test_registers_are_asked_for_where_they_differ(
    pair: _Pair, pages: tuple[int, int]
) -> None:
    """Names are gone through beside each other, in pages of any size."""
    pair.pages = pages
    await _apart(pair)
    assert (await pair.compare()).differing == 15
    assert {change.name for change in pair.fed} == {
        _tag(n) for n in (*range(5, 10), *range(30, 40))
    }
    assert pair.asked == 20


async def test_names_in_another_order_are_compared_too(pair: _Pair) -> None:
    """More is asked for than need be, and nothing else is found."""
    pair.pages, pair.backwards = (3, 3), True
    await _apart(pair)
    assert (await pair.compare()).differing == 15
    assert len(pair.fed) == 15


async def test_what_was_held_is_known_by_its_sums(pair: _Pair) -> None:
    """A site that has more than its peer does not go through all names each time."""
    await _both(pair, 1, 2)
    await _write(pair.here, 3)
    for _ in range(2):
        assert (await pair.compare()).result is Verdict.HOLDS
        assert pair.descents == 1
    await _write(pair.there, 2, n=2)
    assert (await pair.compare()).result is Verdict.DIFFERS
    await _write(pair.here, 2, n=2)
    assert (await pair.compare()).result is Verdict.HOLDS


async def test_a_register_that_cannot_be_read_here_is_fetched(pair: _Pair) -> None:
    """Damage is not taken for having nothing to learn, nor for being the same."""
    await _both(pair, 1, 2)
    await pair.here.txn([], [Put(keys.register(_tag(2)), b"\xff")])
    assert (await pair.compare()).result is Verdict.DIFFERS
    assert [change.name for change in pair.fed] == [_tag(2)]
    await pair.there.txn([], [Put(keys.register(_tag(2)), b"\xff")])
    assert (await pair.compare()).result is Verdict.UNKNOWN
