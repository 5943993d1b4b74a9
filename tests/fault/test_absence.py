"""The API server is away for minutes: guests, their addresses and their metadata go on, agents that end are started again meanwhile,
and when it is back all catches up (QUALITY F5, F6, G16).

`KUMULUS_OUTAGE` says for how many seconds; ten minutes else.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

import pytest

from kumulus_lab import deadline
from tests.fault.campaign import TABLE
from tests.fault.counting import restore
from tests.system.test_networks import GROUP, Networks
from tests.system.world import WORDS, World

OUTAGE = float(os.environ.get("KUMULUS_OUTAGE", "600"))
CAUGHT_UP = 15
"""Seconds from when the API server is ready: the goal."""
PEER = "10.77.0.11"
LOOK = 20.0
"""Seconds between two looks at all that goes on."""
META = (
    "#kumulus-run: wget -q -T 5 -O - http://169.254.169.254/latest/meta-data/instance-id >/dev/null"
    " && echo told $(cut -d. -f1 /proc/uptime)"
)
PING = f"#kumulus-run: ping -c 1 -W 1 {PEER} >/dev/null && echo reached $(cut -d. -f1 /proc/uptime)"
GOES_ON = {
    "first": (r"lease of \S+ renewed", r"told \d+", r"counted \d+"),
    "second": (r"lease of \S+ renewed", r"told \d+", r"counted \d+", r"reached \d+"),
}
"""What guests say over and over, each time anew."""

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.cluster,
    pytest.mark.wide,
    pytest.mark.timeout(OUTAGE + 1800),
]


@pytest.fixture
def networks(real_world: World) -> Iterator[Networks]:
    try:
        yield Networks(real_world)
    finally:
        restore(real_world.lab)


def _all_goes_on(networks: Networks) -> None:
    """Each guest says all it says once more, or twice: what was under way a moment ago does not count."""
    for name, patterns in GOES_ON.items():
        before = {pattern: len(re.findall(pattern, networks.said(name))) for pattern in patterns}
        for pattern, count in before.items():
            deadline.until(
                lambda name=name, pattern=pattern, count=count: (
                    len(re.findall(pattern, networks.said(name))) >= count + 2
                ),
                f"{name} says {pattern!r} on",
                seconds=30,
                every=0.2,
            )


def _until(moment: float, networks: Networks) -> None:
    """All goes on until then."""
    while (left := moment - time.monotonic()) > 0:
        _all_goes_on(networks)
        pause = time.monotonic() + min(left, LOOK)
        deadline.until(lambda pause=pause: time.monotonic() >= pause, "time", seconds=LOOK + 1, every=0.2)


def test_an_api_server_that_is_away_for_minutes_is_missed_by_no_guest(networks: Networks) -> None:
    world = networks.world
    lab = world.lab
    one, other = lab.hosts
    networks.network("net")
    spec = {"ingress": [{"protocol": "ICMP"}], "egress": [{}]}
    world.apply({"apiVersion": GROUP, "kind": "SecurityGroup", "metadata": {"name": "pings"}, "spec": spec})
    lines = ("#kumulus-renew-every: 4", META, "#kumulus-count-on: root")
    networks.machine("first", one, "net", *lines, addresses=[PEER], securityGroups=["pings"])
    networks.machine("second", other, "net", *lines, PING)
    before = {}
    for name in ("first", "second"):
        status = world.phase(name, "Running", seconds=90)["status"]
        before[name] = {key: status[key] for key in ("host", "epoch", "startedAt")}
    _all_goes_on(networks)
    known = {item["metadata"]["name"] for item in world.api.objects(WORDS["hostremediation"])}

    began = time.monotonic()
    lab.cluster.stop_apiserver()
    _until(began + OUTAGE / 3, networks)
    for host in lab.hosts:  # killed, and started again, with nobody to ask what they are to do
        host.daemon("agent").kill()
        lab.services.start_agent(host)
    _until(began + OUTAGE * 2 / 3, networks)
    other.daemon("libvirtd").kill()
    other.start_libvirt()
    one.daemon("agent").stop()
    lab.services.start_agent(one)
    _until(began + OUTAGE, networks)
    for daemon in (*(host.daemon("agent") for host in lab.hosts), lab.services.controllers):
        assert daemon.running(), daemon.ended()

    lab.cluster.start_apiserver()
    back = time.monotonic()
    world.machine("new")
    world.patch("vm", "second", {"spec": {"powerState": "Stopped", "stop": {"mode": "Force"}}})
    caught = {}
    for host in lab.hosts:
        world.wait("host", host.name, lambda item: item["status"]["phase"] == "Ready", "is back", seconds=CAUGHT_UP)
    caught["hosts"] = time.monotonic() - back
    world.phase("second", "Stopped", seconds=CAUGHT_UP)
    caught["a stop"] = time.monotonic() - back
    world.phase("new", "Running", seconds=CAUGHT_UP)
    caught["a new machine"] = time.monotonic() - back
    TABLE.numbers[f"an API server that was away for {OUTAGE:.0f} s is back: caught up after"] = ", ".join(
        f"{what} {seconds:.1f} s" for what, seconds in caught.items()
    )
    status = world.phase("first", "Running")["status"]
    assert {key: status[key] for key in before["first"]} == before["first"]
    for name in ("first", "second"):
        assert networks.said(name).count("kumulus-guest: hello") == 1, f"{name} was started again"
        counted = [int(number) for number in re.findall(r"counted (\d+)", networks.said(name))]
        assert counted == list(range(counted[0], counted[0] + len(counted)))
    now = {item["metadata"]["name"] for item in world.api.objects(WORDS["hostremediation"])}
    assert now == known, "nobody was to be fenced"
