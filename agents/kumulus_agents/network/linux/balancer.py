"""haproxy in the network namespace of a gateway: a process of its own that outlives the agent and is found again.

It has no privileges from its first instruction on, and a user number of its own, so that one balancer reads no other's
keys. Its command line names its configuration, whose name follows from what is in it. A change starts another one, which
takes over what the one before listens at and has that one finish what it has begun: no connection is refused or cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from kumulus.api.balancing import Balancing, MemberFacts
from kumulus_agents.network.linux import haproxy
from kumulus_agents.network.linux.programs import run
from kumulus_agents.network.linux.record import write_whole
from kumulus_agents.network.linux.settings import GatewaySettings
from kumulus_agents.network.protocol import Identity, NetworkError

_SECONDS = 5.0
_FIRST_USER = 0x70000000
"""Of a range that no system gives to anybody."""
_DISPENSABLE = 1000
"""What the kernel ends first when memory is short (oom_score_adj); of several, the largest."""
_OLD_MOST = 8
"""So many that finish what they began; beyond, the oldest one ends, and the connections that it still has."""


def user(uid: str) -> int:
    """The number of the user, and of the group, that the balancer of that uid runs as."""
    return _FIRST_USER + int.from_bytes(hashlib.sha256(uid.encode()).digest()[:3])


class Balancer:
    """One load balancer's. Its verbs are called one at a time."""

    def __init__(self, uid: str, namespace: Path, settings: GatewaySettings) -> None:
        """`namespace`: file of the network namespace of its gateway, in which everybody may listen at any port, and at
        addresses that are elsewhere now."""
        self._files = haproxy.Files(PurePosixPath(settings.state) / "balancers" / uid)
        self._directory = Path(self._files.directory)
        self._user = user(uid)
        self._settings = settings
        self._inside = [str(settings.nsenter), f"--net={namespace}", "--"]
        self._healthy: dict[str, bool] = {}

    def lacks(self, balancing: Balancing) -> frozenset[str]:
        """Digests of what it needs to end TLS and is not on this host yet."""
        digests = {one.certificate.digest for one in balancing.listeners if one.certificate is not None}
        return frozenset(digest for digest in digests if not Path(self._files.key(digest)).exists())

    async def ensure(self, balancing: Balancing, certificates: Mapping[str, Identity]) -> bool:
        """Have it balance, with certificates and keys by their digests; those that are here need not be given.
        Whether it did not, or otherwise. Raises `NetworkError`: BadBalancer, CertificateMissing, CommandFailed."""
        text = haproxy.configuration(balancing, self._files)
        await asyncio.to_thread(self._prepare)
        for digest in sorted(self.lacks(balancing)):
            found = certificates.get(digest)
            if found is None or hashlib.sha256(found.pem).hexdigest() != digest:
                raise NetworkError(
                    "The certificate of the load balancer is not on this host yet.", reason="CertificateMissing"
                )
            await asyncio.to_thread(self._keep, digest, found)
        wanted = self._configuration(text)
        pid, running = await asyncio.to_thread(self._current)
        if running == wanted:
            return False
        await asyncio.to_thread(write_whole, wanted, text, 0o440, self._user)
        over: list[str] = []
        if pid is None:
            await self._end(await asyncio.to_thread(self._all))
        else:
            over = await self._hand_over(pid, balancing)
        bounded = self._bounded(haproxy.bounds(balancing))
        await run([*self._inside, *self._as_user(), *bounded, *self._command(wanted), *over])
        await asyncio.to_thread(self._tidy, wanted, balancing)
        await self._bound()
        return True

    async def facts(self, balancing: Balancing) -> tuple[MemberFacts, ...]:
        """Who of the members is well. Raises `NetworkError` when it does not answer."""
        found = haproxy.facts(balancing, haproxy.health(await self._ask("show stat -1 4 -1")), self._healthy)
        self._healthy = {member.uid: member.healthy for member in found}
        return found

    async def stop(self) -> None:
        """Have it not run, also no connection. Its files stay."""
        await self._end(await asyncio.to_thread(self._all))

    async def remove(self) -> None:
        """Have nothing of it. Never there: nothing."""
        if not await asyncio.to_thread(self._directory.exists):
            return
        await self.stop()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
        self._healthy = {}

    def _prepare(self) -> None:
        """Have the directories; only `run` is its own to write in."""
        for directory, mode, owner in (
            (self._directory, 0o750, 0),
            (self._directory / "keys", 0o750, 0),
            (Path(self._files.sockets), 0o700, self._user),
        ):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.chown(directory, owner, self._user)
            directory.chmod(mode)

    def _keep(self, digest: str, identity: Identity) -> None:
        write_whole(Path(self._files.key(digest)), identity.pem.decode(), 0o400, self._user, self._user)

    def _configuration(self, text: str) -> Path:
        return self._directory / f"haproxy-{hashlib.sha256(text.encode()).hexdigest()[:16]}.cfg"

    def _as_user(self) -> Sequence[str]:
        number = str(self._user)
        return [
            str(self._settings.setpriv),
            f"--reuid={number}",
            f"--regid={number}",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ]

    def _bounded(self, bounds: haproxy.Bounds) -> Sequence[str]:
        """Has no more of the host than that, nor an image of itself with keys when it fails; and when there is no memory
        left, it goes before any guest. It takes the right to make processes from itself."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = bounds.files if most == resource.RLIM_INFINITY else min(bounds.files, most)
        limits = [f"--as={bounds.memory}", f"--nofile={files}", "--core=0"]
        return [str(self._settings.prlimit), *limits, str(self._settings.choom), "-n", str(_DISPENSABLE), "--"]

    def _command(self, configuration: Path) -> Sequence[str]:
        return [str(self._settings.haproxy), "-D", "-f", str(configuration), "-p", str(self._files.pid)]

    async def _hand_over(self, pid: int, balancing: Balancing) -> list[str]:
        """Have what is known of members kept for the next one; how that takes over. One that does not answer cannot hand
        over what it listens at: the next one listens beside it."""
        try:
            states = haproxy.states(await self._ask("show servers state"), balancing)
        except NetworkError:
            return ["-sf", str(pid)]
        await asyncio.to_thread(write_whole, Path(self._files.states), states, 0o440, self._user)
        return ["-x", str(self._files.stats), "-sf", str(pid)]

    def _tidy(self, configuration: Path, balancing: Balancing) -> None:
        """Remove files of before; who has read them needs them no more."""
        digests = {one.certificate.digest for one in balancing.listeners if one.certificate is not None}
        keep = {configuration, *(Path(self._files.key(digest)) for digest in digests)}
        for path in (*self._directory.glob("haproxy-*.cfg"), *self._directory.glob("keys/*.pem")):
            if path not in keep:
                path.unlink(missing_ok=True)

    async def _bound(self) -> None:
        """End the oldest of those that have to finish what they began, when there are too many."""
        current, _ = await asyncio.to_thread(self._current)
        old = [pid for pid in await asyncio.to_thread(self._all) if pid != current]
        if len(old) > _OLD_MOST:
            await self._end(old[: len(old) - _OLD_MOST])

    def _current(self) -> tuple[int | None, Path | None]:
        """The one that takes connections, and its configuration; by its command line, for the number in a file may be
        somebody else's now."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(Path(self._files.pid).read_text())
            if (configuration := self._runs(pid)) is not None:
                return pid, configuration
        return None, None

    def _all(self) -> list[int]:
        """All of them, the oldest first."""
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return sorted((pid for pid in pids if self._runs(pid) is not None), key=_started)

    def _runs(self, pid: int) -> Path | None:
        start = f"{self._directory}/haproxy-"
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if (
                len(words) > 3
                and Path(words[0]).name == Path(self._settings.haproxy).name
                and words[3].startswith(start)
            ):
                return Path(words[3])
        return None

    async def _end(self, pids: Sequence[int]) -> None:
        deadline = time.monotonic() + _SECONDS
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        while left := [pid for pid in pids if self._runs(pid) is not None]:
            if time.monotonic() > deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if time.monotonic() > deadline + _SECONDS:
                    raise NetworkError(f"haproxy (process {left[0]}) does not end; look at it.", reason="Stuck")
            await asyncio.sleep(0.005)

    async def _ask(self, what: str) -> str:
        """What it says at its socket. Raises `NetworkError(reason="BalancerSilent")`."""
        try:
            async with asyncio.timeout(_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._files.stats))
                try:
                    writer.write(f"{what}\n".encode())
                    return (await reader.read()).decode(errors="replace")
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise NetworkError("haproxy of the load balancer does not answer.", reason="BalancerSilent") from error


def _started(pid: int) -> int:
    """When a process was started, in ticks; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
