"""Exchanges with a registry: what is asked, and what the answer must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.registry import JSON, Client, Reply


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer.

    A path that does not begin with a slash is of the test's repository.  A header that is "" must
    not be there.
    """

    said: str
    method: str
    path: str
    status: int
    ask: Mapping[str, str] | Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    code: str = ""

    async def hold(self, registry: Client, sent: bytes | None = None) -> Reply:
        """Ask, with a body if it is given, and see that the answer is as it must be."""
        path = self.path if self.path.startswith("/") else registry.path(self.path)
        reply = await registry.ask(self.method, path, sent, self.ask)
        assert reply.status == self.status, reply
        require_form(reply)
        for name, value in self.headers.items():
            assert reply.headers.get(name, "") == value, name
        if self.body is not None:
            assert reply.body == self.body
        if self.code:
            assert reply.code == self.code
        return reply


def require_form(reply: Reply) -> None:
    """See that an answer has what every answer has: the version, and errors in their form."""
    assert reply.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    if reply.status < 400 or not reply.body:
        return
    assert reply.headers["Content-Type"] == JSON
    content = reply.json()
    assert set(content) == {"errors"}
    for error in content["errors"]:
        assert set(error) == {"code", "message", "detail"}
        assert error["code"].isupper()
        assert error["message"]
