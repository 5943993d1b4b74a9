"""What conntrackd reads, who is told what when a host takes over, and what bounds a gateway's neighbours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from kumulus_agents.network.linux import conntrackd, gateway_rules, host, keepalived, takeover
from tests.unit.network.test_gateway import order

WRITABLE = PurePosixPath("/run/some/run")
PEERS = [{"underlay": f"10.0.0.{number}", "mac": f"0a:00:00:00:00:0{number}"} for number in (6, 4, 5)]
SEVERAL = {"group": 9, "priority": 100, "mac": "0a:00:00:00:00:03", "peers": PEERS}


def test_two_hosts_copy_reliably_and_more_of_them_each_to_all() -> None:
    two = conntrackd.configuration(order(), WRITABLE, 1000, 2)
    assert "Mode FTFW" in two
    assert two != conntrackd.configuration(order(), WRITABLE, 1000, 3), "it knows the link by its number"
    assert "IPv6_address fe80::800:ff:fe00:3\n" in two
    assert "IPv6_Destination_Address fe80::800:ff:fe00:4\n" in two
    assert "HashLimit 1000\n" in two
    assert f"Path {WRITABLE}/control\n" in two
    several = order(redundancy=SEVERAL)
    assert "Mode NOTRACK" in conntrackd.configuration(several, WRITABLE, 1000, 2)
    assert "IPv6_Destination_Address fe80::800:ff:fe00:4\n" in conntrackd.configuration(several, WRITABLE, 1000, 2)
    rules = gateway_rules.render(several)
    text = str(rules.chains["ip6", "copies-to"])
    assert "'addr': 'fe80::800:ff:fe00:5'" in text
    assert "'addr': 'fe80::800:ff:fe00:6'" in text
    assert "fe80::800:ff:fe00:3" in str(rules.chains["ip6", "copies-from"])
    assert not [name for name in gateway_rules.render(order()).chains if name[0] == "ip6"]


def test_copies_are_of_what_another_host_cannot_know() -> None:
    assert gateway_rules.copies(order())
    assert not gateway_rules.copies(order(router={})), "nothing is translated"
    alone = {"group": 9, "priority": 100, "mac": "0a:00:00:00:00:03"}
    assert not gateway_rules.copies(order(redundancy=alone))
    for function, opened in ((order(), True), (order(router={}), False)):
        text = str(gateway_rules.render(function).chains["inet", "input"])
        assert (str(gateway_rules.COPIES_PORT) in text) is opened


def test_keepalived_runs_a_command_when_it_takes_over() -> None:
    said = keepalived.instance(order(), [("master", "/a/program active /b")])
    assert '  notify_master "/a/program active /b"\n' in said
    assert "  script_user root\n" in said
    assert "script_user" not in keepalived.instance(order())


@pytest.mark.parametrize("role", sorted(takeover.STEPS))
def test_one_step_that_fails_holds_up_no_other(tmp_path: Path, role: str) -> None:
    """With a program in conntrackd's place that writes down what it is told, and fails."""
    program, told = tmp_path / "program", tmp_path / "told"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(told)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\nsys.exit(1)\n"
    )
    program.chmod(0o755)
    text = Path(takeover.__file__).read_text().replace(str(takeover.LOOSE), str(tmp_path / "loose"))
    copy = tmp_path / "takeover.py"
    copy.write_text(text)
    done = subprocess.run([sys.executable, "-I", "-S", copy, role, program, "the file"], check=False)
    assert done.returncode == 1
    assert told.read_text().splitlines() == [f"-C the file {' '.join(step)}" for step in takeover.STEPS[role]]
    assert (tmp_path / "loose").read_text() == {"active": "1", "standby": "0"}[role]


def test_the_host_has_room_for_the_neighbours_of_all_its_gateways(tmp_path: Path) -> None:
    files = [
        tmp_path / family / "neigh/default" / name
        for family in ("ipv4", "ipv6")
        for name in ("gc_thresh2", "gc_thresh3")
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1000\n")
    host.make_room(2, thresholds=tmp_path)
    assert [int(file.read_text()) for file in files] == [9728, 19456, 9728, 19456]
    host.make_room(1, thresholds=tmp_path)
    assert int(files[1].read_text()) == 19456, "it is never lowered"
    host.make_room(1, thresholds=tmp_path / "nothing there")


def test_tcp_is_told_of_the_smaller_packets_of_a_leg() -> None:
    legs = [leg.to_json() for leg in order().legs]
    assert ("inet", "clamp") in gateway_rules.render(order()).chains, "1450 and 1500"
    text = str(gateway_rules.render(order()).chains["inet", "clamp"])
    assert "1410" in text
    assert "1390" in text
    assert "1460" not in text
    same = order(legs=[legs[0], legs[1] | {"mtu": 1450}])
    assert ("inet", "clamp") not in gateway_rules.render(same).chains
