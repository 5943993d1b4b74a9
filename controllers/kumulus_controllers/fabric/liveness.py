"""Is a host's agent alive? Decided on our own monotonic clock by when its Lease last changed, never by its wall clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kumulus.api.fabric import HOST_NAMESPACE_PREFIX
from kumulus.kube.lease import Lease
from kumulus.runtime.clock import Clock

DEFAULT_DURATION = 40.0
LATE = 0.75
"""A host is late after this share of its Lease. Agents renew it at the latest after half."""
LONGEST_DURATION = 300.0
"""An agent may not ask to be believed alive for longer than this."""


class Liveness(StrEnum):
    """What the Lease says."""

    NEVER_SEEN = "AgentNeverSeen"
    ALIVE = "AgentAlive"
    EXPIRED = "LeaseExpired"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the Lease says, and for how many seconds at the least it will go on saying so."""

    liveness: Liveness
    valid_for: float
    witnessed: bool = True
    """Whether we have seen a renewal ourselves. Of a Lease seen for the first time nobody can say how old it is."""


@dataclass(slots=True)
class _Seen:
    renewed: str | None
    at: float
    duration: float
    witnessed: bool
    late_until: float = float("-inf")
    """Until then it counts as late although it was heard of."""


class LeaseBook:
    """When each host's Lease was last seen to change."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def note(self, lease: Lease) -> str | None:
        """Take in a Lease; returns the host whose Lease it is."""
        if not (lease.namespace or "").startswith(HOST_NAMESPACE_PREFIX):
            return None
        host = (lease.namespace or "").removeprefix(HOST_NAMESPACE_PREFIX)
        renewed = lease.spec.renew_time
        known = self._seen.get(host)
        if known is None or known.renewed != renewed:
            duration = min(float(lease.spec.lease_duration_seconds or DEFAULT_DURATION), LONGEST_DURATION)
            now = self._clock.monotonic()
            late = known is not None and now - known.at >= known.duration * LATE
            until = now + duration if late else (known.late_until if known is not None else float("-inf"))
            self._seen[host] = _Seen(renewed, now, duration, witnessed=known is not None, late_until=until)
        return host

    def forget(self, host: str) -> None:
        """The host is gone."""
        self._seen.pop(host, None)

    def renewed(self, host: str) -> str | None:
        """The renewTime of its Lease as last seen."""
        seen = self._seen.get(host)
        return seen.renewed if seen is not None else None

    def late(self, host: str) -> bool:
        """Whether a host that was heard of has been silent for three quarters of its Lease or longer, now or within the last Lease: when
        the API server was away and is back, hosts are heard of again one after the other."""
        seen, now = self._seen.get(host), self._clock.monotonic()
        if seen is None or seen.renewed is None:
            return False
        return now - seen.at >= seen.duration * LATE or now < seen.late_until

    def silence(self, host: str) -> tuple[float, float]:
        """For how many seconds its Lease has not changed before our eyes, and how long it lasts; nothing, of one never seen."""
        seen = self._seen.get(host)
        return (0.0, 0.0) if seen is None else (self._clock.monotonic() - seen.at, seen.duration)

    def on_time(self, host: str) -> float:
        """In how many seconds the host is late, should it not be heard of; 0 when it is, or was never heard of."""
        seen = self._seen.get(host)
        return 0.0 if seen is None else max(0.0, seen.at + seen.duration * LATE - self._clock.monotonic())

    def verdict(self, host: str) -> Verdict:
        """What is so of a host now."""
        seen = self._seen.get(host)
        if seen is None or seen.renewed is None:
            return Verdict(Liveness.NEVER_SEEN, 60.0)
        left = seen.at + seen.duration - self._clock.monotonic()
        if left <= 0:
            return Verdict(Liveness.EXPIRED, 60.0)
        return Verdict(Liveness.ALIVE, left, seen.witnessed)
