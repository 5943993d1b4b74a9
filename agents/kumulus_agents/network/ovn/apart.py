"""The host's own kernel hears nothing of what Open vSwitch forwards by itself.

Without the kernel's part, Open vSwitch reads a copy of what a device brings, and the kernel goes on with the frame (packet(7)):
tried, what a guest sends to its own cable's other end, for an address of the host, reaches the host. Rules are about names,
so they are there before a device is. Open vSwitch reads before they are asked.
"""

from __future__ import annotations

from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.linux.tables import generation
from kumulus_agents.network.ovn.settings import Datapath, OvnSettings

TABLE = "kumulus-ovn"
DEVICES = (names.TAP, names.SERVICE, names.LEG, names.OUTER_LEG, names.LINK, names.GUARD)
"""How names of devices that are plugged into Open vSwitch begin."""

_HOOKS = {"inet": "prerouting priority -450", "arp": "input priority 0"}


def script() -> str:
    """What nft is told. The same again changes nothing."""
    lines = []
    for family, hook in _HOOKS.items():
        table = f"table {family} {TABLE}"
        drops = " ".join(f'iifname "{name}*" counter drop;' for name in DEVICES)
        lines += [table, f"delete {table}", f"{table} {{ chain host {{ type filter hook {hook}; {drops} }}; }}"]
    return "\n".join(lines) + "\n"


class Apart:
    """Its verb is called one at a time."""

    def __init__(self, settings: OvnSettings) -> None:
        self._nft = str(settings.nft)
        self._said: str | None = None
        """What nft listed when it was last loaded; empty when somebody else changed nftables meanwhile, so that it may be
        theirs."""
        self._generation: int | None = None
        """Of nftables when it was last in force for certain."""

    def disturbed(self) -> bool:
        """Whether nftables has changed since it was in force, so that it need not be any more."""
        return self._said is not None and generation() != self._generation

    async def ensure(self, datapath: str) -> bool:
        """Have it so; whether it was not. The kernel's own datapath takes frames for itself, so nothing is to be done for
        that. Raises `NetworkError`: ProgramMissing, CommandFailed."""
        if datapath != Datapath.NETDEV:
            return False
        now = generation()
        if self._said and ((now is not None and now == self._generation) or await self._listed() == self._said):
            self._generation = now
            return False
        stood, before = bool(self._said), generation()
        await run([self._nft, "-f", "-"], script())
        said, now = await self._listed(), generation()
        alone = before is None or now == before + 1
        self._said, self._generation = (said, now) if alone else ("", None)
        return stood

    async def _listed(self) -> str:
        said = ""
        for family in _HOOKS:
            _, out, _ = await attempt([self._nft, "-s", "list", "table", family, TABLE])
            said += out
        return said
