"""The service's counters for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "ldp_http_requests", "Answers, by route and status", ["method", "route", "status"], registry=self.registry
        )
        self._restorations = Counter("ldp_restorations", "Uploads, by outcome", ["outcome"], registry=self.registry)
        self._stages = Histogram(
            "ldp_stage_seconds",
            "Time of the stages of restorations",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Shows the value of a function as ``ldp_NAME``."""
        Gauge(f"ldp_{name}", text, registry=self.registry).set_function(value)

    def count_answer(self, method: str, route: str, status: int) -> None:
        """Counts an answer; ``route`` is the pattern of its path, not the path."""
        self._requests.labels(method, route, str(status)).inc()

    def count_restoration(self, outcome: str) -> None:
        """Counts an upload by its outcome."""
        self._restorations.labels(outcome).inc()

    def observe(self, seconds: Mapping[str, float]) -> None:
        """Adds the seconds of each stage of a restoration."""
        for stage, value in seconds.items():
            self._stages.labels(stage).observe(value)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
