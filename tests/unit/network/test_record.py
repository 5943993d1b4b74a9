"""What is on record."""

from __future__ import annotations

from pathlib import Path

from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.linux.record import Record, write_whole
from tests.unit.network.material import NETWORK, OTHER, layout, nic_uid


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    record, shape = Record(tmp_path), layout()
    assert record.load() == Layout()
    for network in shape.networks.values():
        record.keep_network(network)
    for place in shape.places.values():
        record.keep_port(place)
    assert Record(tmp_path).load() == shape
    record.forget_port(nic_uid(11))
    record.forget_network(OTHER)
    record.forget_network(OTHER)
    found = Record(tmp_path).load()
    assert nic_uid(11) not in found.places
    assert set(found.networks) == {NETWORK}


def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path) -> None:
    record, shape = Record(tmp_path), layout()
    record.load()
    record.keep_network(shape.networks[NETWORK])
    (tmp_path / "networks" / f"{OTHER}.json").write_text('{"order"')
    (tmp_path / "ports" / f"{OTHER}.json").write_text("[]")
    (tmp_path / "ports" / f"{NETWORK}.json.new").write_text("half")
    assert record.load() == Layout({NETWORK: shape.networks[NETWORK]}, {})


def test_files_are_written_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_whole(path, "a")
    inode = path.stat().st_ino
    assert not write_whole(path, "a")
    assert path.stat().st_ino == inode
    assert write_whole(path, "b", 0o640)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("b", 0o640)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
