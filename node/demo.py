"""Two sites on one machine, each the other's peer, to try replication with nothing else there.

Site fra has the ports base to base + 3, site nyc those from base + 100 on.  Each has a folder of
its own, and the only thing written by this module is its configuration file there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import yaml

from node.config import ConfigError, require_folder
from node.serve import Site

BASE_PORT: Final = 5000
_OFFSETS: Final = {"fra": 0, "nyc": 100}
_HOST: Final = "127.0.0.1"


def sites(folder: Path, base_port: int) -> list[Site]:
    """Write both configurations, and give the sites.

    Variables of this shell are kept from them: they could only make the two alike.

    Raises:
        ConfigError: The folder can't be written.
    """
    require_folder(folder)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ENTREPOT_")}
    found = []
    for name, offset in _OFFSETS.items():
        home = (folder / name).absolute()
        file = home / "entrepot.yaml"
        try:
            home.mkdir(parents=True, exist_ok=True)
            file.write_text(_configuration(name, base_port + offset, base_port), encoding="utf-8")
        except OSError as err:
            raise ConfigError(f"--data: {home} can't be written: {err.strerror}") from err
        found.append(Site(file, home, environ))
    return found


def _configuration(name: str, port: int, base_port: int) -> str:
    peers = [
        {
            "site": other,
            "http": f"http://{_HOST}:{base_port + offset}",
            "grpc": f"{_HOST}:{base_port + offset + 1}",
        }
        for other, offset in _OFFSETS.items()
        if other != name
    ]
    content = {
        "site": name,
        "http": {"listen": [f"{_HOST}:{port}"]},
        "grpc": {"listen": f"{_HOST}:{port + 1}"},
        "metrics": {"listen": f"{_HOST}:{port + 2}"},
        "replicator": {"listen": f"{_HOST}:{port + 3}"},
        "peers": peers,
    }
    note = "# Written by `entrepot demo` at every start; changes here are lost.\n"
    return note + yaml.safe_dump(content, sort_keys=False)


def hints(base_port: int) -> str:
    """What to try, as lines for a terminal."""
    fra, nyc = (f"{_HOST}:{base_port + offset}" for offset in _OFFSETS.values())
    return f"""
[bold]Push at one site, pull from the other:[/bold]
  docker tag IMAGE {fra}/hello && docker push {fra}/hello
  docker pull {nyc}/hello
  skopeo copy --src-tls-verify=false docker://{nyc}/hello oci:hello
  curl http://{nyc}/v2/hello/tags/list
  entrepot status --url http://{nyc}

Ctrl-C ends both sites; what they hold stays in their folders.
"""
