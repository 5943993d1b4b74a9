"""conntrackd of a gateway: its translated connections are known on its other hosts, and go on when one of these takes over.

One process a gateway, in its network namespace, that outlives the agent. It may do nothing but manage that namespace's
network (CAP_NET_ADMIN), as a user of its own. Where it cannot be, a gateway does without, and says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from kumulus.api.gateways import GatewayOrder
from kumulus_agents.network.linux import conntrackd, takeover
from kumulus_agents.network.linux.balancer import user
from kumulus_agents.network.linux.daemons import CONNTRACKD, Daemon
from kumulus_agents.network.linux.gateway_rules import LINK, copies
from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.linux.record import write_whole
from kumulus_agents.network.linux.settings import GatewaySettings
from kumulus_agents.network.protocol import NetworkError

EVENTS = Path("/proc/sys/net/netfilter/nf_conntrack_events")
_PROGRAM = "takeover.py"
_LOOSE = "net.netfilter.nf_conntrack_tcp_loose"
_SAID_MOST = 400
_DISPENSABLE = 500
"""What the kernel ends first when memory is short (oom_score_adj); a gateway goes on without."""


def missing(settings: GatewaySettings) -> str | None:
    """What this host plainly lacks for it, with what to do; None if nothing. Blocks."""
    for package, program in {"conntrackd": settings.conntrackd, "conntrack": settings.conntrack}.items():
        if not os.access(program, os.X_OK):
            return f"{program} is missing; install the package {package}."
    if EVENTS.parent.exists() and not EVENTS.exists():  # neither is there before anything is tracked
        return "The host's kernel tells nobody of connections (CONFIG_NF_CONNTRACK_EVENTS)."
    return None


class Replication:
    """One gateway's. Its verbs are called one at a time."""

    def __init__(self, uid: str, inside: Sequence[str], settings: GatewaySettings) -> None:
        """`inside`: command that goes to the gateway's network namespace."""
        self._settings = settings
        self._path = PurePosixPath(settings.state) / "connections" / uid
        self._directory = Path(self._path)
        self._inside = inside
        self._user = user(uid)
        number = str(self._user)
        alone = "-all,+net_admin"
        caged = [
            *(str(settings.prlimit), f"--as={conntrackd.bound(settings.copies)}", "--core=0", "--nofile=64"),
            *(str(settings.choom), "-n", str(_DISPENSABLE), "--"),
            *(str(settings.setpriv), f"--reuid={number}", f"--regid={number}", "--clear-groups", "--no-new-privs"),
            *(f"--inh-caps={alone}", f"--ambient-caps={alone}", f"--bounding-set={alone}"),
        ]
        self._daemon = Daemon(
            "conntrackd",
            self._directory,
            str(settings.conntrackd),
            self._user,
            inside=[*inside, *caged],
            options=CONNTRACKD,
        )
        self._why = ""
        self._kernel_can = False

    def notifies(self, order: GatewayOrder) -> Sequence[tuple[str, str]]:
        """What keepalived runs, and when: its words for that, and the command; nothing where nothing is copied."""
        if not copies(order) or self._why:
            return ()
        command = [os.path.realpath(sys.executable), "-I", "-S", self._directory / _PROGRAM]
        more = [self._settings.conntrackd, self._directory / conntrackd.CURRENT]
        return [
            (when, " ".join(map(str, [*command, role, *more])))
            for when, role in (("master", "active"), ("backup", "standby"), ("fault", "standby"))
        ]

    async def ensure(self, order: GatewayOrder, *, active: bool, anew: bool) -> str:
        """Have connections copied as far as this host can; what was not so, or nothing. `anew`: it has to forget devices
        that it knows."""
        try:
            if not copies(order):
                self._why = ""
                if await asyncio.to_thread(self._directory.exists):
                    await self._let_go()
                await self.remove()
                return ""
            if not (why := await self._lacking()):
                said = await self._ensure(order, active=active, anew=anew)
                self._why = ""
                return said
            await self._let_go()
            await self._daemon.remove()
        except (NetworkError, OSError) as error:  # a gateway without is better than none
            why = f"conntrackd does not run: {error}"[:_SAID_MOST]
            await self._let_go()
        self._why = why
        return ""

    async def _ensure(self, order: GatewayOrder, *, active: bool, anew: bool) -> str:
        await asyncio.to_thread(self._prepare)
        text = conntrackd.configuration(order, self._path / "run", self._settings.copies, await self._link())
        if not active and (anew or not await asyncio.to_thread(self._daemon.runs, text)):
            await self._commit()  # while it still has them
        started = await self._daemon.ensure(text, {conntrackd.CURRENT: text}, forgets=anew)
        if not started:
            return ""
        # What is open already is told to who listens; what others have, it asks for by itself.
        if active:
            await attempt(self._tells("-B"))
        return "conntrackd did not run as it should."

    async def _link(self) -> int:
        """The number of the gateway's device on the link."""
        said = await run([*self._inside, str(self._settings.ip), "-json", "link", "show", "dev", LINK])
        return int(json.loads(said)[0]["ifindex"])

    def _tells(self, what: str) -> list[str]:
        return [str(self._settings.conntrackd), "-C", str(self._directory / conntrackd.CURRENT), what]

    async def _commit(self) -> None:
        """Have what others told in the kernel, as far as that goes."""
        with suppress(NetworkError, TimeoutError):
            if await asyncio.to_thread(self._daemon.there):
                async with asyncio.timeout(takeover.SECONDS):
                    await attempt(self._tells("-c"))

    async def _let_go(self) -> None:
        """What a host does that becomes active, for keepalived has nobody told of that any more: have the copies in the
        kernel, then TCP picked up in the middle."""
        await self._commit()
        with suppress(NetworkError):
            await attempt([*self._inside, str(self._settings.sysctl), "-q", "-w", f"{_LOOSE}=1"])

    async def unkept(self, order: GatewayOrder) -> str:
        """Why open connections would not go on elsewhere; empty when they would, or there are none to keep. Quick."""
        if not copies(order):
            return ""
        if not self._why and not await asyncio.to_thread(self._daemon.there):
            return "conntrackd has ended; it is started again."
        return self._why

    async def remove(self) -> None:
        """Have nothing of it. Never there: nothing."""
        if not await asyncio.to_thread(self._directory.exists):
            return
        await self._daemon.remove()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _lacking(self) -> str:
        """What this host lacks for it, with what to do; nothing if nothing."""
        if (why := await asyncio.to_thread(missing, self._settings)) is not None:
            return why
        if self._kernel_can:
            return ""
        status, _, _ = await attempt([str(self._settings.unshare), "--net", str(self._settings.conntrack), "-C"])
        if status != 0:
            return "The host's kernel gives no access to connections (nf_conntrack_netlink): load that module."
        self._kernel_can = True
        return ""

    def _prepare(self) -> None:
        """Have the directories; only `run` is its own to write in. Nobody holds a lock there but the one that runs."""
        run = self._directory / "run"
        for directory, mode, owner in ((self._directory, 0o750, 0), (run, 0o700, self._user)):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.chown(directory, owner, self._user)
            directory.chmod(mode)
        write_whole(self._directory / _PROGRAM, Path(takeover.__file__).read_text(), 0o500)
        if not self._daemon.there():
            (run / conntrackd.LOCK).unlink(missing_ok=True)
