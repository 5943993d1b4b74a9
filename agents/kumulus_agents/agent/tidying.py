"""Gives the space of volumes' layers back that nobody needs: removes them, and merges two where one would do."""

from __future__ import annotations

from contextlib import nullcontext

import structlog

from kumulus_agents.agent.passphrases import Passphrases, encrypting
from kumulus_agents.agent.reservations import Reservations
from kumulus_agents.hypervisor.domain import Domain, DomainState
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.protocol import Merge, ProgressListener, StorageDriver, StorageError

log = structlog.get_logger(__name__)


class Tidying:
    """Of this host's volumes. Who calls has the volume reserved."""

    def __init__(self, hypervisor: Hypervisor, reservations: Reservations, passphrases: Passphrases) -> None:
        self._hypervisor = hypervisor
        self._reservations = reservations
        self._passphrases = passphrases

    async def tidy(
        self, driver: StorageDriver, volume: str, secret: str | None, progress: ProgressListener | None = None
    ) -> None:
        """Merge what can be merged. `secret` names the Secret with the passphrase of an encrypted volume.

        May be repeated, and ended at any moment. Raises `StorageError`, `HypervisorError`.
        """
        await self.adopt(driver, volume)
        while (merge := await driver.next_merge(volume)) is not None:
            if (user := await self.user(volume)) is None:
                if secret is None:
                    await driver.merge(volume, merge, progress)
                else:
                    passphrase = await self._passphrases.read(secret)
                    await encrypting(driver).merge_encrypted(volume, merge, passphrase, progress)
            else:
                await self._merge_live(user, driver, volume, merge, progress)
            log.info("layers merged", volume=volume, upper=merge.upper, lower=merge.lower)

    async def _merge_live(
        self, user: Domain, driver: StorageDriver, volume: str, merge: Merge, progress: ProgressListener | None
    ) -> None:
        """The emulator merges, the record learns of it before the guest goes on."""
        machine = user.marks.uid
        pace = Pace(progress)
        pace.stage("Merging", 0, 0)
        with self._reservations.halting(machine) if merge.active else nullcontext():
            try:
                await self._hypervisor.merge_layers(
                    machine, volume, merge.upper, merge.lower, pace.at, lambda: driver.merged(volume, merge)
                )
            except HypervisorError as error:
                if error.reason != "DiskNotAttached" or await self.user(volume) is not None:
                    raise  # else the machine has ended meanwhile, and the pool does it itself

    async def adopt(self, driver: StorageDriver, volume: str) -> str | None:
        """What a machine that is on writes to is what the volume is: tell the pool. Returns that machine's uid."""
        domain = await self.user(volume)
        if domain is None:
            return None
        for disk in domain.disks:
            if disk.volume == volume:
                await driver.adopt(volume, disk.path)
        return domain.marks.uid

    async def user(self, volume: str) -> Domain | None:
        """The machine that is on and has the volume.

        Raises `StorageError(reason="MachineSuspended")` when one has it that is suspended: its memory knows the volume as it is.
        """
        for domain in await self._hypervisor.domains():
            if domain.saved is not None and volume in domain.volumes:
                raise suspended(domain.marks.name)
            if domain.state is not DomainState.STOPPED and volume in domain.volumes:
                return domain
        return None


def suspended(machine: str) -> StorageError:
    """Nothing is done to a volume whose machine is suspended."""
    return StorageError(
        f"Machine {machine} is suspended and has the volume, and its memory knows the volume as it is now. Resume it, or stop"
        " it: this goes on then.",
        reason="MachineSuspended",
    )
