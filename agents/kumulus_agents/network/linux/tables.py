"""The tables of nftables in the kernel: loaded in one transaction, compared with what they should be."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping, Sequence

from kumulus_agents.network.linux import ruleset
from kumulus_agents.network.linux.names import TABLE
from kumulus_agents.network.linux.programs import ENVIRONMENT, SECONDS, attempt, run
from kumulus_agents.network.linux.ruleset import Json, Ruleset
from kumulus_agents.network.linux.settings import GatewaySettings
from kumulus_agents.network.protocol import NetworkError


class Tables:
    """What is loaded. Its verbs are called one at a time."""

    def __init__(
        self, settings: GatewaySettings, *, inside: Sequence[str] = (), families: Sequence[str] = ruleset.FAMILIES
    ) -> None:
        """`inside`: command that goes to a network namespace, when they are there."""
        self._inside = inside
        self._families = families
        self._nft = [str(settings.nft), "-j", "-f", "-"]
        self._settings = settings
        self._loaded: Ruleset | None = None
        self._generation: int | None = None

    async def load(self, wanted: Ruleset) -> None:
        """Have these rules in force, in one transaction; none when they are. Raises `NetworkError`."""
        before, self._loaded = self._loaded, None
        sure = self._generation is not None and self._generation == self._now()
        self._generation = None
        if before is None or not before.chains or not wanted.chains:
            commands = [] if before == wanted else ruleset.whole(wanted, self._families)
        else:
            commands = ruleset.changes(before, wanted)
        if commands:
            old = self._now()
            try:
                await run([*self._inside, *self._nft], text(commands))
            except NetworkError:
                if before is None:
                    raise
                await run(
                    [*self._inside, *self._nft], text(ruleset.whole(wanted, self._families))
                )  # somebody else has changed what was loaded
            sure = (sure or before is None) and old is not None and self._now() == old + 1
        self._loaded = wanted
        self._generation = self._now() if sure else None

    async def are(self, wanted: Ruleset) -> bool:
        """Whether exactly these are in force. Nobody has changed anything of nftables since they were loaded: they are.
        Else the kernel's own listing is compared with that of the same rules in a network namespace that exists for this
        question only."""
        now = self._now()
        if self._loaded == wanted and now is not None and now == self._generation:
            return True
        same = await self._list(self._inside) == await self._list_apart(wanted)
        self._loaded = wanted if same else None
        self._generation = now if same and now == self._now() else None
        return same

    def disturbed(self) -> bool:
        """Whether nftables may have been changed by somebody else since the rules were loaded or looked at, as far as the
        kernel says."""
        now = self._now()
        return now is not None and now != self._generation

    def _now(self) -> int | None:
        """The number of changes so far; not known of another namespace."""
        return None if self._inside else generation()

    async def takes(self, wanted: Ruleset) -> bool:
        """Whether these could be in force; tried in a network namespace that exists for this question only."""
        try:
            await self._list_apart(wanted)
        except NetworkError:
            return False
        return True

    async def _list(self, enter: Sequence[str]) -> Mapping[str, object]:
        """What is in force, normal."""
        return _normal(await self.listings(enter))

    async def listings(self, enter: Sequence[str] = ()) -> Sequence[str]:
        """What is in force, as nft lists it with its counters."""
        listings = []
        for family in self._families:  # one command each: nft keeps tables of one family in mind
            table = {"family": family, "name": TABLE}
            status, out, _ = await attempt([*enter, *self._nft], text([{"list": {"table": table}}]))
            if status == 0:
                listings.append(out)
        return listings

    async def _list_apart(self, wanted: Ruleset) -> Mapping[str, object]:
        """What would be in force, normal."""
        if not wanted.chains:
            return _normal([])
        pipe = asyncio.subprocess.PIPE
        keeper = await asyncio.create_subprocess_exec(
            str(self._settings.unshare), "--net", "cat", stdin=pipe, stdout=pipe, env=ENVIRONMENT
        )
        assert keeper.stdin and keeper.stdout
        try:
            async with asyncio.timeout(SECONDS):
                keeper.stdin.write(b"here\n")
                await keeper.stdout.readline()
            enter = [str(self._settings.nsenter), f"--net=/proc/{keeper.pid}/ns/net", "--"]
            await run([*enter, *self._nft], text(ruleset.whole(wanted, self._families)))
            return await self._list(enter)
        finally:
            keeper.stdin.close()
            await keeper.wait()


_NETLINK_NETFILTER, _GET_GENERATION, _REQUEST, _GENERATION_ID = 12, 10 << 8 | 16, 1, 1


def generation() -> int | None:
    """The number of changes that nftables has seen in this network namespace; None when the kernel does not say.
    NFT_MSG_GETGEN of linux/netfilter/nf_tables.h."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(1)
        netlink.send(struct.pack("=IHHIIBBH", 20, _GET_GENERATION, _REQUEST, 0, 0, 0, 0, 0))
        answer = netlink.recv(4096)
    at = 20
    while at + 8 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind & 0x3FFF == _GENERATION_ID:
            return int.from_bytes(answer[at + 4 : at + 8], "big")
        at += max(length + 3 & ~3, 4)
    return None


def text(commands: Sequence[Json]) -> str:
    """Commands as nft reads them."""
    return json.dumps({"nftables": commands})


def _normal(listings: Sequence[str]) -> Mapping[str, object]:
    """A listing without what counts, and without the order in which things were made."""
    rules: dict[str, list[object]] = {}
    others: dict[str, object] = {}
    for listing in listings:
        for entry in json.loads(listing)["nftables"]:
            ((kind, counting),) = entry.items()
            if kind == "metainfo":
                continue
            said: dict[str, object] = {key: _still(value) for key, value in counting.items() if key != "handle"}
            if kind == "rule":
                rules.setdefault(f"{said['family']} {said['chain']}", []).append(said)
            else:
                if "timeout" in said:  # rules put in what it has
                    said.pop("elem", None)
                others[f"{kind} {said['family']} {said['name']}"] = said
    return {"rules": rules, "others": others}


def _still(said: object) -> object:
    if isinstance(said, dict):
        return {
            key: sorted((_still(one) for one in value), key=json.dumps)
            if key in ("elem", "set") and isinstance(value, list)
            else _still(value)
            for key, value in said.items()
            if key not in ("handle", "packets", "bytes")
        }
    if isinstance(said, list):
        return [_still(one) for one in said]
    return said
