"""What a packet meets at one interface: its guest, whose address it has, its groups, or a load balancer. Pure but for the list
of steps that it adds to."""

from __future__ import annotations

from dataclasses import dataclass, field

from kumulus.api.addresses import Address
from kumulus.api.compute import Phase
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import InterfacePhase, NetworkInterface
from kumulus.api.order_names import gateway_order_name, segment_order_name
from kumulus.api.passage import Opening, Way, icmp_of, owns
from kumulus.api.segments import Protocol
from kumulus.api.trace import Need, Question, Scene, Step, Verdict
from kumulus_controllers.network import trace_ends, trace_filter, trace_router
from kumulus_controllers.network.trace_filter import Ported


@dataclass
class AtInterface:
    """Notes what it meets."""

    scene: Scene
    question: Question
    steps: list[Step] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    needs: set[Need] = field(default_factory=set)

    def step(
        self, where: str, verdict: Verdict, what: str, object_: str | None = None, spec: str | None = None
    ) -> None:
        """Note a step."""
        self.steps.append(Step(where, verdict, what, object_, spec))

    def guest(self, nic: NetworkInterface, does: str) -> None:
        """Whether a guest has the interface and runs."""
        name, status = nic.status.vm, nic.status
        if nic.namespace in self.scene.unread:
            said = (
                f"You may not see the machines of namespace {nic.namespace}: whether one has {nic.name} is not known."
            )
            self.step("Guest", Verdict.UNKNOWN, said, f"networkinterface/{nic.name}")
            return
        if name is None:
            self.step("Guest", Verdict.DROPPED, f"No machine has interface {nic.name}.", f"networkinterface/{nic.name}")
            return
        machine = next((vm for vm in self.scene.machines if (vm.namespace, vm.name) == (nic.namespace, name)), None)
        phase = machine.status.phase if machine is not None else None
        if status.phase is not InterfacePhase.ATTACHED:
            said = f"; the machine is {phase}" if phase is not None else ""
            self.step(
                "Guest",
                Verdict.DROPPED,
                f"The guest of machine {name} has not got interface {nic.name} ({status.phase or 'new'}{said}):"
                f" `kumulusctl vm explain {name}`.",
                f"vm/{name}",
            )
        elif phase in (Phase.PAUSED, Phase.SUSPENDED, Phase.STOPPED):
            self.step(
                "Guest", Verdict.DROPPED, f"Machine {name} is {phase}: nobody there {does} anything.", f"vm/{name}"
            )
        elif status.host is not None and (why := trace_router.silent(self.scene, status.host)) is not None:
            self.step(
                "Guest", Verdict.UNKNOWN, f"Machine {name} has interface {nic.name}. {why}", f"host/{status.host}"
            )
        elif phase not in (None, Phase.RUNNING, Phase.MIGRATING):
            self.step(
                "Guest", Verdict.UNKNOWN, f"Machine {name} has interface {nic.name}, and is {phase}.", f"vm/{name}"
            )
        else:
            where = f" on host {status.host}" if status.host is not None else ""
            self.step("Guest", Verdict.PASSES, f"Machine {name}{where} has interface {nic.name}.", f"vm/{name}")

    def ported(self, nic: NetworkInterface) -> Ported | None:
        """The interface as hosts know it; None when they cannot yet."""
        network = trace_ends.network_of(self.scene, nic)
        named = f"networkinterface/{nic.name}"
        if network is None:
            self.step("Network", Verdict.UNKNOWN, f"You may not see Network {nic.spec.network} of {nic.name}.", named)
        elif nic.status.mac_address is None or nic.status.network != network.uid:
            ready = nic.status.condition("Ready")
            why = f" ({ready.reason}): {ready.message}" if ready is not None else "."
            self.step("Network", Verdict.DROPPED, f"Interface {nic.name} has no addresses yet{why}", named)
        elif network.status.driver is None or network.status.mtu is None:
            ready = network.status.condition("Ready")
            why = f" ({ready.reason}): {ready.message}" if ready is not None else "."
            self.step(
                "Network", Verdict.DROPPED, f"Network {network.name} is not ready{why}", f"network/{network.name}"
            )
        else:
            return trace_filter.ported(self.scene, nic, network)
        return None

    def own(self, port: Ported, source: Address) -> None:
        """Whether it may send from that address."""
        nic = port.interface
        named = f"networkinterface/{nic.name}"
        if not port.order.subnets:
            self.step("Address", Verdict.PASSES, "In a network of type L2 a guest may send from any address.", named)
        elif owns(port.order, port.nic, source):
            where = None if source in nic.status.addresses else "spec.allowedAddressPairs"
            self.step("Address", Verdict.PASSES, f"{source} is an address that {nic.name} may send from.", named, where)
        else:
            own = ", ".join(nic.status.addresses)
            self.step(
                "Address",
                Verdict.DROPPED,
                f"{source} is not an address that {nic.name} may send from (it has {own}): spec.allowedAddressPairs lets it.",
                named,
                "spec.allowedAddressPairs",
            )

    def filter(self, port: Ported, way: Way, peer: Address | None, number: int | None) -> None:
        """What its groups say."""
        protocol = self.question.protocol
        if protocol in (Protocol.ICMP, Protocol.ICMPV6):
            protocol, number = icmp_of(peer), None
        self.steps.append(trace_filter.judge(port, way, Opening(peer, protocol, number)))

    def host(self, port: Ported) -> None:
        """Whether its host has been told."""
        if port.interface.status.host is not None:
            self.needs.add((port.interface.status.host, segment_order_name(port.network.uid)))
        if (said := trace_filter.told(self.scene, port)) is not None:
            self.steps.append(said)

    def balance(self, balancer: LoadBalancer, number: int | None) -> None:
        """To a load balancer."""
        named, status = f"loadbalancer/{balancer.name}", balancer.status
        if status.active_host is None:
            ready = status.condition("Ready")
            why = f" ({ready.reason}): {ready.message}" if ready is not None else "."
            self.step("LoadBalancer", Verdict.DROPPED, f"No host serves LoadBalancer {balancer.name}{why}", named)
            return
        need = (status.active_host, gateway_order_name(balancer.uid))
        self.needs.add(need)
        echo = self.question.protocol in (Protocol.ICMP, Protocol.ICMPV6)
        listener = next((one for one in balancer.spec.listeners if one.port == number), None)
        if not echo and (listener is None or self.question.protocol is not Protocol.TCP):
            self.step(
                "LoadBalancer",
                Verdict.DROPPED,
                f"LoadBalancer {balancer.name} listens at no such port.",
                named,
                "spec.listeners",
            )
            return
        order = (self.scene.orders or {}).get(need)
        undone = trace_filter.undone(order) if order is not None else None
        late = f"Maybe it does not do so as it should: {undone}" if undone is not None else None
        if (doubt := trace_router.silent(self.scene, status.active_host) or late) is not None:
            said = f"LoadBalancer {balancer.name} was last active on host {status.active_host}. {doubt}"
            self.step("LoadBalancer", Verdict.UNKNOWN, said, named)
            return
        if echo:
            self.step(
                "LoadBalancer", Verdict.PASSES, f"Host {status.active_host} answers echoes for {balancer.name}.", named
            )
            return
        well = sum(member.healthy for member in status.members)
        if well == 0:
            self.step("LoadBalancer", Verdict.DROPPED, f"No member of LoadBalancer {balancer.name} is well.", named)
            return
        said = (
            f"LoadBalancer {balancer.name} on host {status.active_host} shares it among {well} members that are well;"
        )
        self.step("LoadBalancer", Verdict.PASSES, f"{said} no group filters who reaches it.", named)
