"""TLS by the files that a configuration names, for listeners and for calls to peers.

TLS 1.2 is the least; ciphers are OpenSSL's own choice.  A certificate that is renewed on disk is
taken into contexts that are in use: connections made from then on have it, those that stand go on.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from node.config_models import Tls

RENEW_S: Final = 60.0

# What tells two states of both files apart.
_Stamp: TypeAlias = tuple[tuple[int, int, int], ...]

_log = structlog.stdlib.get_logger(__name__)


class FileUnusable(ValueError):
    """A file that TLS needs can't be read or used; `key` is its key within its section."""

    def __init__(self, key: str, path: Path, reason: str) -> None:
        super().__init__(f"{key}: {path}: {reason}")
        self.key = key
        self.path = path
        self.reason = reason


def listening(tls: Tls) -> ssl.SSLContext | None:
    """What listeners need; None if they are to be plain.  Blocks on the files.

    With `client_ca` only clients are let in that have a certificate by it.

    Raises:
        FileUnusable: One of the files can't be used, or certificate and key are no pair.
    """
    if tls.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    present(context, tls)
    if tls.client_ca is not None:
        _trust(context, "client_ca", tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def calling(ca: Path | None, own: Tls) -> ssl.SSLContext:
    """What calls need: the authority to trust, else the machine's.  Blocks on the files.

    Whoever asks for a certificate is shown our own.

    Raises:
        FileUnusable: One of the files can't be used.
    """
    if ca is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _trust(context, "ca", ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    present(context, own)
    return context


def present(context: ssl.SSLContext, tls: Tls) -> None:
    """Have a context show the section's certificate, if it has one.

    Raises:
        FileUnusable: It can't be used.  A context in use must not be tried with one that can't.
    """
    if tls.certificate is None or tls.key is None:
        return
    for key, path in (("certificate", tls.certificate), ("key", tls.key)):
        _readable(key, path)
    try:
        # A password is asked for at the terminal by default.
        context.load_cert_chain(tls.certificate, tls.key, password="")
    except ssl.SSLError as err:
        if err.reason == "KEY_VALUES_MISMATCH":
            raise FileUnusable("key", tls.key, "is not the key of the certificate") from err
        _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "certificate", tls.certificate)
        raise FileUnusable("key", tls.key, "holds no key in PEM form without password") from err


async def renew(
    tls: Tls,
    contexts: Sequence[ssl.SSLContext],
    *,
    every_s: float = RENEW_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Take a certificate into the contexts whenever its files have changed, until cancelled.

    Files that do not fit together (yet) change nothing, and are looked at again `every_s` seconds
    later.
    """
    used: _Stamp | None = None
    while True:
        try:
            found = await asyncio.to_thread(_examine, tls, used)
            if found != used:
                # Here and not in the thread: OpenSSL wants nobody to use a context meanwhile.
                for context in contexts:
                    present(context, tls)
                if used is not None:
                    _log.info("a new certificate is in use", certificate=str(tls.certificate))
                used = found
        except FileUnusable as err:
            _log.warning("the certificate stays as it was", reason=str(err))
        await sleep(every_s)


def _examine(tls: Tls, used: _Stamp | None) -> _Stamp:
    """The state of the files; if it is new, they were tried on a context that nobody uses."""
    found = _stamp(tls)
    if found != used:
        present(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls)
    return found


def _stamp(tls: Tls) -> _Stamp:
    stamps = []
    for key, path in (("certificate", tls.certificate), ("key", tls.key)):
        if path is not None:
            try:
                found = path.stat()
            except OSError as err:
                raise FileUnusable(key, path, f"can't be read: {err.strerror}") from err
            stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(stamps)


def _trust(context: ssl.SSLContext, key: str, path: Path) -> None:
    _readable(key, path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as err:
        raise FileUnusable(key, path, "holds no certificate in PEM form") from err


def _readable(key: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as err:
        raise FileUnusable(key, path, f"can't be read: {err.strerror}") from err
