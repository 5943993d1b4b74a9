"""What goes wrong beside a Ceph pool: agents that die on the way, keys and pools that are not what they should be."""

# ruff: noqa: F811 - fixtures of the contract's tests

from __future__ import annotations

from kumulus.api.order_names import pool_secret_name
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.driver import RbdStorage
from kumulus_agents.storage.settings import StorageSettings
from tests.contract.ceph import POOL, STRANGER, USER, CephCluster
from tests.contract.test_rbd import (
    MIB,
    PATIENCE,
    Far,
    ceph,  # noqa: F401
    far,  # noqa: F401
    new_uid,
    pool_of,
    refused,
    secrets_of,
    server,  # noqa: F401
    settings,  # noqa: F401
)


class TestFaults:
    """Nothing that is half is taken for whole, and what is wrong is said."""

    async def test_what_was_cut_short_is_never_taken_for_whole(self, ceph: CephCluster, far: Far) -> None:
        volume, copy = new_uid(), new_uid()
        ceph.rbd("create", "--size", "1M", f"{POOL}/{names.making(names.volume(volume))}")
        assert await far.driver.volume(volume) is None
        assert (await far.driver.ensure_volume(volume, 2 * MIB, None, False)).virtual_size == 2 * MIB
        # A copy whose agent died: a snapshot of its source, and half of itself.
        ceph.rbd("snap", "create", f"{POOL}/{names.volume(volume)}@{names.copied(copy)}")
        ceph.rbd("create", "--size", "1M", f"{POOL}/{names.making(names.volume(copy))}")
        assert await far.driver.volume(copy) is None
        await far.driver.ensure_volume(copy, None, VolumeOrigin(volume=volume), False)
        ceph.rbd("snap", "create", f"{POOL}/{names.volume(volume)}@{names.copied(new_uid())}")
        await far.driver.remove_volume(volume)
        assert volume not in ceph.rbd("ls", POOL)
        # An image whose removal was cut short after each of its steps.
        base = f"{POOL}/{names.image(far.image.uid)}@{names.BASE}"
        ceph.rbd("snap", "unprotect", base)
        await far.driver.ensure_volume(volume, None, VolumeOrigin(image=far.image), False)
        await far.driver.remove_volume(volume)
        ceph.rbd("snap", "unprotect", base)
        ceph.rbd("rename", base.partition("@")[0], f"{POOL}/{names.making(names.image(far.image.uid))}")
        assert await far.driver.image(far.image.uid) is None
        await far.driver.remove_image(far.image.uid)
        assert far.image.uid not in ceph.rbd("ls", POOL)

    async def test_a_key_that_is_wrong_or_missing_is_asked_for_again(self, ceph: CephCluster, far: Far) -> None:
        good = far.secrets.secrets
        name = pool_secret_name(far.pool.uid)
        for secrets, reason in (
            ({}, "SecretNotFound"),
            ({name: {}}, "SecretUnreadable"),
            ({name: {"key": b"\xff"}}, "SecretUnreadable"),
            ({name: {"key": b"a b\nkeyring = /etc/shadow"}}, "SecretUnreadable"),
            ({name: {"key": ceph.key(STRANGER).encode()}}, "PoolForbidden"),
        ):
            far.secrets.secrets = secrets
            driver = far.again(answer_seconds=PATIENCE)
            assert (await refused(driver.volume(new_uid()))).reason == reason
            assert (await refused(driver.prepare())).reason == reason
            far.secrets.secrets = good
            assert (await driver.prepare()).capacity > 0

    async def test_pools_and_users_that_are_not_there(self, ceph: CephCluster, settings: StorageSettings) -> None:
        for changes, reason in (
            ({"pool": "nowhere"}, "PoolMissing"),
            ({"user": "nobody"}, "PoolForbidden"),
            ({"user": STRANGER}, "PoolForbidden"),
            ({"namespace": "tenants"}, "DriverUnsupported"),
        ):
            pool = pool_of(ceph, **changes)
            key = ceph.key(STRANGER if changes.get("user") == STRANGER else USER)
            impatient = settings.ceph.model_copy(update={"answer_seconds": PATIENCE})
            hasty = settings.model_copy(update={"ceph": impatient})
            driver = RbdStorage(pool, hasty, secrets_of(pool, key))
            assert (await refused(driver.prepare())).reason == reason
            if reason != "DriverUnsupported":
                assert (await refused(driver.volume(new_uid()))).reason == reason
