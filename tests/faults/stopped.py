"""What a site has on its disk, read behind its back: keys, values, files; whether it is sound."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from node import keys
from node.blobs import SessionId
from node.digest import Digest
from node.kv import Range
from node.manifest import Manifest, parse_manifest
from node.records import BlobRecord, UploadSession
from node.wire import codec
from tests.scenario.checker import State, check_site
from tests.sites import Site


def entries(site: Site) -> dict[bytes, bytes]:
    """Every key of the site's KV with its value, of one moment; the site may be running."""
    with closing(sqlite3.connect(f"file:{site.metadata}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT key, value FROM rows").fetchall())


def remove(site: Site, *within: Range) -> int:
    """Remove keys from a stopped site, as a fault of its disk or a mistake might; how many."""
    with closing(sqlite3.connect(site.metadata)) as connection, connection:
        bounds = [(one.start, one.end) for one in within]
        delete = "DELETE FROM rows WHERE key >= ? AND key < ?"
        return connection.executemany(delete, bounds).rowcount


def sessions(held: Mapping[bytes, bytes]) -> set[SessionId]:
    """The upload sessions among some entries."""
    start, end, _ = keys.SESSIONS
    return {keys.session_id(key) for key in held if start <= key < end}


def open_uploads(held: Mapping[bytes, bytes]) -> dict[SessionId, UploadSession]:
    """The upload sessions among some entries, with what they hold."""
    return {one: codec.decode_session(held[keys.session(one)]) for one in sessions(held)}


def files(site: Site) -> set[Path]:
    """Every file and folder of the blob store, but those that a running site tries it with."""
    found = {path.relative_to(site.blobs) for path in site.blobs.rglob("*")}
    return {path for path in found if not path.name.startswith((".canary-", "site.new"))}


def check(site: Site, held: Mapping[bytes, bytes] | None = None) -> State:
    """See that a stopped site is sound: its metadata, and every blob's bytes.

    `held` is what stands in its KV where that is not a file of its own.

    Raises:
        Violation: The metadata is not.
        AssertionError: A record names a copy that is not there or has other bytes.
    """
    held = entries(site) if held is None else held

    def manifest_of(digest: Digest) -> Manifest:
        record = codec.decode_blob(held[keys.blob(digest)])
        return parse_manifest(_copy(site, digest, record).read_bytes(), None)

    state = check_site(held, manifest_of)
    for digest, record in state.blobs.items():
        with _copy(site, digest, record).open("rb") as file:
            found = hashlib.file_digest(file, digest.algorithm)
        assert found.digest() == digest.raw, f"{site.name}: {digest} is {found.hexdigest()}"
    return state


def _copy(site: Site, digest: Digest, record: BlobRecord) -> Path:
    encoded = digest.raw.hex()
    shelf = site.blobs / digest.algorithm / encoded[:2]
    return shelf / f"{encoded}.{record.generation}"
