"""What the agent asks of networks. Every driver passes `tests/contract/network.py`.

Every verb may be repeated, takes the wanted state, tolerates "already so" and "already gone", and is safe after a crash of
the agent at any line. What serves guests (filters, DHCP, DNS, metadata) goes on while the agent is down. Names on the host
follow from uids; what is not Kumulus' own is reported and never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from kumulus.api.gateways import GatewayFacts, GatewayFunction, GatewayOrder
from kumulus.api.segments import Nic, SegmentFacts, SegmentOrder
from kumulus_agents.network.connections import Connection


class NetworkError(Exception):
    """It could not be done.

    `reason` is one CamelCase word for the status, `retryable` says whether trying again by itself makes sense. The text is a
    sentence for the operator that says what to do.
    """

    def __init__(self, message: str, *, reason: str = "NetworkError", retryable: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Identity:
    """With what a load balancer ends TLS: certificates and their key, PEM. Never in a log."""

    pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Port:
    """An interface of a machine of this host."""

    nic: Nic
    machine: str
    """Uid of the machine."""


@dataclass(frozen=True, slots=True)
class Plug:
    """How a hypervisor connects a guest's device. The device is the hypervisor's to make when the guest starts."""

    device: str
    """Name of the tap on the host."""
    bridge: str
    """What it is plugged into."""
    mtu: int
    """Told to the guest by virtio."""
    openvswitch: str | None = None
    """Id of the interface, when the bridge is Open vSwitch's."""
    whole: bool = False
    """Whether the guest has to send packets with their checksums, no larger than the network carries: nobody fills them in or
    cuts them up."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A bridge or interface of the host that is not Kumulus' own."""

    name: str
    kind: str
    """bridge, vxlan, veth, tun, ..."""
    bridge: str | None = None
    """What it is plugged into."""


@dataclass(frozen=True, slots=True)
class Found:
    """What of Kumulus is on the host, whoever ordered it, and what is not Kumulus' own."""

    segments: frozenset[str]
    """Uids of networks, as far as they can be told from names on the host and the driver's own files."""
    ports: frozenset[str]
    """Uids of interfaces."""
    foreign: Sequence[Foreign] = ()
    gateways: frozenset[str] = frozenset()
    """Uids of gateways."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What rules have dropped since they were loaded."""

    network: str
    """Uid; empty where it was nobody's."""
    interface: str
    """Uid; empty where it is not known: a rule that several share."""
    why: str
    packets: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What has passed an interface since its guest was started, as the guest counts it: received is what came to it. What
    rules drop before the guest is in none of these, what they drop of what the guest sends is in `sent`."""

    network: str
    """Uid."""
    interface: str
    """Uid."""
    received_bytes: int
    received_packets: int
    sent_bytes: int
    sent_packets: int


@dataclass(frozen=True, slots=True)
class Uplinks:
    """By which devices of the host networks can be put into VLANs."""

    devices: Sequence[str] = ()
    """Names of those that can be uplinks. What comes and goes with programs of the host is not named."""
    lack: str | None = None
    """Why none can, a sentence that says what to do; None when they can."""


class NetworkDriver(Protocol):
    """Makes networks on this host."""

    async def prepare(self) -> None:
        """Look whether this host can. Raises `NetworkError` with a reason that is not retryable when the kernel or a
        program that is needed is missing."""

    async def functions(self) -> Mapping[GatewayFunction, str | None]:
        """What the driver can make on this host besides networks: the functions of gateways that it has (it is a
        `GatewayDriver` then), each with why this host cannot serve it now, a sentence that says what to do, or None when it
        can. Asked every some seconds: programs come and go."""

    async def uplinks(self) -> Uplinks:
        """By which devices of this host it can make networks that are VLANs. Asked every some seconds: devices come and go."""

    async def ensure_segment(self, segment: SegmentOrder) -> SegmentFacts:
        """Have the network here as the order says: what carries it, who else has it, what serves its guests, and its
        groups with their rules. Ports that are here already are filtered by the new rules at once; connections that these
        still allow go on, the others are cut. Raises `NetworkError`: for a VLAN `UplinkMissing`, `UplinkInUse`,
        `UplinkMtuTooSmall` and `VlanUnsupported` when there is no way for it."""

    async def remove_segment(self, uid: str) -> None:
        """Have nothing of the network here. Raises `NetworkError(reason="SegmentInUse")` while it has ports, or a gateway
        has a leg in it."""

    async def ensure_port(self, port: Port) -> Plug:
        """Have the filter of the port in force and its addresses served. When it returns, a guest may be started with that
        plug: not one packet passes that may not. Called again for one that a guest uses, it brings changes into force.

        Raises `NetworkError(reason="SegmentNotReady")` when the network is not here.
        """

    async def remove_port(self, uid: str) -> None:
        """Have nothing of the port here: filter, addresses, connections. The guest has let go of it."""

    async def found(self) -> Found:
        """What is there. For tidying up, and for people."""

    async def mend(self) -> Sequence[str]:
        """Look whether what was made is still so, and make it so again; what was not so, a sentence each. A network that
        cannot be mended does not keep others from it."""

    async def guard(self) -> Sequence[str]:
        """Wait until filters are not in force any more, because somebody else has changed something, and make it so again,
        in about a second; what was not so. Cancelled at any time. Raises `NetworkError`."""

    async def dropped(self) -> Sequence[Dropped]:
        """What rules have dropped, where it is more than nothing. For people; takes some milliseconds. Raises
        `NetworkError`."""

    async def traffic(self) -> Sequence[Traffic]:
        """What has passed each interface of this host whose guest is on. Waits for no other verb, takes a millisecond."""


@runtime_checkable
class KnowsConnections(Protocol):
    """A driver whose filters know connections that are established, and can be told of those that a guest brings along.

    One that cannot has guests that come judged by each packet, so that what only the other side sends on is cut.
    """

    async def connections(self, nic: Nic) -> Sequence[Connection]:
        """Those of the interface that its filter knows. Raises `NetworkError`."""

    async def know(self, nic: Nic, connections: Sequence[Connection]) -> None:
        """Have its filter know them; they are held against its rules all the same. Known already: nothing. Raises
        `NetworkError`."""


@runtime_checkable
class GatewayDriver(Protocol):
    """Makes gateways on this host: what a `NetworkDriver` does that can. They go on while the agent is down."""

    async def ensure_gateway(
        self, gateway: GatewayOrder, certificates: Mapping[str, Identity] | None = None
    ) -> GatewayFacts:
        """Have the gateway here as the order says: its legs, its addresses if this host is the active one, and what it
        does. Connections that the order still allows go on, the others are cut. Raises `NetworkError`: `SegmentNotReady`
        when a network of it is not here, `UplinkMissing`, `UplinkInUse` and `VlanUnsupported` when there is no way into an
        external network; `CertificateMissing` when neither `certificates` (by digest) nor the host has what a load
        balancer ends TLS with."""

    async def missing_certificates(self, gateway: GatewayOrder) -> frozenset[str]:
        """Digests of the certificates that a load balancer needs and that this host does not have."""

    async def remove_gateway(self, uid: str) -> None:
        """Have nothing of the gateway here."""

    async def gateway_facts(self, uid: str) -> GatewayFacts:
        """What is so of a gateway that is here. May be asked often."""
