"""Figures of a running server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

DELAYS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters and gauges of one server.

    Attributes:
        connections, sessions: open now; sessions are connections whose handshake is complete.
        started: number of sessions so far.
        refused: number of connections and requests that never were sessions, by reason.
        cut_off: number of sessions that ended with an error, by its code (docs/server.md).
        delay: seconds from the arrival of a result's last audio to the result.
        audio: seconds that were computed.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.connections = Gauge("distill_connections", "Open connections", registry=self._registry)
        self.sessions = Gauge("distill_sessions", "Open sessions", registry=self._registry)
        self.started = Counter("distill_sessions_started", "Sessions", registry=self._registry)
        self.refused = Counter(
            "distill_refused", "Connections and requests refused", ["reason"], registry=self._registry
        )
        self.cut_off = Counter("distill_cut_off", "Sessions ended with an error", ["code"], registry=self._registry)
        self.delay = Histogram(
            "distill_result_delay_seconds", "From the arrival of a result's last audio to the result",
            buckets=DELAYS_S, registry=self._registry,
        )  # fmt: skip
        self.audio = Counter("distill_audio_seconds", "Audio computed", registry=self._registry)

    def text(self) -> bytes:
        """All figures in Prometheus's text form (:data:`CONTENT_TYPE_LATEST`)."""
        return generate_latest(self._registry)
