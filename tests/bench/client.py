"""What a registry's clients do, step by step: push and pull blobs and images."""

from __future__ import annotations

import hashlib
from typing import Final

from tests.bench.connection import Connection, UnexpectedAnswerError
from tests.bench.content import MANIFEST_TYPE, Blob, Image

ACCEPT: Final = f"Accept: {MANIFEST_TYPE}\r\n"


def push_blob(connection: Connection, repository: str, blob: Blob) -> None:
    """POST, PATCH in chunks, PUT: what docker, podman and skopeo do."""
    at = connection.exchange(
        "POST", f"/v2/{repository}/blobs/uploads/", expect=202, content=b""
    ).location
    at = connection.send_blob("PATCH", at, blob, expect=202, chunked=True).location
    connection.exchange("PUT", _finish(at, blob), expect=201, content=b"")


def push_blob_at_once(connection: Connection, repository: str, blob: Blob) -> None:
    """POST, PUT with all the bytes: what containerd does."""
    at = connection.exchange(
        "POST", f"/v2/{repository}/blobs/uploads/", expect=202, content=b""
    ).location
    connection.send_blob("PUT", _finish(at, blob), blob, expect=201, chunked=False)


def push_image(connection: Connection, repository: str, tag: str, image: Image) -> None:
    """Each blob with docker's questions before and after it, then the manifest under a tag."""
    for blob in image.blobs:
        at = f"/v2/{repository}/blobs/{blob.digest}"
        connection.exchange("HEAD", at, expect=404)
        push_blob(connection, repository, blob)
        connection.exchange("HEAD", at, expect=200)
    put_manifest(connection, repository, tag, image)


def put_manifest(connection: Connection, repository: str, tag: str, image: Image) -> None:
    """The last step of a push; its 201 says that everything is durable."""
    connection.exchange(
        "PUT",
        f"/v2/{repository}/manifests/{tag}",
        expect=201,
        headers=f"Content-Type: {MANIFEST_TYPE}\r\n",
        content=image.manifest,
    )


def pull_blob(connection: Connection, repository: str, blob: Blob) -> None:
    """The bytes, read and forgotten."""
    connection.exchange("GET", f"/v2/{repository}/blobs/{blob.digest}", expect=200)


def pull_image(connection: Connection, repository: str, tag: str, image: Image) -> None:
    """The manifest by its tag, then all its blobs, read and forgotten."""
    connection.exchange("GET", f"/v2/{repository}/manifests/{tag}", expect=200, headers=ACCEPT)
    for blob in image.blobs:
        pull_blob(connection, repository, blob)


def verify_image(connection: Connection, repository: str, tag: str, image: Image) -> None:
    """Pull an image by its tag and by its digest, and look at every byte.

    Raises:
        UnexpectedAnswerError: Anything is not what was pushed.
    """
    for reference in (tag, image.digest):
        _verify(connection, f"/v2/{repository}/manifests/{reference}", image.digest)
    for blob in image.blobs:
        verify_blob(connection, repository, blob)


def verify_blob(connection: Connection, repository: str, blob: Blob) -> None:
    """Pull a blob and hash what comes.

    Raises:
        UnexpectedAnswerError: It is not the blob.
    """
    _verify(connection, f"/v2/{repository}/blobs/{blob.digest}", blob.digest)


def _verify(connection: Connection, target: str, digest: str) -> None:
    found = hashlib.sha256()
    connection.exchange("GET", target, expect=200, headers=ACCEPT, sink=found.update)
    if f"sha256:{found.hexdigest()}" != digest:
        raise UnexpectedAnswerError(f"GET {target}: other bytes, sha256:{found.hexdigest()}")


def _finish(location: str, blob: Blob) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={blob.digest}"
