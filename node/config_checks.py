"""What no single key of a configuration can know: what contradicts another, or is not there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

from node.config_models import Config, Etcd, Tls
from node.config_values import Address
from node.tls import FileUnusable, calling, listening


def listeners(config: Config) -> dict[str, Address]:
    """Where a site's processes listen, by the path of the key that says so."""
    return {f"http.listen[{n}]": address for n, address in enumerate(config.http.listen)} | {
        "grpc.listen": config.grpc.listen,
        "metrics.listen": config.metrics.listen,
        "replicator.listen": config.replicator.listen,
    }


def contradictions(config: Config, unknown: Collection[str]) -> list[str]:
    """What contradicts what; nothing is said of the paths of which the value is not known."""

    def is_known(path: str) -> bool:
        return not any(f"{path}.".startswith((f"{one}.", f"{one}[")) for one in unknown)

    known = {path: one for path, one in listeners(config).items() if is_known(path)}
    problems = [
        f"{path}: {address} is taken by {earlier}"
        for (earlier, other), (path, address) in combinations(known.items(), 2)
        if address.overlaps(other)
    ]
    seen = {config.site: "this site's own name"} if is_known("site") else {}
    for n, peer in enumerate(config.peers):
        path = f"peers[{n}]"
        if is_known(f"{path}.site"):
            if peer.site in seen:
                problems.append(f"{path}.site: {peer.site} is {seen[peer.site]}")
            seen.setdefault(peer.site, f"the name of {path} already")
        is_near = config.grpc.listen.is_loopback and peer.is_loopback
        if peer.secret_file is None and not is_near and is_known(f"{path}.secret_file"):
            problems.append(
                f"{path}.secret_file: is required, as not all of grpc.listen and the peer's "
                "addresses are on this machine"
            )
        if peer.ca is not None and peer.http.startswith("http:") and is_known(f"{path}.http"):
            problems.append(f"{path}.ca: is of no use, as {path}.http begins with http:")
    if config.metadata.etcd and is_known("metadata.etcd"):
        problems += [f"metadata.etcd.{one}" for one in _etcd_contradictions(config.metadata.etcd)]
    tls = config.http.tls
    if (tls.key or tls.client_ca) and not tls.certificate and is_known("http.tls.certificate"):
        problems.append("http.tls.certificate: is required")
    if tls.certificate and not tls.key and is_known("http.tls.key"):
        problems.append("http.tls.key: is required")
    return problems


def _etcd_contradictions(etcd: Etcd) -> list[str]:
    problems = []
    if not etcd.is_secure and any(url.startswith("https:") for url in etcd.endpoints):
        problems.append("endpoints: either all begin with https: or none")
    if etcd.is_secure and not etcd.ca:
        problems.append("ca: is required, as the endpoints begin with https:")
    if not etcd.is_secure and (etcd.ca or etcd.certificate or etcd.key):
        problems.append("ca: with certificate and key it is of no use without https: endpoints")
    for one, other in (("certificate", "key"), ("username", "password_file")):
        given = [getattr(etcd, name) is not None for name in (one, other)]
        if any(given) and not all(given):
            problems.append(f"{other if given[0] else one}: is required")
    return problems


def secret_problems(config: Config) -> list[str]:
    """What is wrong with the files that hold the secrets; reads them, so they are known then."""
    problems = []
    for path, file, read in _secrets(config):
        try:
            read()
        except OSError as err:
            problems.append(f"{path}: {file}: can't be read: {err.strerror}")
        except ValueError as err:
            problems.append(f"{path}: {file}: {err}")
    return problems


def _secrets(config: Config) -> Iterator[tuple[str, Path | None, Callable[[], object]]]:
    for n, peer in enumerate(config.peers):
        yield f"peers[{n}].secret_file", peer.secret_file, partial(getattr, peer, "secret")
    if etcd := config.metadata.etcd:
        yield "metadata.etcd.password_file", etcd.password_file, partial(getattr, etcd, "password")


def tls_problems(config: Config) -> list[str]:
    """What is wrong with the files that TLS needs; reads them."""
    problems = []
    try:
        listening(config.http.tls)
    except FileUnusable as err:
        problems.append(f"http.tls.{err}")
    etcd = config.metadata.etcd
    if etcd and etcd.ca:
        try:
            calling(etcd.ca, Tls(certificate=etcd.certificate, key=etcd.key))
        except FileUnusable as err:
            problems.append(f"metadata.etcd.{err}")
    for n, peer in enumerate(config.peers):
        try:
            # Its own certificate was looked at above.
            calling(peer.ca, Tls())
        except FileUnusable as err:
            problems.append(f"peers[{n}].{err}")
    return problems
