"""Sites of several nodes over one etcd: two gateways and two replicators, as processes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from asyncio import to_thread
from pathlib import Path
from typing import Any, Final

from tests.etcd import Etcd, keyspace
from tests.sites import PROGRAMS, Site

NODES: Final = 2


def nodes(
    name: str,
    folder: Path,
    etcd: Etcd,
    *,
    programs: tuple[str, ...] = PROGRAMS,
    endpoints: tuple[str, ...] = (),
    prefix: bytes = b"",
) -> list[Site]:
    """The nodes of a site that begins in this etcd, reached at other endpoints if given."""
    settings = {
        "metadata": {
            "etcd": {
                "endpoints": [f"http://{one}" for one in endpoints or etcd.endpoints],
                "prefix": (prefix or keyspace()).decode(),
            }
        },
        "blobs": {"files": {"root": str(folder / name / "blobs")}},
    }
    return [
        Site(name, folder / name / f"node{number}", settings, programs=programs)
        for number in range(NODES)
    ]


def prefix_of(node: Site) -> bytes:
    """Where its etcd keeps the site's keys."""
    metadata = node.settings["metadata"]
    assert isinstance(metadata, dict)
    return str(metadata["etcd"]["prefix"]).encode()


async def health(node: Site, program: str = "gateway") -> Any:
    """What /readyz of a program says, ready or not."""
    port = node.port + (2 if program == "gateway" else 3)
    return await to_thread(_json, f"http://127.0.0.1:{port}/readyz")


async def metrics(node: Site, program: str = "gateway") -> str:
    """The metrics of a program, as text."""
    port = node.port + (2 if program == "gateway" else 3)
    return (await to_thread(_read, f"http://127.0.0.1:{port}/metrics")).decode()


def _json(url: str) -> Any:
    return json.loads(_read(url))


def _read(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as err:
        with err:
            return err.read()
    except OSError as err:
        raise AssertionError(str(err)) from err
