"""What a process says about itself: structured logs and metrics.

Logs go to stderr, one line each: JSON, or coloured text on a terminal.  What is bound with
`structlog.contextvars` (a request's id) is on every line of that request.  Nothing is logged for
an ordinary request: one line per write and per error is the callers' rule.

Metrics live in a registry that is made once per process and handed to whoever counts; there are no
module-level metrics, so two processes' worth of objects fit in one test.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final, TextIO

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from structlog.typing import EventDict, Processor, WrappedLogger

VERSION: Final = version("entrepot")
# Seconds: from a cached read to a layer of some GiB.
DURATIONS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 120, 600)


def configure_logs(program: str, stream: TextIO | None = None) -> None:
    """Send all logs, those of the libraries too, to a stream (stderr) in one form.

    Every line carries the program's name, a UTC time and a level; INFO and above are shown.
    """
    output = stream or sys.stderr

    def named(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.setdefault("program", program)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        named,
    ]
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(pretty=output.isatty()),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _renderers(*, pretty: bool) -> list[Processor]:
    if pretty:
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    # A traceback as text, without the values of locals: those may be secrets.
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


class Metrics:
    """One process's metrics; every name begins with `entrepot_`.

    Ask for each metric once, at the composition root or in a constructor: a name can't be given
    out twice.
    """

    def __init__(self, program: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        build = self.gauge("build_info", "Always 1; which program this is.", "program", "version")
        build.labels(program, VERSION).set(1)

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """A number that only grows; its name is shown with `_total` at the end."""
        return Counter(f"entrepot_{name}", meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        """A number that goes up and down."""
        return Gauge(f"entrepot_{name}", meaning, labels, registry=self.registry)

    def histogram(
        self, name: str, meaning: str, *labels: str, buckets: Sequence[float] = DURATIONS_S
    ) -> Histogram:
        """A distribution, of seconds unless the buckets say otherwise."""
        return Histogram(
            f"entrepot_{name}", meaning, labels, buckets=buckets, registry=self.registry
        )
