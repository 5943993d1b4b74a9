"""Looks up what OVN and Open vSwitch of this host have dropped. Waits for no verb of the driver, and changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.ovn import drops, host, names, talk
from kumulus_agents.network.ovn.databases import Databases
from kumulus_agents.network.ovn.settings import OvnSettings
from kumulus_agents.network.protocol import Dropped, NetworkError


class Counters:
    """Of this host. Remembers what flows had counted that are gone, as long as the agent runs."""

    def __init__(self, settings: OvnSettings, databases: Databases) -> None:
        self._settings = settings
        self._databases = databases
        self._tally = drops.Tally()
        self._lock = asyncio.Lock()

    async def dropped(self, layout: Layout) -> Sequence[Dropped]:
        """What those of the layout have lost. Raises `NetworkError`: CommandFailed, NotAnswering, NotRunning."""
        async with self._lock:
            listing, at = await run(self._command("dump-flows")), time.monotonic()
            metered = ""
            if any(place.port.nic.bandwidth for place in layout.places.values()):
                status, out, _ = await attempt(self._command("meter-stats"))
                metered = out if status == 0 else ""  # not every datapath has meters
            await asyncio.to_thread(self._read, layout, listing, metered, at)
            return self._tally.dropped(layout)

    def _read(self, layout: Layout, listing: str, metered: str, at: float) -> None:
        """Blocks. The listing comes first: what a flow was made of is in the database as long as the flow is."""
        counts = list(self._guards(layout))
        north = self._databases.north
        why = drops.hints(north.uuids("ACL"), layout)
        limits = {uuid[:8]: key.partition("/")[0] for uuid, key in north.uuids("QoS").items()}
        said = self._southbound()
        counts += drops.integration(listing, layout, said, why, limits, drops.meters(metered), at)
        self._tally.add(counts)

    def _guards(self, layout: Layout) -> Sequence[drops.Count]:
        nics = [place.port.nic for place in layout.places.values()]
        questions = [("bridge/dump-flows", [names.guard(nic.uid)]) for nic in nics]
        answers, at = talk.ask(host.control(self._settings), questions), time.monotonic()
        return [
            count
            for nic, answer in zip(nics, answers, strict=True)
            for count in drops.guarding(answer or "", nic.network, nic.uid, at)
        ]

    def _southbound(self) -> drops.Southbound:
        socket = Path(host.southbound(self._settings).removeprefix("unix:"))
        (answer,) = talk.ask(socket, [("transact", ["OVN_Southbound", *drops.QUERY])])
        try:
            return drops.southbound(answer)
        except (KeyError, ValueError, TypeError) as error:
            raise NetworkError(f"{socket} answers what nobody asked.", reason="NotAnswering") from error

    def _command(self, verb: str) -> Sequence[str]:
        at = f"unix:{self._settings.openvswitch / self._settings.integration}.mgmt"
        return [str(self._settings.ofctl), "-O", "OpenFlow13", verb, at]
