"""Names, tags, commands and reports of thin pools. The driver itself is in `tests/contract/test_lvm.py`."""

from __future__ import annotations

import json
import shlex
from decimal import Decimal
from typing import Any

import pytest

from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import LvmParameters, PoolDriver, PoolParameters
from kumulus_agents.storage.lvm import commands, faults, kernel, names, report
from kumulus_agents.storage.lvm.driver import LvmStorage, make
from kumulus_agents.storage.lvm.tags import Record, Tag, tag
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import LvmSettings, StorageSettings
from tests.unit.storage.test_registry import NONE

V = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
W = "0b5c1f8e-7a5a-4a53-9c6e-6f1f3d3f5a11"
VOLUME = "volume.6f3a0c7e9d1b4c558a2e0123456789ab"
MIB = 1 << 20


def lv(name: str, *tags: str, **changes: str) -> dict[str, str]:
    """A row of `lvs`, of a thin volume of 4 MiB."""
    return {
        "lv_name": name,
        "lv_size": str(4 * MIB),
        "lv_tags": ",".join(tags),
        "segtype": "thin",
        "pool_lv": "thin",
        "origin": "",
        "data_percent": "50.00",
        "metadata_percent": "",
        "zero": "",
        "lv_active": "active",
        "lv_permissions": "writeable",
        "lv_device_open": "",
        "lv_health_status": "",
        "vg_extent_size": "65536",
        **changes,
    }


POOL = lv(
    "thin",
    segtype="thin-pool",
    pool_lv="",
    lv_size=str(100 * MIB),
    data_percent="25.00",
    metadata_percent="10.74",
    zero="zero",
)


def listing(*rows: dict[str, str]) -> report.Listing:
    return report.read(json.dumps({"report": [{"lv": list(rows)}]}).encode(), "thin")


class TestNames:
    """Names derive from uids and stay within what device-mapper can name."""

    def test_they_say_what_it_is(self) -> None:
        assert names.volume(V) == VOLUME
        assert names.image(V) == f"image.{V.replace('-', '')}"
        assert names.volume(V, W) == f"{VOLUME}.0b5c1f8e7a5a4a539c6e6f1f3d3f5a11"
        assert names.snapshot(V, W).startswith(names.snapshots(V))
        assert names.disk(V, W).startswith(names.disks(V))
        assert names.is_of_volume(names.volume(V), V)
        assert names.is_of_volume(names.volume(V, W), V)
        assert not names.is_of_volume(names.volume(W, V), V)
        assert not names.is_of_volume(names.snapshot(V, W), V)
        assert names.is_copied(names.copied(V, W), W)
        assert not names.is_copied(names.copied(V, W), V)

    def test_with_the_longest_group_they_fit_into_the_name_of_a_device(self) -> None:
        """DM_NAME_LEN is 128, with a zero."""
        longest = max(len(name) for name in (names.volume(V, W), names.disk(V, W), names.copied(V, W)))
        group = LvmParameters.model_fields["volume_group"].metadata[0].max_length
        assert group + 1 + longest < 128

    @pytest.mark.parametrize("make_one", [names.image, names.volume, names.disks, names.snapshots])
    def test_none_is_one_that_lvm_keeps_for_itself(self, make_one: Any) -> None:
        name = make_one(V)
        assert not name.startswith(("snapshot", "pvmove"))
        assert "_" not in name


class TestTags:
    """What is recorded."""

    def test_they_come_back(self) -> None:
        written = [tag(Tag.WHOLE), tag(Tag.SIZE, 4096), tag(Tag.AT, "2026-11-20T12:00:00+01:00"), "mine", "kumulus"]
        record = Record.of(written)
        assert record.whole
        assert record.number(Tag.SIZE) == 4096
        assert record.one(Tag.AT) == "2026-11-20T12:00:00+01:00"
        assert record.one(Tag.KEEPER) is None
        assert record.tags(Tag.SIZE) == ("kumulus.size=4096",)

    def test_what_is_not_whole_or_not_clear_is_nothing(self) -> None:
        record = Record.of(["kumulus.wholesome", "kumulus.size=1", "kumulus.size=2", "kumulus.reverted=x"])
        assert not record.whole
        assert record.number(Tag.SIZE) is None
        assert record.number(Tag.REVERTED) is None
        assert not Record.of([""]).whole

    @pytest.mark.parametrize("value", ["a b", "a,b", "$(id)", "x" * 901, "a\nb", "@x", 'a"'])
    def test_what_lvm_would_not_take_is_refused(self, value: str) -> None:
        with pytest.raises(ValueError, match="tag"):
            tag(Tag.KEEPER, value)


class TestCommands:
    """Each is a list of arguments that names its volume group."""

    @pytest.mark.parametrize(
        ("command", "expected"),
        [
            (
                commands.create("vg0", "thin", VOLUME, 4 * MIB, (tag(Tag.WHOLE), tag(Tag.SIZE, 5))),
                f"lvcreate --yes --type thin --thinpool thin --virtualsize 4194304b --name {VOLUME} --wipesignatures n"
                " --setactivationskip n --addtag kumulus.whole --addtag kumulus.size=5 vg0",
            ),
            (
                commands.snapshot("vg0", VOLUME, "snap.x.y", (), kept=True),
                f"lvcreate --yes --snapshot --name snap.x.y --permission r --setactivationskip y vg0/{VOLUME}",
            ),
            (
                commands.snapshot("vg0", "image.x", "disk.y.z", (tag(Tag.WHOLE),)),
                "lvcreate --yes --snapshot --name disk.y.z --permission rw --setactivationskip n"
                " --addtag kumulus.whole vg0/image.x",
            ),
            (commands.extend("vg0", VOLUME, 8 * MIB), f"lvextend --yes --size 8388608b vg0/{VOLUME}"),
            (
                commands.activate("vg0", VOLUME),
                f"lvchange --yes --activate y --ignoreactivationskip vg0/{VOLUME}",
            ),
            (
                commands.mark("vg0", VOLUME, ("kumulus.keeper=2/b",), ("kumulus.keeper=1/a",)),
                f"lvchange --yes --deltag kumulus.keeper=1/a --addtag kumulus.keeper=2/b vg0/{VOLUME}",
            ),
            (commands.seal("vg0", "image.x"), "lvchange --yes --permission r vg0/image.x"),
            (commands.remove("vg0", VOLUME), f"lvremove --yes vg0/{VOLUME}"),
            (
                commands.report("vg0"),
                "lvs --reportformat json --units b --nosuffix --options lv_name,lv_size,lv_tags,segtype,pool_lv,origin,"
                "data_percent,metadata_percent,zero,lv_active,lv_permissions,lv_device_open,lv_health_status,"
                "vg_extent_size vg0",
            ),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    def test_they_are(self, command: list[str], expected: str) -> None:
        assert command == shlex.split(expected)


class TestReport:
    """What LVM reports, read into facts."""

    def test_a_pool_and_its_volumes(self) -> None:
        other = lv("other", pool_lv="another")
        plain = lv("root", segtype="linear", pool_lv="", data_percent="")
        found = listing(POOL, lv(VOLUME, "kumulus.whole", "kumulus.size=4000256", lv_device_open="open"), other, plain)
        assert found.pool == report.ThinPool(100 * MIB, 25 * MIB, Decimal("10.74"), True, True, "")
        assert list(found.volumes) == [VOLUME]
        volume = found.whole(VOLUME)
        assert volume is not None
        assert (volume.size, volume.disk_size, volume.used, volume.open) == (4 * MIB, 4000256, 2 * MIB, True)
        assert (volume.active, volume.writable) == (True, True)
        assert (found.extents(1), found.extents(65536), found.extents(65537)) == (65536, 65536, 131072)

    def test_no_pool(self) -> None:
        assert listing().pool is None
        assert listing(lv("thin", segtype="linear", pool_lv="")).pool is None

    def test_what_is_not_active_is_said_by_its_tags(self) -> None:
        row = lv("snap.x.y", "kumulus.used=123", lv_active="", data_percent="", lv_permissions="read-only")
        found = listing(POOL, row).get("snap.x.y")
        assert found is not None
        assert (found.used, found.active, found.writable) == (123, False, False)

    @pytest.mark.parametrize("output", [b"", b"[]", b"{}", b'{"report": []}', b'{"report": [{"lv": [{}]}]}', b"\xff"])
    def test_nonsense(self, output: bytes) -> None:
        with pytest.raises(ValueError):
            report.read(output, "thin")

    def test_what_is_the_volume_before_and_after_it_was_reverted(self) -> None:
        old = lv(VOLUME, "kumulus.whole")
        back = names.volume(V, W)
        half = lv(back)
        made = lv(back, "kumulus.whole", f"kumulus.replaces={VOLUME}", "kumulus.reverted=r")
        for rows, name in (((old,), VOLUME), ((old, half), VOLUME), ((old, made), back), ((made,), back)):
            found = listing(POOL, *rows).volume(V)
            assert found is not None
            assert found.name == name
        assert listing(POOL, half).volume(V) is None
        assert listing(POOL, old).volume(W) is None

    def test_who_stands_on_it(self) -> None:
        snap = names.snapshot(V, W)
        rows = (lv(snap, "kumulus.whole"), lv(names.volume(W), origin=snap), lv(names.copied(W, W), origin=snap))
        assert listing(POOL, *rows).standing_on(snap) == 1
        assert listing(POOL, *rows, lv(names.volume(V, W), origin=snap)).standing_on(snap) == 2
        assert listing(POOL, *rows, lv(names.volume(V, W), origin=snap)).standing_on(snap, but_volume=V) == 1


class TestFaults:
    """What is wrong, and what to do about it."""

    @pytest.mark.parametrize(
        ("changes", "reason", "says"),
        [
            ({"zero": ""}, "ThinPoolNotZeroing", "lvchange --zero y vg0/thin"),
            ({"lv_health_status": "failed"}, "ThinPoolFailed", "lvconvert --repair"),
            ({"lv_health_status": "metadata_read_only"}, "ThinPoolFailed", "metadata_read_only"),
            ({"segtype": "linear"}, "ThinPoolMissing", "lvcreate --type thin-pool --zero y"),
        ],
    )
    def test_pools_that_no_volume_may_be_in(self, changes: dict[str, str], reason: str, says: str) -> None:
        with pytest.raises(StorageError) as refused:
            faults.usable(listing({**POOL, **changes}), "near", "vg0", "thin")
        assert refused.value.reason == reason
        assert refused.value.retryable
        assert says in str(refused.value)

    @pytest.mark.parametrize(
        ("changes", "needed", "says"),
        [
            ({}, 76 * MIB, "79691776 bytes are needed, 78643200 are free"),
            ({"metadata_percent": "95.00"}, 0, "--poolmetadatasize"),
        ],
    )
    def test_no_room(self, changes: dict[str, str], needed: int, says: str) -> None:
        pool = faults.usable(listing({**POOL, **changes}), "near", "vg0", "thin")
        with pytest.raises(StorageError) as refused:
            faults.room(pool, needed, "near")
        assert refused.value.reason == "NoSpace"
        assert says in str(refused.value)

    def test_what_should_be_said_of_one_that_works(self) -> None:
        def said(**changes: str) -> str | None:
            return faults.warning(faults.usable(listing({**POOL, **changes}), "near", "vg0", "thin"), "near")

        assert said() is None
        assert "81.00 % of the metadata" in (said(metadata_percent="81.00") or "")
        assert "out_of_data" in (said(lv_health_status="out_of_data") or "")

    @pytest.mark.parametrize(
        ("errors", "reason"),
        [
            ('  Volume group "vg0" not found\n  Cannot process volume group vg0\n', "VolumeGroupMissing"),
            ("  Can't create thin without using device-mapper kernel driver.\n", "DriverUnsupported"),
            ("  Cannot create new thin volume, free space in thin pool vg0/thin reached threshold.\n", "NoSpace"),
            ("  Logical volume vg0/volume.x in use.\n", "Busy"),
            ("  Something else.\n", "PoolFailed"),
        ],
    )
    def test_how_commands_end(self, errors: str, reason: str) -> None:
        error = faults.judged(5, errors, "near", "vg0")
        assert error is not None
        assert error.reason == reason
        assert faults.judged(0, errors, "near", "vg0") is None

    def test_what_lvm_said_is_told_without_its_warnings(self) -> None:
        error = faults.judged(5, "  WARNING: Device lost.\n  Failed to write VG vg0.\n", "near", "vg0")
        assert "(status 5): Failed to write VG vg0." in str(error)
        assert "Device lost" not in str(error)
        assert len(str(faults.judged(5, "x" * 9999, "near", "vg0"))) < 400


class TestKernel:
    """What this host has."""

    def test_targets(self) -> None:
        assert kernel.has_target("thin             v1.22.0\nthin-pool        v1.22.0\nlinear           v1.4.0\n")
        assert not kernel.has_target("thin             v1.22.0\nlinear           v1.4.0\n")
        assert not kernel.has_target("")

    def test_a_program_that_is_not_there_is_named_with_its_package(self, tmp_path: Any) -> None:
        settings = LvmSettings(lvm=tmp_path / "lvm")
        with pytest.raises(StorageError) as refused:
            kernel.check("near", settings, StorageSettings().cage.qemu_img)
        assert refused.value.reason == "ToolsMissing"
        assert "program lvm" in str(refused.value)
        assert "package lvm2" in str(refused.value)

    @pytest.mark.parametrize("targets", ["exit 1", "echo linear v1.4.0"])
    async def test_a_kernel_without_thin_pools_is_refused_by_every_verb(self, tmp_path: Any, targets: str) -> None:
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{targets}\n")
        program.chmod(0o755)
        lvm = LvmSettings(lvm=program, dmsetup=program, modprobe=program, blkdiscard=program)
        cage = StorageSettings().cage.model_copy(update={"qemu_img": program})
        driver = make(pool_ref(), StorageSettings(lvm=lvm, cage=cage), NONE)
        for attempt in (driver.prepare(), driver.volume(V), driver.ensure_volume(V, MIB, None, False), driver.image(V)):
            with pytest.raises(StorageError) as refused:
                await attempt
            assert (refused.value.reason, refused.value.retryable) == ("DriverUnsupported", False)
            assert "Boot a kernel" in str(refused.value)
            assert "dir" in str(refused.value)


def pool_ref() -> PoolRef:
    lvm = LvmParameters(volume_group="vg0", thin_pool="thin")
    return PoolRef(uid=W, name="near", driver=PoolDriver.LVM, parameters=PoolParameters(lvm=lvm))


def test_parameters_of_another_driver_are_refused() -> None:
    other = pool_ref().model_copy(update={"parameters": PoolParameters(path="/x")})
    with pytest.raises(StorageError) as refused:
        LvmStorage(other, StorageSettings())
    assert refused.value.reason == "BadParameters"
