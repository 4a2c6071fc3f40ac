"""A throwaway authority and the certificates that it signs, made by the openssl program."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
_SITE: Final = ("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs for 127.0.0.1 and localhost; all of its files are in one folder."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new one, in a folder that is made.

        Without openssl the test is skipped, or fails in continuous integration.
        """
        if shutil.which("openssl") is None:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs openssl")
        folder.mkdir(parents=True)
        made = cls(folder)
        made._request("ca", "-addext", "keyUsage=critical,keyCertSign")
        return made

    @property
    def certificate(self) -> Path:
        """What trusts it is given."""
        return self.folder / "ca.crt"

    def sign(self, name: str) -> Pair:
        """A certificate and its key; those of the same name are replaced."""
        signer = ("-CA", str(self.certificate), "-CAkey", str(self.folder / "ca.key"))
        return self._request(name, *_SITE, "-addext", "basicConstraints=CA:FALSE", *signer)

    def _request(self, name: str, *options: str) -> Pair:
        pair = Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        files = ("-keyout", str(pair.key), "-out", str(pair.certificate))
        command = ("openssl", "req", "-x509", *_KEY, "-subj", f"/CN={name}", *options, *files)
        subprocess.run(command, check=True, capture_output=True)
        return pair
