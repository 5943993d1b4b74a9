"""How an export is mounted, where a kernel can: the command, and what is never left out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kumulus.api.pools import NfsParameters, NfsVersion
from kumulus_agents.storage.nfs import mount

TARGET = Path("/run/kumulus/mounts/x")


def test_the_kernel_mounts_hard_and_without_devices_or_programs() -> None:
    export = NfsParameters(
        server="nfs.example.com", path="/export/a", version=NfsVersion.V4_2, mount_options=("noatime", "nconnect=4")
    )
    *command, options, dashes, source, target = mount.kernel_arguments(export, TARGET)
    assert command == ["/usr/bin/mount", "-i", "-t", "nfs", "-o"]
    assert (dashes, source, target) == ("--", "nfs.example.com:/export/a", str(TARGET))
    given = options.split(",")
    assert given[:3] == ["noatime", "nconnect=4", "vers=4.2"]
    assert {"hard", "nosuid", "nodev", "noexec", "lookupcache=none", "acdirmin=0", "acdirmax=0"} == set(given[3:])


@pytest.mark.parametrize(
    ("server", "source"),
    [("10.0.0.1", "10.0.0.1:/a"), ("fd00::1", "[fd00::1]:/a"), ("nfs", "nfs:/a")],
)
def test_an_address_of_version_6_stands_in_brackets(server: str, source: str) -> None:
    assert mount.source_of(NfsParameters(server=server, path="/a")) == source


def test_what_is_mounted_is_read_without_asking_the_file_system() -> None:
    found = mount.mounted(Path("/proc"))
    assert found is not None and found.type == "proc"
    assert mount.mounted(Path("/proc/self")) is None
