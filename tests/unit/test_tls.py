"""TLS by files: which are taken, who is let in, and how a certificate is renewed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from gateway.answers import Renderer
from gateway.server import HttpServer
from node.admin_client import NotReachable
from node.config import ConfigError, load, warnings
from node.config_models import Tls
from node.config_values import Address
from node.digest import Digest
from node.errors import PeerUnavailable
from node.reference import Repository
from node.remote import Remote, new_session
from node.status import fetch
from node.tls import calling, listening, renew
from tests.authority import Authority, Pair
from tests.ports import free_port
from tests.waiting import eventually

MANIFEST = b"{}"
NO_TLS = Tls()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs."""
    return Authority.make(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    """A site's certificate and key."""
    return authority.sign("site")


def section(pair: Pair, client_ca: Path | None = None) -> Tls:
    """The section that names these files."""
    return Tls(certificate=pair.certificate, key=pair.key, client_ca=client_ca)


def context_for(tls: Tls) -> ssl.SSLContext:
    """What its listeners use."""
    context = listening(tls)
    assert context is not None
    return context


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A listener that answers everything with a manifest; its port."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=MANIFEST)

    server, port = HttpServer(answer, Renderer({})), free_port()
    try:
        await server.start({"http.listen[0]": Address("127.0.0.1", port)}, context)
        yield port
    finally:
        await server.stop()


async def fetched(port: int, ca: Path | None, own: Tls = NO_TLS) -> bytes:
    """What a replicator gets there that trusts this authority, and has this certificate."""
    async with new_session() as session:
        tls = await asyncio.to_thread(calling, ca, own)
        remote = Remote(session, "nyc", f"https://127.0.0.1:{port}", {}, tls)
        return await remote.manifest(Repository("app"), Digest.of(MANIFEST), len(MANIFEST))


async def shown(port: int, ca: Path) -> str:
    """The serial number of the certificate that is shown there."""
    tls = await asyncio.to_thread(calling, ca, NO_TLS)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    found = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    await writer.wait_closed()
    return str(found)


# --- who is let in


async def test_a_peer_is_trusted_by_its_own_authority_only(
    authority: Authority, pair: Pair
) -> None:
    """Bytes come from a site whose certificate is by `ca`, and from no other."""
    async with serving(context_for(section(pair))) as port:
        assert await fetched(port, authority.certificate) == MANIFEST
        with pytest.raises(PeerUnavailable, match="certificate verify failed"):
            await fetched(port, None)


async def test_a_certificate_by_the_clients_authority_is_asked_for(
    authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    """With `client_ca` nobody gets an answer without a certificate by it."""
    stranger = Authority.make(tmp_path / "stranger").sign("stranger")
    async with serving(context_for(section(pair, authority.certificate))) as port:
        assert await fetched(port, authority.certificate, section(pair)) == MANIFEST
        for own in (NO_TLS, section(stranger)):
            with pytest.raises(PeerUnavailable):
                await fetched(port, authority.certificate, own)


def test_old_versions_of_tls_are_not_spoken(authority: Authority, pair: Pair) -> None:
    """TLS 1.2 is the least, for whoever calls and whoever is called."""
    for context in (
        context_for(section(pair)),
        calling(authority.certificate, NO_TLS),
        calling(None, NO_TLS),
    ):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


async def test_who_speaks_no_tls_gets_no_answer_and_harms_nobody(
    authority: Authority, pair: Pair
) -> None:
    """A plain request to a TLS listener is a broken connection."""
    async with serving(context_for(section(pair))) as port:
        async with aiohttp.ClientSession() as client:
            with pytest.raises(aiohttp.ClientError):
                await client.get(f"http://127.0.0.1:{port}/v2/")
        assert await fetched(port, authority.certificate) == MANIFEST


async def test_status_says_that_a_site_is_not_trusted(pair: Pair) -> None:
    """A person reads what is wrong, in one line."""
    async with serving(context_for(section(pair))) as port:
        with pytest.raises(NotReachable, match="certificate verify failed"):
            await fetch(f"https://127.0.0.1:{port}", await asyncio.to_thread(calling, None, NO_TLS))


# --- renewal


async def test_a_renewed_certificate_is_shown_without_a_restart(
    authority: Authority, tmp_path: Path
) -> None:
    """New connections get the new one; files that are no pair, or gone, leave the old one."""
    pair = authority.sign("renewed")
    tls = section(pair)
    context = context_for(tls)
    looked, look = asyncio.Queue[float](), asyncio.Semaphore(0)

    async def sleep(seconds: float) -> None:
        looked.put_nowait(seconds)
        await look.acquire()

    async def next_look() -> None:
        look.release()
        assert await looked.get() == 7

    async with serving(context) as port, asyncio.TaskGroup() as group:
        renewing = group.create_task(renew(tls, [context], every_s=7, sleep=sleep))
        await looked.get()
        first = await shown(port, authority.certificate)
        old_key = pair.key.read_bytes()

        authority.sign("renewed")
        new_key = pair.key.read_bytes()
        pair.key.write_bytes(old_key)
        await next_look()
        assert await shown(port, authority.certificate) == first, "half of a pair is there"

        pair.key.unlink()
        await next_look()
        assert await shown(port, authority.certificate) == first, "the key is gone"

        pair.key.write_bytes(new_key)
        await next_look()
        second = await shown(port, authority.certificate)
        assert second != first

        await next_look()
        assert await shown(port, authority.certificate) == second
        renewing.cancel()


# --- the configuration


def problems(tmp_path: Path, text: str) -> list[str]:
    """What `load` says of it."""
    file = tmp_path / "entrepot.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, tmp_path, {})
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("tls", "problem"),
    [
        ("certificate: site.crt", "http.tls.key: is required"),
        ("key: site.key", "http.tls.certificate: is required"),
        ("client_ca: ca.crt", "http.tls.certificate: is required"),
        (
            "certificate: none, key: site.key",
            "http.tls.certificate: {0}/none: can't be read: No such file or directory",
        ),
        (
            "certificate: site.crt, key: none",
            "http.tls.key: {0}/none: can't be read: No such file or directory",
        ),
        (
            "certificate: site.crt, key: ca.key",
            "http.tls.key: {0}/ca.key: is not the key of the certificate",
        ),
        (
            "certificate: site.key, key: site.key",
            "http.tls.certificate: {0}/site.key: holds no certificate in PEM form",
        ),
        (
            "certificate: site.crt, key: site.crt",
            "http.tls.key: {0}/site.crt: holds no key in PEM form without password",
        ),
        (
            "certificate: site.crt, key: locked.key",
            "http.tls.key: {0}/locked.key: holds no key in PEM form without password",
        ),
        (
            "certificate: site.crt, key: site.key, client_ca: site.key",
            "http.tls.client_ca: {0}/site.key: holds no certificate in PEM form",
        ),
    ],
)
def test_files_that_are_of_no_use_are_named(
    authority: Authority, pair: Pair, tls: str, problem: str
) -> None:
    """Whatever is wrong with the files is one line with its key, before anything starts."""
    folder = pair.certificate.parent
    (folder / "locked.key").write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    assert problems(folder, f"http: {{tls: {{{tls}}}}}") == [problem.format(folder)]


@pytest.mark.parametrize(
    ("ca", "http", "problem"),
    [
        ("none", "https", "peers[0].ca: {0}/none: can't be read: No such file or directory"),
        ("site.key", "https", "peers[0].ca: {0}/site.key: holds no certificate in PEM form"),
        ("ca.crt", "http", "peers[0].ca: is of no use, as peers[0].http begins with http:"),
    ],
)
def test_an_authority_of_a_peer_that_is_of_no_use_is_named(
    pair: Pair, ca: str, http: str, problem: str
) -> None:
    """A peer's authority is read at the start too, and never ignored."""
    folder = pair.certificate.parent
    peer = f"{{site: nyc, http: '{http}://127.0.0.1:1', grpc: '127.0.0.1:2', ca: {ca}}}"
    assert problems(folder, f"peers: [{peer}]") == [problem.format(folder)]


def test_paths_begin_at_the_file_and_the_rest_is_said_right(
    authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    """A configuration with all three is taken, and whom it lets in is what is warned of."""
    folder = pair.certificate.parent
    file = folder / "entrepot.yaml"
    file.write_text(
        "http: {listen: ['0.0.0.0:5000'],"
        " tls: {certificate: site.crt, key: site.key, client_ca: ca.crt}}"
    )
    config = load(file, tmp_path, {})
    assert config.http.tls == section(pair, authority.certificate)
    assert config.http.scheme == "https"
    (said,) = warnings(config, {})
    assert said == "there are no users yet: everybody who has a certificate may do everything"


async def test_a_connection_that_ends_in_a_body_is_no_news_to_the_loop(
    authority: Authority, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that says goodbye before its body is whole is answered by the end of it all."""
    entered, told = asyncio.Event(), asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        entered.set()
        try:
            await request.read()
        except web.RequestPayloadError:
            told.set()
            raise
        return web.Response()

    server, port = HttpServer(answer, Renderer({})), free_port()
    await server.start({"http.listen[0]": Address("127.0.0.1", port)}, context_for(section(pair)))
    tls = await asyncio.to_thread(calling, authority.certificate, NO_TLS)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123")
    await writer.drain()
    await entered.wait()
    writer.close()
    await writer.wait_closed()
    await eventually(told.is_set, 60, "the request hears of it")
    await server.stop()
    assert [record for record in caplog.records if record.name == "asyncio"] == []
