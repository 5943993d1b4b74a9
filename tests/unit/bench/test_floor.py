"""The domain by hand equals the one that was there, under another name and with other files."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.bench import floor

XML = """<domain type='qemu'>
  <name>kumulus-1</name><uuid>11111111-2222-3333-4444-555555555555</uuid>
  <metadata><k:instance xmlns:k='https://kumulus.io/domain'/></metadata>
  <memory unit='KiB'>65536</memory>
  <devices>
    <disk type='file' device='disk'><source file='/pools/a/disk.qcow2'/><target dev='vda'/></disk>
    <disk type='file' device='cdrom'><source file='/instances/1/seed.iso'/><target dev='sda'/></disk>
    <serial type='pty'><log file='/instances/1/console.log' append='on'/></serial>
  </devices>
</domain>"""


def test_only_names_and_files_differ() -> None:
    made, disk, copies = floor.equal(XML, "floor", "99999999-2222-3333-4444-555555555555")
    root = ElementTree.fromstring(made)
    assert disk == "/pools/a/disk.qcow2"
    assert copies == {"/instances/1/seed.iso": "/var/lib/kumulus/bench-floor/floor-seed.iso"}
    assert root.findtext("name") == "floor"
    assert root.findtext("uuid") == "99999999-2222-3333-4444-555555555555"
    assert root.find("metadata") is None
    assert root.findtext("memory") == "65536"
    files = [source.get("file") for source in root.iter("source")]
    assert files == ["/var/lib/kumulus/bench-floor/floor.qcow2", copies["/instances/1/seed.iso"]]
    assert [log.get("file") for log in root.iter("log")] == ["/var/lib/kumulus/bench-floor/floor.log"]
