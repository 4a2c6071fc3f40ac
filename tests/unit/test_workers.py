"""Workers: which one a process is, and where each is watched."""

from __future__ import annotations

from typing import Any

import pytest

from node.config import Config, ConfigError
from node.workers import MOST, Worker, health_addresses, health_listeners, team


def _config(http: int = 5000, grpc: int = 5001, metrics: int = 5002, replicator: int = 5003) -> Any:
    return Config.model_validate(
        {
            "http": {"listen": [f"0.0.0.0:{http}"]},
            "grpc": {"listen": f"127.0.0.1:{grpc}"},
            "metrics": {"listen": f"127.0.0.1:{metrics}"},
            "replicator": {"listen": f"127.0.0.1:{replicator}"},
        }
    )


@pytest.mark.parametrize(
    ("ports", "count", "expected"),
    [
        ({}, 1, [5002]),
        ({}, 4, [5002, 5004, 5005, 5006]),
        ({"metrics": 4998}, 3, [4998, 4999, 5002]),
        ({"metrics": 9000}, 3, [9000, 9001, 9002]),
    ],
    ids=["alone", "by default", "before the others", "apart"],
)
def test_every_worker_is_watched_at_a_port_of_its_own(
    ports: dict[str, int], count: int, expected: list[int]
) -> None:
    """The first has the port that is configured, the others those after it that the site spares."""
    found = health_addresses(_config(**ports), count)
    assert [address.port for address in found] == expected
    assert {address.host for address in found} == {"127.0.0.1"}


def test_workers_that_find_no_port_are_refused() -> None:
    """There are no ports beyond 65535."""
    assert len(health_addresses(_config(metrics=65534), 2)) == 2
    with pytest.raises(ConfigError, match=r"^metrics\.listen: "):
        health_addresses(_config(metrics=65534), 3)


def test_problems_name_the_worker() -> None:
    """Only the first worker's port is a key of the configuration."""
    assert list(health_listeners(_config(), 2)) == ["metrics.listen", "metrics.listen (worker 1)"]


@pytest.mark.parametrize("worker", [Worker(), *team(2), Worker(MOST - 1, MOST)], ids=str)
def test_a_worker_is_told_its_number_as_text(worker: Worker) -> None:
    """What the supervisor writes, the process reads."""
    assert Worker.parse(str(worker)) == worker


@pytest.mark.parametrize("text", ["", "1", "2/2", "0/0", "-1/2", "0/1000", f"0/{MOST + 1}", "a/b"])
def test_what_is_no_worker(text: str) -> None:
    """Nonsense is refused."""
    with pytest.raises(ValueError, match="is no worker"):
        Worker.parse(text)
