"""The API server's audit log: who asked for what, counted. Reads the file that the lab's cluster writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
READS = frozenset({"get", "list"})
PER_MACHINE = frozenset({"virtualmachines", "volumes", "workorders", "secrets", "events"})
"""What is written for a machine. Hosts, reports, pools and leases are written whether there are machines or not."""

CONTROLLERS = "controllers"
AGENT = "agent"
USER = "user"
OTHER = "kubernetes"
OURS = (CONTROLLERS, AGENT)

BENCH_AGENT = "kumulus-bench"
"""User agent of everything that the bench itself asks for, in the role of the user."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was answered."""

    client: str
    verb: str
    resource: str
    """Plural, with `/subresource`."""
    namespace: str
    name: str
    code: int

    @property
    def plural(self) -> str:
        """Without the subresource."""
        return self.resource.partition("/")[0]

    @property
    def is_write(self) -> bool:
        """Whether it changes something."""
        return self.verb in WRITES


def parse(event: dict[str, Any]) -> Request | None:
    """The request of an audit event; None for the stages that do not count it. A watch counts when it starts."""
    stage, verb = event.get("stage"), str(event.get("verb", ""))
    if stage != ("ResponseStarted" if verb == "watch" else "ResponseComplete"):
        return None
    about = event.get("objectRef") or {}
    resource = str(about.get("resource", ""))
    if about.get("subresource"):
        resource += f"/{about['subresource']}"
    return Request(
        client=client_of(str(event.get("user", {}).get("username", "")), str(event.get("userAgent", ""))),
        verb=verb,
        resource=resource,
        namespace=str(about.get("namespace", "")),
        name=str(about.get("name", "")),
        code=int((event.get("responseStatus") or {}).get("code", 0)),
    )


def client_of(username: str, user_agent: str) -> str:
    """Which of our parts asked: by what it calls itself, else by its account."""
    if user_agent.startswith(BENCH_AGENT):
        return USER
    if user_agent.startswith("kumulus-agent") or username.endswith(":kumulus-agent"):
        return AGENT
    if user_agent.startswith("kumulus-controllers") or username.endswith(":kumulus-controllers"):
        return CONTROLLERS
    return OTHER


class AuditLog:
    """The file, read from where one stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def requests(self) -> Iterator[Request]:
        """What was answered since it was made or last read. A line that is still being written waits."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                found = parse(json.loads(line))
                if found is not None:
                    yield found


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests counted by client, verb and resource."""

    counts: Counter[tuple[str, str, str]]

    @staticmethod
    def of(requests: Iterable[Request]) -> Tally:
        """Count them."""
        return Tally(Counter((found.client, found.verb, found.resource) for found in requests))

    def total(self, clients: Iterable[str], verbs: Iterable[str], plurals: Iterable[str] | None = None) -> int:
        """How many of these there are; of all resources when `plurals` is None."""
        clients, verbs = set(clients), set(verbs)
        wanted = None if plurals is None else set(plurals)
        return sum(
            count
            for (client, verb, resource), count in self.counts.items()
            if client in clients and verb in verbs and (wanted is None or resource.partition("/")[0] in wanted)
        )

    def per(self, number: int, clients: Iterable[str], plurals: Iterable[str] | None = None) -> dict[str, float]:
        """`controllers patch virtualmachines/status` -> how many for each of `number`, the most frequent first."""
        clients = set(clients)
        wanted = None if plurals is None else set(plurals)
        return {
            " ".join(key): round(count / number, 3)
            for key, count in self.counts.most_common()
            if key[0] in clients and (wanted is None or key[2].partition("/")[0] in wanted)
        }
