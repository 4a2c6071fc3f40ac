"""What the gateway counts of its requests, at the price of a few additions each.

prometheus_client's own counters take a lock and some microseconds per request; these are plain
numbers of one thread, shown when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from node.telemetry import DURATIONS_S


@dataclass(slots=True)
class _Durations:
    """How many requests took how long, by bucket; the last is for all that took longer."""

    total_s: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(DURATIONS_S) + 1))

    def add(self, duration_s: float) -> None:
        self.total_s += duration_s
        self.buckets[bisect_left(DURATIONS_S, duration_s)] += 1


class Counts(Collector):
    """Requests by endpoint and status, their durations by endpoint, and bytes of bodies."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = {}
        self._durations: dict[str, _Durations] = {}
        self._received_bytes = 0
        self._sent_bytes = 0

    def add(self, endpoint: str, status: int, duration_s: float) -> None:
        """Count a request that was answered."""
        key = (endpoint, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        durations = self._durations.get(endpoint)
        if durations is None:
            durations = self._durations[endpoint] = _Durations()
        durations.add(duration_s)

    def add_bytes(self, received: int, sent: int) -> None:
        """Count the bytes of a request's body and of its answer's."""
        self._received_bytes += received
        self._sent_bytes += sent

    def collect(self) -> Iterator[Metric]:
        """Show the counts."""
        requests = CounterMetricFamily(
            "entrepot_http_requests", "Requests answered.", labels=["endpoint", "status"]
        )
        for (endpoint, status), count in self._requests.items():
            requests.add_metric([endpoint, str(status)], count)
        yield requests
        times = HistogramMetricFamily(
            "entrepot_http_request_seconds",
            "From a request's head to its answer.",
            labels=["endpoint"],
        )
        for endpoint, durations in self._durations.items():
            counts = accumulate(durations.buckets)
            bounds = [*map(str, DURATIONS_S), "+Inf"]
            times.add_metric([endpoint], list(zip(bounds, counts, strict=True)), durations.total_s)
        yield times
        for name, meaning, value in (
            ("received", "Bytes of requests' bodies.", self._received_bytes),
            ("sent", "Bytes of answers' bodies.", self._sent_bytes),
        ):
            yield CounterMetricFamily(f"entrepot_http_{name}_bytes", meaning, value=value)
