"""kind as the control plane: when it is chosen, what it is told, what is taken from it. With a stand-in for kind."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
import yaml

from kumulus_lab import kind
from kumulus_lab.errors import LabError
from kumulus_lab.kind import KindCluster


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    monkeypatch.delenv(kind.CHOICE, raising=False)
    return directory


def _program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_an_engine_that_is_installed_but_does_not_run_is_none(programs: Path) -> None:
    for name in ("docker", "podman"):
        _program(programs, name, "exit 1")
    _program(programs, "kind", "exit 0")
    assert kind.engine() is None
    assert not kind.chosen()


def test_kind_is_first_where_it_and_an_engine_run(programs: Path) -> None:
    _program(programs, "docker", "exit 1")
    _program(programs, "podman", "exit 0")
    _program(programs, "kind", "exit 0")
    assert kind.engine() == "podman"
    assert kind.chosen()


def test_the_choice_can_be_made_by_hand(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(programs, "docker", "exit 0")
    _program(programs, "kind", "exit 0")
    monkeypatch.setenv(kind.CHOICE, "native")
    assert not kind.chosen()
    (programs / "kind").unlink()
    monkeypatch.setenv(kind.CHOICE, "kind")
    with pytest.raises(LabError, match="needs the program kind and a container engine"):
        kind.chosen()
    monkeypatch.setenv(kind.CHOICE, "k3s")
    with pytest.raises(LabError, match="neither kind nor native"):
        kind.chosen()


def test_hosts_reach_it_and_its_audit_log_is_ours(tmp_path: Path) -> None:
    cluster = KindCluster("demo", tmp_path, 20443, "10.213.0.1")
    settings = cluster.settings()
    assert settings["networking"] == {"apiServerAddress": "0.0.0.0", "apiServerPort": 20443}
    [node] = settings["nodes"]  # type: ignore[misc]
    [patch] = node["kubeadmConfigPatches"]  # type: ignore[index]
    apiserver = yaml.safe_load(patch)["apiServer"]
    assert "10.213.0.1" in apiserver["certSANs"]
    mounts = {each["containerPath"]: each["hostPath"] for each in node["extraMounts"]}  # type: ignore[index]
    log = Path(apiserver["extraArgs"]["audit-log-path"])
    assert Path(mounts[str(log.parent)]) / log.name == cluster.audit_log


def test_without_hosts_it_listens_on_loopback_only(tmp_path: Path) -> None:
    assert KindCluster("demo", tmp_path, 1).settings()["networking"] == {
        "apiServerAddress": "127.0.0.1",
        "apiServerPort": 1,
    }


def test_it_is_made_once_and_its_credentials_are_kept(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inline(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    answer = {
        "clusters": [
            {"cluster": {"server": "https://0.0.0.0:20443", "certificate-authority-data": inline("authority")}}
        ],
        "users": [{"user": {"client-certificate-data": inline("certificate"), "client-key-data": inline("key")}}],
    }
    (tmp_path / "answer").write_text(yaml.safe_dump(answer))
    _program(
        programs,
        "kind",
        f"""echo "$@" >> {tmp_path}/calls
case "$1 $2" in
"get clusters") cat {tmp_path}/clusters 2>/dev/null ;;
"create cluster") echo kumulus-demo > {tmp_path}/clusters ;;
"get kubeconfig") cat {tmp_path}/answer ;;
"delete cluster") rm {tmp_path}/clusters ;;
esac""",
    )
    version = "serverVersion: {major: '1', minor: 33+, gitVersion: v1.33.1}"
    _program(programs, "kubectl", f'echo "{version}"')
    monkeypatch.setattr(KindCluster, "ready", lambda _: True)
    cluster = KindCluster("demo", tmp_path / "lab", 20443)
    cluster.start()
    cluster.start()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum(call.startswith("create cluster") for call in calls) == 1
    assert all("--name kumulus-demo" in call for call in calls if not call.startswith("get clusters"))
    assert yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]["server"] == cluster.server
    assert cluster.administrator.key.read_text() == "key"
    for path in (cluster.kubeconfig, cluster.administrator.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    cluster.remove()
    cluster.remove()
    assert not cluster.exists()


def test_a_kubernetes_that_is_too_old_is_refused(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(programs, "kubectl", "echo \"serverVersion: {major: '1', minor: '31', gitVersion: v1.31.0}\"")
    with pytest.raises(LabError, match=r"v1\.31\.0, and Kumulus needs 1\.32 or later"):
        KindCluster("demo", tmp_path, 1)._check_version()
