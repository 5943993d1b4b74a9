"""What labs begin with when Kumulus is installed in them already: copied once, and made anew when what is installed changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kumulus_lab import installed, places
from kumulus_lab.binaries import Binaries
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.errors import LabError


@pytest.fixture
def programs(tmp_path: Path) -> Binaries:
    program = tmp_path / "program"
    program.touch()
    return Binaries(etcd=program, apiserver=program, controller_manager=program, kubectl=program)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with a file for each thing that is looked at."""
    for pattern in installed._INPUTS:
        file = tmp_path / "checkout" / pattern.replace("*", "one")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    monkeypatch.setattr(places, "CHECKOUT", tmp_path / "checkout")
    return tmp_path / "checkout"


def test_whatever_decides_what_is_installed_makes_another_one(checkout: Path, programs: Binaries) -> None:
    seen = {installed.key(programs)}
    assert installed.key(programs) in seen, "nothing has changed"
    for pattern in installed._INPUTS:
        (checkout / pattern.replace("*", "one")).write_text("after")
        seen.add(installed.key(programs))
    (checkout / "crds" / "two.yaml").touch()
    seen.add(installed.key(programs))
    os.utime(programs.etcd, (1, 1))
    seen.add(installed.key(programs))
    assert len(seen) == 3 + len(installed._INPUTS)


def test_a_checkout_without_kinds_is_said(checkout: Path, programs: Binaries) -> None:
    (checkout / "crds" / "one.yaml").unlink()
    with pytest.raises(LabError, match=r"crds/\*\.yaml"):
        installed.key(programs)


def test_etcd_begins_with_a_copy_and_keeps_what_it_has(tmp_path: Path, programs: Binaries) -> None:
    source = tmp_path / "source" / "member"
    source.mkdir(parents=True)
    with (source / "journal").open("wb") as file:
        file.write(b"first")
        file.truncate(64 << 20)
    cluster = NativeCluster(tmp_path / "lab", programs, (1, 2, 3, 4))
    (tmp_path / "lab" / "etcd.new").mkdir(parents=True)  # somebody was killed while copying
    assert cluster.begin_with(source.parent)
    copy = cluster.data / "member" / "journal"
    assert copy.read_bytes() == (source / "journal").read_bytes()
    assert copy.stat().st_blocks * 512 < 1 << 20, "what is empty takes no room"
    copy.write_bytes(b"more")
    assert not cluster.begin_with(source.parent)
    assert copy.read_bytes() == b"more"
    assert sorted(path.name for path in (tmp_path / "lab").iterdir()) == ["etcd"]
