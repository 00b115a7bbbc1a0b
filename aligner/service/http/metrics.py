"""Metrics of the requests that a front has seen, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dff.aligner.service.http.measures import Measures

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WAITING = (0, 1, 2, 4, 8, 16, 32, 64)  # photos: all that a replica admits
STEP_FACES = (1, 2, 3, 4, 8, 16)  # 4 by default (``Limits.shared_step``)
# Paths that have series of their own. The front must know them before the application, which is in
# another process under Ray, has seen a request; clients may invent any number of others.
PATHS = frozenset(
    {
        "/v1/align",
        "/v1/align.glb",
        "/v1/align/batch",
        "/v1/align/person",
        "/v1/align/person.glb",
        "/v1/match",
        "/v1/match/dense",
        "/v1/features",
        "/v1/track",
        "/v1/models",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/aligner",
        "/healthz",
        "/readyz",
        "/metrics",
    }
)
# of the HTTP parser, which answers before a front sees anything; part of every ``Metrics``
UNREADABLE = Counter(
    "dff_unreadable_requests",
    "Connections ended by the HTTP parser: headers that are no HTTP, no handshake or too slow",
    ["status"],
    registry=None,
)


class Metrics:
    """One registry for each front: with Ray Serve that of one node, for all of its replicas."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(UNREADABLE)
        self._requests = Counter(
            "dff_requests", "Requests answered", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "dff_request_seconds",
            "Seconds from the headers of a request to the end of its answer",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "dff_stage_seconds",
            "Seconds of a request by stage: queue, decode, align",
            ["stage"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._faces = Counter("dff_faces", "Faces answered", registry=self._registry)
        self._failed = Counter(
            "dff_faces_failed", "Of these, faces whose fit was rejected", registry=self._registry
        )
        self._decoded = Counter(
            "dff_decoded_bytes", "Bytes of decoded photos", registry=self._registry
        )
        self._received = Counter(
            "dff_received_bytes", "Bytes of the bodies of requests", registry=self._registry
        )
        self._queue = Histogram(
            "dff_queue_photos",
            "Photos and matches that waited for the aligner when a request came",
            buckets=WAITING,
            registry=self._registry,
        )
        self._steps = Histogram(
            "dff_step_faces",
            "Faces that the aligner aligned in one step",
            buckets=STEP_FACES,
            registry=self._registry,
        )
        self.sockets = Gauge("dff_sockets", "Open web sockets", registry=self._registry)
        self._frames = Counter(
            "dff_frames", "Answered frames of web sockets", registry=self._registry
        )
        self._uploads = Gauge(
            "dff_uploads", "Requests whose bodies are arriving", registry=self._registry
        )

    def observe(self, path: str, status: int, seconds: float, received: int) -> None:
        """Count a request; ``path`` without a prefix, ``received`` bytes of its body."""
        known = path if path in PATHS else "other"
        self._requests.labels(known, str(status)).inc()
        self._seconds.labels(known).observe(seconds)
        self._received.inc(received)

    def add(self, measures: Measures) -> None:
        """Count what the application measured of a request, or of a frame."""
        if measures.decoded:
            for stage in ("queue", "decode", "align"):
                self._stages.labels(stage).observe(getattr(measures, stage))
        self._faces.inc(measures.faces)
        self._failed.inc(measures.failed)
        self._decoded.inc(measures.decoded)
        if measures.waiting is not None:
            self._queue.observe(measures.waiting)
        for faces in measures.steps:
            self._steps.observe(faces)

    def count_frame(self, measures: Measures) -> None:
        """Count an answered frame of a web socket."""
        self._frames.inc()
        self.add(measures)

    def to_text(self, uploads: int) -> bytes:
        """All metrics; ``uploads``: requests whose bodies are arriving."""
        self._uploads.set(uploads)
        return generate_latest(self._registry)
