"""Who calls: for now, whether a caller that says it is a peer is one.

A peer sends its site's name in `Entrepot-Site` and the secret of the pair as a Bearer token.  It is
looked up in our own configuration and compared in constant time.  Users are not asked for anything:
there is no auth section yet, and everybody may do everything.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Final

from node.config_models import Peer
from node.errors import Unauthenticated

SITE_HEADER: Final = "Entrepot-Site"


class Peers:
    """The peers of this site and what each must know."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._secrets = {
            peer.site: None if peer.secret is None else peer.secret.get_secret_value()
            for peer in peers
        }

    def verify(self, headers: Mapping[str, str]) -> str | None:
        """The peer's site; None if the caller does not say that it is a peer.

        A peer without a secret is believed: the configuration allows that on one machine only.

        Raises:
            Unauthenticated: It is none of our peers, or does not know the secret.
        """
        site = headers.get(SITE_HEADER)
        if site is None:
            return None
        self.verify_token(site, headers.get("Authorization", ""))
        return site

    def verify_token(self, site: str, authorization: str) -> None:
        """Check a site's `Bearer` authorization, as it comes over HTTP or gRPC.

        Raises:
            Unauthenticated: It is none of our peers, or does not know the secret.
        """
        if site not in self._secrets:
            raise Unauthenticated("not a peer of this site")
        secret = self._secrets[site]
        if secret is None:
            return
        scheme, _, token = authorization.partition(" ")
        # What is no UTF-8 in a header comes as surrogates.
        given = token.strip().encode("utf-8", "surrogateescape")
        known = hmac.compare_digest(given, secret.encode())
        if scheme.lower() != "bearer" or not known:
            raise Unauthenticated("not the secret of this pair of sites")
