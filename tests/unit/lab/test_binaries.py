"""Where the Kubernetes programs come from, and that half of one is never run."""

from __future__ import annotations

import hashlib
import io
import os
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest

from kumulus_lab import binaries
from kumulus_lab.errors import LabError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.delenv("KUMULUS_KUBERNETES_DOWNLOAD", raising=False)
    return binaries.cached()


def _program(directory: Path, name: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def _no_network(*_: object, **__: object) -> None:
    raise urllib.error.URLError("refused")


def test_assets_come_first_and_the_cache_fills_what_they_lack(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    for name in ("etcd", "kube-apiserver", "kubectl"):
        _program(assets, name)
    for name in binaries.NAMES:
        _program(empty_cache, name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    found = binaries.ensure()
    assert (found.etcd.parent, found.apiserver.parent, found.kubectl.parent) == (assets, assets, assets)
    assert found.controller_manager.parent == empty_cache


def test_kube_proxy_comes_when_it_is_asked_for(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in binaries.NAMES:
        _program(empty_cache, name)
    binaries.ensure()
    assert "kube-proxy" not in [path.name for path in empty_cache.iterdir()], "no lab waits for it"
    monkeypatch.setattr(
        binaries.urllib.request, "urlopen", _publish(b"program", hashlib.sha256(b"program").hexdigest())
    )
    assert binaries.kube_proxy().read_bytes() == b"program"
    monkeypatch.setattr(binaries.urllib.request, "urlopen", _no_network)
    assert binaries.kube_proxy().parent == empty_cache


def test_without_download_and_go_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries.urllib.request, "urlopen", _no_network)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LabError, match=r"install Go 1\.24 or later, or point KUBEBUILDER_ASSETS"):
        binaries.ensure()


def test_a_build_that_fails_leaves_nothing_in_the_cache(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries.urllib.request, "urlopen", _no_network)
    go = _program(tmp_path / "bin", "go")
    go.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho half > "$2"\necho no memory\nexit 1\n')
    monkeypatch.setenv("PATH", f"{go.parent}:{os.environ['PATH']}")
    with pytest.raises(LabError, match="no memory"):
        binaries.ensure()
    assert list(empty_cache.iterdir()) == []


def _publish(content: bytes, checksum: str) -> Callable[..., io.BytesIO]:
    def urlopen(url: str, **_: object) -> io.BytesIO:
        assert url.startswith("https://dl.k8s.io/release/v")
        return io.BytesIO(checksum.encode() if url.endswith(".sha256") else content)

    return urlopen


def test_a_download_is_used_when_it_matches_its_checksum(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(empty_cache, "etcd")
    monkeypatch.setattr(
        binaries.urllib.request, "urlopen", _publish(b"program", hashlib.sha256(b"program").hexdigest())
    )
    found = binaries.ensure()
    assert found.apiserver.read_bytes() == b"program"
    assert os.access(found.kubectl, os.X_OK)


def test_a_download_that_was_tampered_with_is_not_used(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(empty_cache, "etcd")
    monkeypatch.setattr(binaries.urllib.request, "urlopen", _publish(b"tampered", "0" * 64))
    monkeypatch.setenv("PATH", "/nonexistent")
    said: list[str] = []
    with pytest.raises(LabError, match="install Go"):
        binaries.ensure(said.append)
    assert any("does not match its published checksum" in line for line in said)
    assert [path.name for path in empty_cache.iterdir()] == ["etcd"]


def test_only_https_is_downloaded_from(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(empty_cache, "etcd")
    monkeypatch.setenv("KUMULUS_KUBERNETES_DOWNLOAD", "http://mirror.example")
    monkeypatch.setenv("PATH", "/nonexistent")
    said: list[str] = []
    with pytest.raises(LabError):
        binaries.ensure(said.append)
    assert any("is not https" in line for line in said)
