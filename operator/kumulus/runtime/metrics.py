"""Prometheus metrics that every process has. Names are stable."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from kumulus.api.base import Kind

QUEUE_DEPTH = Gauge("kumulus_queue_depth", "Keys that wait for a pass.", ["controller"])
PASS_SECONDS = Histogram(
    "kumulus_pass_duration_seconds",
    "Duration of a pass over one object.",
    ["controller"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
PASSES = Counter(
    "kumulus_passes", "Passes by what they came to: done, requeue, wait, failed, error.", ["controller", "result"]
)
API_WRITES = Counter("kumulus_api_writes", "Writes to the API server.", ["verb", "kind"])
API_WRITE_SECONDS = Histogram("kumulus_api_write_duration_seconds", "Duration of writes to the API server.", ["verb"])
LEADING = Gauge("kumulus_leading", "1 while this process leads.", ["lease"])
OBJECTS = Gauge("kumulus_cached_objects", "Objects in the cache.", ["kind"])


def count_write(verb: str, kind: Kind, seconds: float) -> None:
    """Count one write; fits `KubeClient(on_write=...)`."""
    API_WRITES.labels(verb, kind.kind).inc()
    API_WRITE_SECONDS.labels(verb).observe(seconds)
