"""The join bundle: whole or not at all, for its owner's eyes only, and no token in a repr."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from kumulus.cli.bundle import Bundle, write

BUNDLE = Bundle(server="https://api:6443", ca=b"PEM", host="h1", namespace="kumulus-host-h1", token="secret-token")


def test_what_is_in_it() -> None:
    parsed = json.loads(BUNDLE.to_json())
    assert (parsed["apiVersion"], parsed["kind"]) == ("kumulus.io/v1alpha1", "JoinBundle")
    assert base64.b64decode(parsed["caData"]) == b"PEM"
    assert (parsed["host"], parsed["namespace"], parsed["token"]) == ("h1", "kumulus-host-h1", "secret-token")
    assert "secret-token" not in repr(BUNDLE)


def test_it_is_readable_by_its_owner_alone_even_over_an_open_file(tmp_path: Path) -> None:
    file = tmp_path / "join.json"
    file.write_text("old")
    file.chmod(0o644)
    write(file, BUNDLE.to_json())
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["host"] == "h1"
    assert list(tmp_path.iterdir()) == [file]


def test_nothing_is_left_when_it_cannot_be_written(tmp_path: Path) -> None:
    target = tmp_path / "there"
    target.mkdir()
    with pytest.raises(IsADirectoryError):
        write(target, "x")
    assert list(tmp_path.iterdir()) == [target]
