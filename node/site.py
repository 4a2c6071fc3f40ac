"""One site, opened: its KV, its blobs, and the site model over both.

Gateways and replicators open the same site; whoever comes first gives it its identity.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from node import keys
from node.blob_files import FileBlobs
from node.blobs import BlobStore
from node.config import ConfigError
from node.config_models import Config
from node.content import Content
from node.errors import MetadataUnavailable
from node.kv import KV, Absent, Ok, Put, only
from node.kv_sqlite import SqliteKV, StorageUnsuitable
from node.metadata import Metadata
from node.reads import JoinedReads
from node.records import SiteRecord
from node.stamps import Decider, Stamps
from node.uploads import Uploads
from node.wire import codec


@dataclass(frozen=True, slots=True)
class Site:
    """Everything that a process of the site works on.

    `reads` answers only while its `run` runs; `decider` and all that stands on it read through it.
    """

    record: SiteRecord
    kv: KV
    blobs: BlobStore
    reads: JoinedReads
    decider: Decider
    content: Content
    uploads: Uploads
    metadata: Metadata


def now_ms() -> int:
    """The wall clock, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """An id that is never used twice."""
    return str(uuid.uuid4())


@asynccontextmanager
async def opened(config: Config, *, clock_ms: Callable[[], int] = now_ms) -> AsyncIterator[Site]:
    """Open the stores that the configuration names; close them at the end.

    Raises:
        ConfigError: The stores can't be used as they are configured, or are another site's.
        MetadataUnavailable, StorageFailed: They do not work now.
    """
    async with AsyncExitStack() as stack:
        blobs = await FileBlobs.open_store(config.blobs.files.root)
        stack.push_async_callback(blobs.close)
        try:
            kv = await SqliteKV.open(config.metadata.sqlite.path)
        except StorageUnsuitable as err:
            raise ConfigError(f"metadata.sqlite.path: {err}") from err
        stack.push_async_callback(kv.close)
        record = await _identity(kv, config.site)
        yield assembled(config, record, kv, blobs, clock_ms=clock_ms)


def assembled(
    config: Config,
    record: SiteRecord,
    kv: KV,
    blobs: BlobStore,
    *,
    clock_ms: Callable[[], int] = now_ms,
    new_id: Callable[[], str] = new_id,
) -> Site:
    """The site model over open stores."""
    reads = JoinedReads(kv)
    grace_ms = config.collect.grace * 1000
    stamps = Stamps(kv, record.actor, grace_ms=grace_ms, clock_ms=clock_ms)
    decider = Decider(kv, reads, stamps)
    content = Content(decider, blobs, new_id=new_id, clock_ms=clock_ms)
    uploads = Uploads(
        decider,
        blobs,
        content,
        new_id=new_id,
        clock_ms=clock_ms,
        reserve_bytes=config.blobs.reserve.bytes_of,
    )
    metadata = Metadata(decider, new_id=new_id)
    return Site(record, kv, blobs, reads, decider, content, uploads, metadata)


async def _identity(kv: KV, name: str) -> SiteRecord:
    """The site's name and incarnation; made at the first start."""
    fresh = SiteRecord(name, new_id())
    outcome = await kv.txn([Absent(keys.SITE)], [Put(keys.SITE, codec.encode_site(fresh))])
    if isinstance(outcome, Ok):
        return fresh
    (found,) = (await kv.read([only(keys.SITE)])).ranges
    if not found:
        raise MetadataUnavailable("the site's record could not be written")
    record = codec.decode_site(found[0].value)
    if record.name != name:
        raise ConfigError(f"site: this metadata is of site {record.name}, not {name}")
    return record
