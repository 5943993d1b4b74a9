"""What OVN has in force on this host: rows of the northbound database, and connections that they allow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence

import structlog

from kumulus.api.segments import Nic
from kumulus_agents.network.connections import Connection
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.ovn import brought as bringing
from kumulus_agents.network.ovn import connections, host, northbound, routing
from kumulus_agents.network.ovn.databases import Databases
from kumulus_agents.network.ovn.rows import Rows
from kumulus_agents.network.ovn.settings import OvnSettings
from kumulus_agents.network.protocol import NetworkError

log = structlog.get_logger(__name__)

FORCE_SECONDS = 20.0
"""Within which ovn-northd and ovn-controller have to have a change in force."""
LOOK_SECONDS = 0.005


class Logical:
    """Its verbs are called one at a time, but for `connections`."""

    def __init__(self, settings: OvnSettings, databases: Databases) -> None:
        self._settings = settings
        self._databases = databases
        self._rows: Rows | None = None
        """What is in force, with no connection that it does not allow."""
        self._in_force = False
        """Whether all that was written to the northbound database is known to be in force."""
        self._brought: dict[str, Sequence[Connection]] = {}
        """Of guests that came from other hosts, by the interface's uid."""
        self._brought_until = 0.0
        self._limited: Mapping[int, int] | None = None
        """How many connections which conntrack zone may have, as was last said; None when that may be otherwise."""

    def bring(self, uid: str, brought: Sequence[Connection]) -> None:
        """Have these connections of an interface known with the next `enforce`, for a while."""
        self._brought[uid] = brought
        self._brought_until = max(self._brought_until, time.monotonic() + bringing.SECONDS)

    def let_go(self) -> bool:
        """Whether connections were known for long enough: after the next `enforce` they are not."""
        if not self._brought or time.monotonic() < self._brought_until:
            return False
        self._brought.clear()
        return True

    async def connections(self, nic: Nic) -> Sequence[Connection]:
        """Those of the interface that are established. Raises `NetworkError`."""
        zone = (await self._zones()).get(nic.uid)
        if zone is None or not nic.addresses:
            return ()
        listing = await run([*await self._control(), "dpctl/dump-conntrack", self._datapath, f"zone={zone}"])
        return bringing.listed(listing, zone, nic)

    def doubt(self) -> None:
        """It is not known what is in force, until the next `enforce`."""
        self._in_force = False

    async def enforce(self, layout: Layout) -> bool:
        """Have that in the northbound database, and in force on this host; whether it was not so. After a call that did not
        come to its end nobody knows what is in force, so the next one waits whatever stands there. Raises `NetworkError`:
        DatabaseFailed, NotAnswering."""
        north, rows = self._databases.north, northbound.render(layout, self._settings.lease_seconds, self._brought)
        anew, self._in_force = not self._in_force, False
        if await asyncio.to_thread(north.left_behind, rows):
            number = await asyncio.to_thread(lambda: north.apply(routing.without(rows), anew=True))
            await self._await(number or 0)
        number = await asyncio.to_thread(lambda: north.apply(rows, anew=anew))
        if number is not None:
            await self._await(number)
        self._in_force = True
        ports = layout.places.keys() if self._rows is None else connections.narrower(self._rows, rows)
        if ports:
            await self._cut(layout, ports)
        self._rows = rows
        await self.limit(layout)
        return number is not None

    async def _await(self, number: int) -> None:
        """Return when the change of that number is in force on this host. Raises `NetworkError`."""
        deadline = time.monotonic() + FORCE_SECONDS
        while await asyncio.to_thread(self._databases.switch.reached, self._settings.integration) < number:
            if time.monotonic() > deadline:
                raise NetworkError(
                    "ovn-northd or ovn-controller of this host does not answer; look at the services ovn-central and"
                    " ovn-host.",
                    reason="NotAnswering",
                )
            await asyncio.sleep(LOOK_SECONDS)

    async def _cut(self, layout: Layout, ports: Collection[str]) -> None:
        """Have connections of these ports forgotten that no rule allows."""
        zones = await self._zones()
        if not zones.keys() & set(ports):
            return
        control = await self._control()
        listing = await run([*control, "dpctl/dump-conntrack", self._datapath])
        for said in connections.forgetting(connections.forbidden(layout, ports, zones, listing)):
            # Beside a connection to forget the command takes no name of a datapath.
            status, _, err = await attempt([*control, "dpctl/flush-conntrack", *said])
            if status != 0 and "No such file" not in err:  # it has ended meanwhile
                raise NetworkError(
                    f"Connections that are not allowed any more cannot be cut: {' '.join(err.split())[:300]}.",
                    reason="CommandFailed",
                )

    async def limit(self, layout: Layout, *, anew: bool = False) -> bool:
        """Have no guest track more connections than it may; whether one could. `anew`: whatever was said before. A datapath that knows no limits is in the log:
        its guests work all the same."""
        zones = await self._zones()
        most = self._settings.connections
        wanted = {zones[uid]: most for uid in layout.places if uid in zones}
        if self._limited == wanted and not anew:
            return False
        control = await self._control()
        status, out, err = await attempt([*control, "dpctl/ct-get-limits", self._datapath])
        there = connections.limits(out)
        missing = sorted(wanted.items() - there.items())
        gone = sorted(zone for zone, limit in there.items() if limit == most and zone not in wanted)
        if status == 0 and missing:
            said = [f"zone={zone},limit={limit}" for zone, limit in missing]
            status, _, err = await attempt([*control, "dpctl/ct-set-limits", self._datapath, *said])
        if status == 0 and gone:
            said = [f"zone={','.join(map(str, gone))}"]
            status, _, err = await attempt([*control, "dpctl/ct-del-limits", self._datapath, *said])
        if status != 0:
            log.warning("connections of guests are not limited", error=" ".join(err.split())[:300])
        self._limited = wanted
        return bool(missing)

    async def _zones(self) -> Mapping[str, int]:
        return await asyncio.to_thread(self._databases.switch.zones, self._settings.integration)

    async def _control(self) -> Sequence[str]:
        return [str(self._settings.appctl), "-t", str(await asyncio.to_thread(host.control, self._settings))]

    @property
    def _datapath(self) -> str:
        kind = self._databases.kind
        return f"{kind}@ovs-{kind}"
