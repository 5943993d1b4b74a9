"""What to do about each reason that something of a network is not as it shall be. Pure.

Conditions say what is so and, in short, what to do; this says which command goes on from there. Reasons come from the
controllers' `Lack` and `Fact`, and from agents' drivers; a test holds this against all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

_ITSELF = "It goes on by itself; `kumulusctl status` shows whether the controllers run."
_OPERATOR = "Tell the operator: `kubectl -n kumulus-host-HOST get workorders` shows what that host says of it."
_NICS = "`kumulusctl -n {namespace} nic list` shows who has which address."
_NETS = "`kumulusctl -n {namespace} net list` shows what there is."
_ROUTERS = "`kumulusctl -n {namespace} router list` shows the routers with their networks."
_FIPS = "`kumulusctl -n {namespace} fip list` shows the floating IPs and whom they stand for."
_EXTERNAL = "`kubectl get externalnetworks` shows what the operator offers."
_CLASSES = "`kubectl get networkclasses -o wide` shows the classes, with what hosts cannot make."
_CAPABLE = "`kubectl describe networkclass CLASS` says which hosts can have gateways, and what the others lack."
_HOSTS = "`kumulusctl host list` shows the hosts; `kubectl describe physicalnetwork` shows which have an uplink."
_MEMBERS = "`kumulusctl -n {namespace} lb show {name}` shows the members that are well; `kumulusctl -n {namespace} net trace lb/{name} MEMBER --port PORT` whether its groups let the load balancer in."
_TLS = "`kubectl -n {namespace} get secrets` lists them; kubectl create secret tls makes one of the right type."
_UPLINK = "The operator corrects spec.uplinks of the PhysicalNetwork, or the host's devices (`ip -brief link` there)."
_GROUPS = "`kubectl -n {namespace} get securitygroups` lists the groups; it goes on when that one is made."
_PROGRAM = "Install it on that host; its agent sees it within half a minute."

HINTS: Mapping[str, str] = {
    # Networks and classes
    "AgentsBehind": "Upgrade the agents on the hosts that the message names, or OVN there. Nothing is cut meanwhile.",
    "AnotherIsDefault": "`kubectl get networkclasses` shows both: set spec.default of one to false.",
    "Deleting": "It goes when its interfaces and routers have let go of it. " + _NICS,
    "DriversDiffer": "`kumulusctl -n {namespace} net show NETWORK` says by what each is made: take out the odd one.",
    "InUse": "`kubectl -n {namespace} get networks,networkinterfaces,securitygroups,routers,floatingips,loadbalancers` shows"
    " what may use it; the operator sees all namespaces (-A), networkclasses and externalnetworks besides.",
    "HostsNotHeard": "The operator sees which hosts have not told yet: `kubectl get hostreports -A -o yaml`, orphanCount; guide, Rebuild"
    " from the hosts.",
    "HostsNotTold": "It goes on when the hosts that the message names have done their orders: `kumulusctl host list` shows"
    " whether they are heard of.",
    "LeftAlone": "Take the annotation off with the command that the message names.",
    "MtuTooLarge": "Leave spec.mtu empty: then it is as large as the hosts' network carries.",
    "MtuTooSmall": "Make the network anew with a larger mtu, or without IPv6.",
    "NamespaceNotAllowed": "Take that namespace out of spec.allowedNamespaces, or ask who owns it.",
    "NetworkClassNotAllowed": _CLASSES + " Make the network anew with one that this namespace may use.",
    "NetworkClassNotFound": _CLASSES,
    "NetworkDeleting": _NETS,
    "NetworkFull": _NICS,
    "NetworkGone": "Delete it: what it was in is not there any more.",
    "NetworkNotAllowed": "Ask the owner of the network to add this namespace to spec.allowedNamespaces.",
    "NetworkNotFound": f"{_NETS} An interface of a machine cannot be changed: take it out and add it under another name, or"
    " make that network.",
    "NetworkNotReady": "`kumulusctl -n {namespace} net explain NETWORK` says why.",
    "NetworkWithoutAddresses": "Make it anew in a network with cidrs.",
    "NetworkWithoutRange": "Take the network out of spec.networks, or make one with cidrs.",
    "NetworksOverlap": _NETS + " Ranges cannot be changed: make one of both anew.",
    "NoHost": _CAPABLE,
    "NoHostHasDriver": _CLASSES + " The agent's log on a host says what is missing there.",
    "NoNumberLeft": "`kubectl get segmentids` shows who has numbers of VXLANs.",
    "NotByDriver": _CLASSES,
    "NoHostConnected": _UPLINK,
    "NoVlans": "The operator names some in spec.vlans of the PhysicalNetwork, or of the NetworkClass.",
    "NoVlanLeft": "The operator names more in spec.vlans of the PhysicalNetwork; `kubectl get segmentids` shows who has which.",
    "OnGateway": "Nothing is wrong. A NetworkClass of the driver ovn has packets passed on by each host.",
    "NumberTaken": "Make the network anew; `kubectl get segmentids` shows the other one.",
    "Pending": _ITSELF,
    "RangeOutside": "Correct spec.dhcp.ranges; what of them is inside is given out meanwhile.",
    "SomeHosts": _CAPABLE,
    "Terminating": _ITSELF,
    # Interfaces
    "AddressInUse": _NICS,
    "AddressNotAvailable": _FIPS + " `kubectl describe externalnetwork` shows what can be given.",
    "AddressNotInNetwork": "Addresses cannot be changed: make the interface anew with one of the network's ranges.",
    "AddressPairsNotAllowed": "Take spec.allowedAddressPairs out: they count in networks of the own namespace only.",
    "AddressPending": _ITSELF,
    "AddressReserved": "Addresses cannot be changed: make it anew with another one, or with none.",
    "AddressResting": "It gets the address when that has rested; ask for none to have another one at once.",
    "InterfaceDeleting": _NICS,
    "InterfaceExists": "Name it by `interface:` in the machine's spec.interfaces, or delete it.",
    "InterfaceInUse": "`kumulusctl -n {namespace} nic list` shows which machine has it.",
    "InterfaceNameTaken": _NICS,
    "InterfaceNotFound": _NICS + " It goes on when that one is made.",
    "InterfaceNotReady": "`kumulusctl -n {namespace} nic explain INTERFACE` says what it waits for.",
    "InterfacePending": _ITSELF,
    "InterfaceRefused": "Something in the namespace refuses new interfaces: `kubectl -n {namespace} get resourcequotas`.",
    "MacAddressInUse": "MAC addresses cannot be changed: make the interface anew with another one, or with none.",
    "NotAttached": "It goes on by itself: the guest gets it while it runs. If it lasts, `kumulusctl -n {namespace} vm explain"
    " VM`.",
    "SecurityGroupNotFound": _GROUPS,
    "SecurityGroupRefused": "Something in the namespace refuses it: `kubectl -n {namespace} get resourcequotas`; or make"
    " SecurityGroup default yourself.",
    "TooManyAddresses": "Make it anew with fewer in spec.addresses.",
    # Routers and the world
    "AddressFamilyDiffers": "Point it at an interface with an address of its family: " + _NICS,
    "AnotherRouter": _ROUTERS + " Put the networks of all its interfaces into one router.",
    "ExternalNetworkDeleting": _EXTERNAL,
    "ExternalNetworkFull": _FIPS + " Those that stand for nobody can go.",
    "ExternalNetworkGone": _EXTERNAL,
    "ExternalNetworkNotFound": _EXTERNAL,
    "GatewaysUnsupported": _CLASSES + " Networks keep their class: make them anew with another one.",
    "InterfaceHasFloatingIP": _FIPS + " Delete one of both, or give it another target.",
    "LettingGo": "The hosts of the router that had it let go of it first. " + _ITSELF,
    "NoGatewayHost": _CAPABLE + " " + _HOSTS,
    "NoHosts": _HOSTS,
    "NoNetworks": _NETS + " Add them to spec.networks.",
    "NoRouter": _ROUTERS,
    "NoStandby": "With one host less it is gone: add a host, or make one able. " + _CAPABLE,
    "NotCopied": "Tell the operator: it routes all the same. On its hosts, `conntrackd` is missing or does not run.",
    "NotSaid": "Tell the operator: the agents of its hosts are older than the controllers. It routes all the same.",
    "NotActive": _ITSELF + " If it lasts: `kumulusctl host list` shows whether its hosts are heard of.",
    "PhysicalNetworkNotFound": "The operator makes it: `kubectl get physicalnetworks`.",
    "RouteUnreachable": "`kumulusctl -n {namespace} router show {name}` shows its networks.",
    "RouteUseless": "`kumulusctl -n {namespace} router show {name}` shows its networks.",
    "RouterNotActive": "`kumulusctl -n {namespace} router explain ROUTER` says why.",
    "SourceNATRequired": _EXTERNAL + " One with spec.allowRouted takes addresses of tenants.",
    "TooManyFloatingIPs": _FIPS,
    # Load balancers
    "CertificateExpired": _TLS + " A new one in the same Secret is used within five minutes.",
    "MemberIsLoadBalancer": "`kumulusctl -n {namespace} lb list` shows the load balancers.",
    "NoHealthyMembers": _MEMBERS,
    "NoMembers": "`kubectl -n {namespace} get vm --show-labels` and `kumulusctl -n {namespace} nic list` show who could be.",
    "SecretNotCertificate": _TLS,
    "SecretNotFound": _TLS,
    "TooManyMembers": "Narrow spec.members.selector: `kubectl -n {namespace} get vm --show-labels`.",
    # Machines behind Services
    "ExternalName": "kubectl -n {namespace} label service {name} network.kumulus.io/vm-network- takes the label off.",
    "NamedTargetPort": "`kubectl -n {namespace} edit service {name}`: a targetPort that is a number.",
    "NoMachines": "`kubectl -n {namespace} get vm --show-labels` and `kumulusctl -n {namespace} nic list` show who could be.",
    "NoSelector": "`kubectl -n {namespace} edit service {name}`: a selector with labels of the machines.",
    "NotReachable": _FIPS + " " + _EXTERNAL,
    "NotRouted": "`kumulusctl -n {namespace} fip explain FIP` or `router explain ROUTER` says why.",
    "NoneReady": "`kumulusctl -n {namespace} vm list` shows which run, and `vm explain VM` why one does not.",
    "SliceRefused": "Something in the namespace refuses its EndpointSlices: `kubectl -n {namespace} get resourcequotas`.",
    "TrafficPolicyLocal": "`kubectl -n {namespace} edit service {name}`: both traffic policies have to be Cluster.",
    # What hosts say
    "BadBalancer": _OPERATOR,
    "BadOption": "Correct spec.dhcp.options of the Network as the message says.",
    "BalancerSilent": _OPERATOR,
    "CertificateMissing": "The controllers give it to the host again. " + _ITSELF,
    "CommandFailed": _OPERATOR,
    "DatabaseFailed": "On that host: `systemctl status ovn-central`, and whether its disk is full.",
    "Failed": _OPERATOR,
    "HostFull": "That host has as many networks or ports as it can: move machines to others.",
    "KernelLacks": "The host needs that part of the kernel: modprobe, or another kernel.",
    "NoFinalizer": "The order was written by somebody else: delete it, and the controllers write it anew.",
    "NoSuchDriver": _CLASSES + " The agent of that host is older than the class, or without that part.",
    "NoUnderlay": "Set network.underlay of the agent on that host to its address in the network between hosts.",
    "NotAnswering": "On that host: `systemctl status openvswitch-switch ovn-central ovn-host`.",
    "NotRoot": "Run the agent as root on that host, or set network.enabled to false.",
    "NotRunning": "On that host: `systemctl status openvswitch-switch ovn-central ovn-host`.",
    "OvnInUse": "Open vSwitch there belongs to another OVN: take a host of its own, or a class with the driver linux.",
    "ProgramMissing": _PROGRAM,
    "SegmentInUse": "It goes when the last interface and gateway there has let go of it. " + _ITSELF,
    "SegmentNotReady": "The host is told of the network first. " + _ITSELF,
    "Stuck": _OPERATOR,
    "UplinkInUse": _UPLINK,
    "UplinkMissing": _UPLINK,
    "UplinkMtuTooSmall": _UPLINK,
    "VlanUnsupported": _UPLINK,
    "VlanInUse": "The operator makes the ExternalNetwork with another VLAN; `kubectl get segmentids` shows whose that one is.",
    "VlanPending": _ITSELF,
}


def hint(reason: str, *, namespace: str, name: str) -> str:
    """What to do; empty for a reason of which nothing is known here."""
    return HINTS.get(reason, "").format(namespace=namespace, name=name)
