"""Seeds that cloud-init would find, told by programs that are not ours."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pycdlib
import pytest
import yaml

from kumulus_agents.storage import seed
from kumulus_agents.storage.protocol import StorageError

FILES = {
    "meta-data": seed.meta_data("i-1", "web-0", ["ssh-ed25519 AAAA you@home"]),
    "user-data": "#cloud-config\nruncmd: [[echo, 'grüße']]\n",
    "network-config": "version: 2\n",
}


def read(data: bytes, how: str) -> dict[str, bytes]:
    disk = pycdlib.PyCdlib()
    disk.open_fp(io.BytesIO(data))
    found = {}
    for name in FILES:
        out = io.BytesIO()
        disk.get_file_from_iso_fp(out, **{how: f"/{name}"})
        found[name] = out.getvalue()
    disk.close()
    return found


@pytest.mark.parametrize("how", ["rr_path", "joliet_path"])
def test_both_kinds_of_names_lead_to_the_files(how) -> None:
    assert read(seed.image(FILES), how) == {name: text.encode() for name, text in FILES.items()}


def test_the_label_is_what_cloud_init_looks_for() -> None:
    data = seed.image(FILES)
    assert data[32768 + 40 : 32768 + 46] == b"cidata"
    assert data[2048 * 17 + 40 : 2048 * 17 + 52] == "cidata".encode("utf-16-be")


def test_the_same_files_make_the_same_bytes_at_any_time_and_place(monkeypatch) -> None:
    import time

    first = seed.image(FILES)
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert seed.image({name: FILES[name].encode() for name in reversed(FILES)}) == first
    finally:
        monkeypatch.undo()
        time.tzset()
    assert seed.image(FILES | {"user-data": "#!/bin/sh\n"}) != first


@pytest.mark.parametrize(
    "text", ["x: y", "a\nb: c", "- x", "'", '"', "!!python/object:os.system x", "{{x}}", "é\u2028", "null", "1.0"]
)
def test_meta_data_is_rendered_so_that_no_text_breaks_out(text) -> None:
    rendered = seed.meta_data(text, text, [text, text], {"instance-id": "stolen", "kumulus": text})
    assert yaml.safe_load(rendered) == {
        "instance-id": text,
        "local-hostname": text,
        "public-keys": [text, text],
        "kumulus": text,
    }


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", "other", "meta_data", "META-DATA"])
def test_other_files_are_refused(name) -> None:
    with pytest.raises(StorageError) as error:
        seed.image({name: "x"})
    assert error.value.reason == "SeedInvalid"


def test_too_much_is_refused() -> None:
    with pytest.raises(StorageError):
        seed.image({"user-data": "x" * (seed.MAX_BYTES + 1)})


async def test_it_is_written_whole_for_root_only_and_once(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    await seed.write(path, FILES)
    first = path.stat()
    assert stat.S_IMODE(first.st_mode) == 0o600
    assert path.read_bytes() == seed.image(FILES)
    await seed.write(path, FILES)
    assert path.stat().st_ino == first.st_ino
    await seed.write(path, {"user-data": "#!/bin/sh\n"})
    assert path.read_bytes() == seed.image({"user-data": "#!/bin/sh\n"})
    assert os.listdir(tmp_path) == ["seed.iso"]  # noqa: PTH208


async def test_a_link_in_its_place_is_replaced(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("do not touch")
    (tmp_path / "seed.iso").symlink_to(canary)
    await seed.write(tmp_path / "seed.iso", FILES)
    assert canary.read_text() == "do not touch"
    assert not (tmp_path / "seed.iso").is_symlink()
