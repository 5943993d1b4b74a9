"""Metrics of events. Names are stable."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

NOTICED = Counter("kumulus_events_changes", "Changes of objects that were noticed.", ["kind"])
RELISTS = Counter(
    "kumulus_events_relists", "How often all objects of a kind were read and compared with what was told.", ["kind"]
)
DELIVERED = Counter("kumulus_events_delivered", "Events that receivers have taken.", ["namespace", "sink"])
FAILED = Counter("kumulus_events_failed_attempts", "Attempts that failed, by why.", ["namespace", "sink", "reason"])
BURIED = Counter("kumulus_events_dead_letters", "Events that were given up.", ["namespace", "sink"])
PENDING = Gauge("kumulus_events_pending_changes", "Changes that wait to be sent.", ["namespace", "sink"])
JOURNAL = Gauge("kumulus_events_journal_changes", "Changes that the journal keeps.")
DELAY = Histogram(
    "kumulus_events_delay_seconds",
    "From when a change was noticed until a receiver had taken it.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
)
ACTIVE = Gauge("kumulus_events_active", "1 while this process tells events.")


def forget(namespace: str, sink: str) -> None:
    """Nothing is said of that sink any more: each that ever was would stay for as long as the process runs."""
    for metric in (DELIVERED, FAILED, BURIED, PENDING):
        metric.remove_by_labels({"namespace": namespace, "sink": sink})
