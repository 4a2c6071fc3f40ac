"""One site, opened: its KV, its blobs, and the site model over both.

Gateways and replicators open the same site; whoever comes first gives it its identity.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from grpc import ssl_channel_credentials

from node.blob_files import FileBlobs
from node.blobs import BlobStore
from node.config import ConfigError
from node.config_models import Config, Etcd
from node.config_models import Metadata as ConfigMetadata
from node.content import Content
from node.kv import KV
from node.kv_etcd import Access, EtcdKV
from node.kv_sqlite import SqliteKV, StorageUnsuitable
from node.life import Life
from node.metadata import Metadata
from node.reads import JoinedReads
from node.records import SiteRecord
from node.staging import Staging
from node.stamps import Decider, Stamps
from node.uploads import Uploads

# A client is told "not now" rather than kept waiting for a store that is too slow.
DECISION_S: Final = 8.0


# RELIABILITY 3.3: watches of etcd before 3.4.36 lose events in rare cases, so a scan is the truth.
RESCAN_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Site:
    """Everything that a process of the site works on.

    `reads` answers only while its `run` runs; `decider` and all that stands on it read through it.
    `rescan_s`: after so many seconds of being told changes, everything is to be read again.
    """

    record: SiteRecord
    kv: KV
    blobs: BlobStore
    reads: JoinedReads
    decider: Decider
    staging: Staging
    content: Content
    uploads: Uploads
    metadata: Metadata
    rescan_s: float = math.inf


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
        kv = await _opened_kv(config.metadata)
        stack.push_async_callback(kv.close)
        life = life_of(config, kv)
        record = await life.begin()
        site = assembled(config, record, kv, blobs, at_least=life.at_least, clock_ms=clock_ms)
        yield site if config.metadata.etcd is None else replace(site, rescan_s=RESCAN_S)


async def _opened_kv(metadata: ConfigMetadata) -> KV:
    if metadata.etcd is not None:
        try:
            access = await asyncio.to_thread(_access, metadata.etcd)
        except OSError as err:
            raise ConfigError(f"metadata.etcd: {err}") from err
        return EtcdKV(access, metadata.etcd.prefix.encode())
    try:
        return await SqliteKV.open(metadata.sqlite.path)
    except StorageUnsuitable as err:
        raise ConfigError(f"metadata.sqlite.path: {err}") from err


def _access(etcd: Etcd) -> Access:
    def content(file: Path | None) -> bytes | None:
        return None if file is None else file.read_bytes()

    return Access(
        endpoints=tuple(urlsplit(url).netloc for url in etcd.endpoints),
        credentials=ssl_channel_credentials(
            content(etcd.ca), content(etcd.key), content(etcd.certificate)
        )
        if etcd.is_secure
        else None,
        user=etcd.username,
        password=etcd.password.get_secret_value() if etcd.password else None,
    )


def assembled(
    config: Config,
    record: SiteRecord,
    kv: KV,
    blobs: BlobStore,
    *,
    at_least: int = 0,
    clock_ms: Callable[[], int] = now_ms,
    new_id: Callable[[], str] = new_id,
) -> Site:
    """The site model over open stores, whose metadata has come to a revision `at_least`."""
    reads = JoinedReads(kv, at_least)
    grace_ms = config.collect.grace * 1000
    stamps = Stamps(kv, record.actor, grace_ms=grace_ms, clock_ms=clock_ms, granting=asyncio.Lock())
    decider = Decider(kv, reads, stamps, partial(asyncio.timeout, DECISION_S), asyncio.sleep)
    content = Content(decider, blobs, new_id=new_id, clock_ms=clock_ms)
    uploads = Uploads(
        decider,
        blobs,
        content,
        new_id=new_id,
        clock_ms=clock_ms,
        reserve_bytes=config.blobs.reserve.bytes_of,
    )
    staging = Staging(decider, new_id=new_id, pause=asyncio.sleep)
    metadata = Metadata(decider, staging, new_id=new_id)
    return Site(record, kv, blobs, reads, decider, staging, content, uploads, metadata)


def life_of(config: Config, kv: KV) -> Life:
    """The life of the site, whose mark lies beside its blobs."""
    return Life(kv, config.blobs.files.root, config.site, new_id=new_id)
