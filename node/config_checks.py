"""What no single key of a configuration can know: what contradicts another, or is not there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from node.config_models import Address, Config, Peer


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
    return problems


def secret_problems(peers: Sequence[Peer]) -> list[str]:
    """What is wrong with the files that hold the secrets; reads them, so they are known then."""
    problems = []
    for n, peer in enumerate(peers):
        try:
            _ = peer.secret
        except OSError as err:
            reason = err.strerror
            problems.append(f"peers[{n}].secret_file: {peer.secret_file}: can't be read: {reason}")
        except ValueError as err:
            problems.append(f"peers[{n}].secret_file: {peer.secret_file}: {err}")
    return problems
