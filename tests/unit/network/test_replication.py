"""What a gateway's host does about copies of its connections, with a program in the place of each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kumulus.api.gateways import GatewayFunction
from kumulus_agents.network.linux import gateway
from kumulus_agents.network.linux.daemons import Daemon
from kumulus_agents.network.linux.replication import Replication
from kumulus_agents.network.linux.settings import GatewaySettings
from kumulus_agents.network.protocol import NetworkError
from tests.unit.network.test_gateway import order

LINK_SAID = """print('[{"ifindex": 2}]')"""


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Where the programs write down what they are told."""
    return tmp_path / "told"


@pytest.fixture
def settings(tmp_path: Path, told: Path) -> GatewaySettings:
    programs = {}
    for name in ("ip", "keepalived", "nft", "haproxy", "conntrack", "conntrackd", "sysctl", "unshare"):
        programs[name] = tmp_path / name
        programs[name].write_text(
            f"#!{sys.executable}\nimport sys\n"
            f"open({str(told)!r}, 'a').write(' '.join([{name!r}, *sys.argv[1:]]) + '\\n')\n"
            f"{LINK_SAID if name == 'ip' else ''}\n"
        )
        programs[name].chmod(0o755)
    return GatewaySettings.model_validate({"state": tmp_path / "state", **programs})


def _said(told: Path) -> list[str]:
    return told.read_text().splitlines()


def test_only_routers_need_conntrack(settings: GatewaySettings, tmp_path: Path) -> None:
    assert gateway.missing(settings, GatewayFunction.ROUTER) is None
    (tmp_path / "conntrack").unlink()
    said = gateway.missing(settings, GatewayFunction.ROUTER)
    assert said is not None
    assert "install the package conntrack." in said
    assert gateway.missing(settings, GatewayFunction.LOAD_BALANCER) is None


async def test_a_missing_program_is_not_the_kernels_fault(settings: GatewaySettings, tmp_path: Path) -> None:
    (tmp_path / "conntrack").unlink()
    one = Replication("some-uid", (), settings)
    assert await one.ensure(order(), active=False, anew=False) == ""
    assert "install the package conntrack." in await one.unkept(order())
    assert not one.notifies(order())


async def test_tcp_is_picked_up_again_where_copies_end(
    settings: GatewaySettings, tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Daemon, "there", lambda _: True)
    one = Replication("some-uid", (), settings)
    (tmp_path / "state/connections/some-uid").mkdir(parents=True)
    alone = order(redundancy={"group": 9, "priority": 100, "mac": "0a:00:00:00:00:03"})
    for _ in range(2):
        await one.ensure(alone, active=False, anew=False)
    current = tmp_path / "state/connections/some-uid/current.conf"
    loose = "sysctl -q -w net.netfilter.nf_conntrack_tcp_loose=1"
    assert _said(told) == [f"conntrackd -C {current} -c", loose], "once, in that order"
    (tmp_path / "conntrackd").unlink()
    await one.ensure(order(), active=False, anew=False)
    assert _said(told)[2:] == [loose]


@pytest.mark.parametrize("error", [NetworkError("it is stuck"), OSError("the disk is full")])
async def test_what_fails_is_said_and_holds_up_no_gateway(
    settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(_: Replication) -> None:
        raise error

    monkeypatch.setattr(Replication, "_prepare", fails)
    monkeypatch.setattr("kumulus_agents.network.linux.replication.EVENTS", Path("/"))
    one = Replication("some-uid", (), settings)
    assert await one.ensure(order(), active=False, anew=False) == ""
    assert str(error) in await one.unkept(order())
    assert not one.notifies(order())


@pytest.mark.parametrize("active", [False, True])
async def test_a_standby_loses_no_copies_to_another_configuration(
    settings: GatewaySettings, tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch, *, active: bool
) -> None:
    there: list[str] = []

    async def runs_anew(_: Daemon, text: str, files: object, *, forgets: bool) -> bool:
        changed = there != [text]
        if changed or forgets:
            there[:] = [text]
            with told.open("a") as file:
                file.write("anew\n")
        return changed

    monkeypatch.setattr(Daemon, "ensure", runs_anew)
    monkeypatch.setattr(Daemon, "there", lambda _: bool(there))
    monkeypatch.setattr(Daemon, "runs", lambda _, text: there == [text])
    monkeypatch.setattr(Replication, "_prepare", lambda _: None)
    monkeypatch.setattr("kumulus_agents.network.linux.replication.EVENTS", Path("/"))
    one = Replication("some-uid", (), settings)
    peers = [{"underlay": "10.0.0.7", "mac": "0a:00:00:00:00:07"}]
    other = order(redundancy={"group": 9, "priority": 100, "mac": "0a:00:00:00:00:03", "peers": peers})
    for now in (order(), order(), other):
        await one.ensure(now, active=active, anew=False)
    commit = f"conntrackd -C {tmp_path}/state/connections/some-uid/current.conf -c"
    told_it = [line for line in _said(told) if line in (commit, "anew")]
    assert told_it == (["anew", "anew"] if active else ["anew", commit, "anew"])
