"""Which hosts can make networks of a driver, and what is said of the others."""

from __future__ import annotations

from kumulus.api.gateways import GatewayFunction
from kumulus.api.host import HostReport
from kumulus.api.segments import NetworkDriverName
from kumulus_controllers.network.capable import capable, serving

LACKS = "linux: The kernel is old; get another; ovn: Open vSwitch does not run; install and start openvswitch-switch."


def report(name: str, *drivers: str, message: str | None = None) -> HostReport:
    network = {"drivers": list(drivers), "message": message}
    return HostReport.parse({"metadata": {"name": name}, "status": {"network": network}})


def test_nothing_is_said_before_hosts_have_said_what_they_can() -> None:
    silent = HostReport.parse({"metadata": {"name": "h1"}})
    assert capable(NetworkDriverName.OVN, [silent]) == (None, None)


def test_hosts_that_cannot_are_named_with_what_they_lack() -> None:
    fact, lack = capable(NetworkDriverName.OVN, [report("h1", "linux", "ovn"), report("h2", "linux", message=LACKS)])
    assert lack is None and fact is not None and (fact.status, fact.reason) == (False, "SomeHosts")
    assert "1 of 2 hosts" in fact.message
    assert "h2 (Open vSwitch does not run; install and start openvswitch-switch)" in fact.message
    assert "kernel" not in fact.message


def test_a_driver_that_no_host_has_makes_no_networks() -> None:
    fact, lack = capable(NetworkDriverName.OVN, [report(f"h{number}", "linux") for number in range(9)])
    assert fact is not None and lack is not None and lack.reason == "NoHostHasDriver"
    assert "and 4 more" in lack.message


def test_all_hosts() -> None:
    fact, lack = capable(NetworkDriverName.LINUX, [report("h1", "linux")])
    assert lack is None and fact is not None and fact.status is True


def able(name: str, **functions: str | None) -> HostReport:
    said = [{"name": one, "message": why} for one, why in functions.items()]
    network = {"drivers": ["linux"], "functions": [{"driver": "linux", "functions": said}]}
    return HostReport.parse({"metadata": {"name": name}, "status": {"network": network}})


def test_what_hosts_can_have_besides_networks() -> None:
    def say(*reports: HostReport) -> tuple[object, ...]:
        fact = serving(NetworkDriverName.LINUX, GatewayFunction.ROUTER, reports)
        return () if fact is None else (fact.type, fact.status, fact.reason, fact.message)

    assert say(report("h1", "linux")) == (), "an agent that is too old to say"
    assert say(able("h1", Router=None))[:3] == ("Routers", True, "AllHosts")
    some = say(able("h1", Router=None), able("h2", Router="no keepalived."))
    assert some[:3] == ("Routers", False, "SomeHosts")
    assert "h2 (no keepalived)" in str(some[3])
    assert say(able("h1", Router="no keepalived."))[:3] == ("Routers", False, "NoHost")
    assert say(able("h1", LoadBalancer=None))[:3] == ("Routers", False, "NotByDriver")


def test_what_goes_on_when_another_host_takes_over() -> None:
    def say(*reports: HostReport) -> tuple[object, ...]:
        fact = serving(NetworkDriverName.LINUX, GatewayFunction.KEPT_CONNECTION, reports)
        return () if fact is None else (fact.type, fact.status, fact.reason, fact.message)

    assert say(able("h1", Router=None)) == (), "an agent that is too old to say"
    assert say(able("h1", Router=None, KeptConnection=None))[:3] == ("KeptConnections", True, "AllHosts")
    lacks = "conntrackd is missing; install the package conntrackd."
    some = say(able("h1", KeptConnection=None), able("h2", KeptConnection=lacks))
    assert some[:3] == ("KeptConnections", False, "SomeHosts")
    assert "h2 (conntrackd is missing; install the package conntrackd)" in str(some[3])
