"""What people see who search a site with their own tools."""

from __future__ import annotations

import json

import pytest

from tests.bench.connection import Connection
from tests.clients.programs import Client
from tests.sites import Site

pytestmark = pytest.mark.slow

MANY = 120


@pytest.fixture
def stocked(site: Site) -> Site:
    """The site, with three repositories, two of which say what they are."""
    push(site, "team/shop", title="Shop", description="Sells apples and pears")
    push(site, "orchard", description="Where the APPLES grow")
    push(site, "apples")
    return site


def push(site: Site, repository: str, **said: str) -> None:
    """Push an index of nothing that says something of itself."""
    media_type = "application/vnd.oci.image.index.v1+json"
    body = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [],
        "annotations": {f"org.opencontainers.image.{name}": text for name, text in said.items()},
    }
    with Connection(site.port) as connection:
        connection.exchange(
            "PUT",
            f"/v2/{repository}/manifests/v1",
            expect=201,
            headers=f"Content-Type: {media_type}\r\n",
            content=json.dumps(body).encode(),
        )


def lines(output: str) -> list[tuple[str, str]]:
    """Name and description of each result."""
    rows = [line.partition("\t") for line in output.splitlines()]
    return [(name, description) for name, _, description in rows]


@pytest.mark.parametrize("row", ["TL11"])
async def test_docker_search(stocked: Site, docker: Client, row: str) -> None:
    """docker shows names and descriptions, the best match first, and as many as are asked for."""

    async def search(term: str, *options: str) -> list[tuple[str, str]]:
        shape = "--format={{.Name}}\t{{.Description}}"
        return lines(
            await docker.run("search", "--no-trunc", shape, *options, f"{stocked.http}/{term}")
        )

    assert await search("apples") == [
        ("apples", ""),
        ("orchard", "Where the APPLES grow"),
        ("team/shop", "Sells apples and pears"),
    ]
    assert await search("team/sh") == [("team/shop", "Sells apples and pears")]
    assert await search("apples", "--limit=1") == [("apples", "")]
    assert await search("nowhere") == []


@pytest.mark.parametrize("row", ["TL10"])
async def test_podman_search(stocked: Site, podman: Client, row: str) -> None:
    """podman shows the same; with no term it walks through the whole catalog by its links."""

    async def search(term: str, *options: str) -> list[tuple[str, str]]:
        shape = "--format={{.Name}}\t{{.Description}}"
        command = ("search", "--tls-verify=false", "--no-trunc", shape, *options)
        return lines(await podman.run(*command, f"{stocked.http}/{term}"))

    assert await search("apples") == [
        (f"{stocked.http}/apples", ""),
        (f"{stocked.http}/orchard", "Where the APPLES grow"),
        (f"{stocked.http}/team/shop", "Sells apples and pears"),
    ]
    assert await search("apples", "--limit=2") == (await search("apples"))[:2]
    for number in range(MANY):
        push(stocked, f"many/{number:03}")
    assert len(await search("many", "--limit=100")) == 100
    assert len(await search("", "--limit=200")) == MANY + 3
