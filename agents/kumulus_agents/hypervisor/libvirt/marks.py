"""The marks of Kumulus in a domain's own metadata, as XML. Pure.

Six elements, one a namespace, as libvirt wants it: `adopted` is of domains that others defined (see there); `instance` has the marks and is in the persistent
and the live definition, and so is `arriving`, which says that its guest comes from another host; `run` says when this run began, `rest` that its guest was asked to bring its file
systems to rest and is not known to have gone on, `hold` that the guest is held for a snapshot, and what has
to be done that it goes on. These three are in the live definition alone, so that they go with the run,
whoever ends it and starts another.

Text is percent-encoded: XML cannot carry every character, and a name that is a DNS label stays as
it is for whoever reads `virsh dumpxml`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from kumulus.api.compute import PowerState
from kumulus.api.hardware import Shape
from kumulus_agents.hypervisor.domain import DEFAULT_SHAPE, AttachedDisk, AttachedDrive, AttachedNic, Marks
from kumulus_agents.hypervisor.foreign import NotedNic
from kumulus_agents.hypervisor.libvirt import adopted, attached, shaping
from kumulus_agents.hypervisor.libvirt.attached import UNKNOWN_SIZE, Size
from kumulus_agents.hypervisor.libvirt.handles import DomainHandle

NAMESPACE = "https://kumulus.io/xmlns/domain/1"
PREFIX = "kumulus"
RUN_NAMESPACE = "https://kumulus.io/xmlns/run/1"
RUN_PREFIX = "kumulus-run"
REST_NAMESPACE = "https://kumulus.io/xmlns/rest/1"
REST_PREFIX = "kumulus-rest"
REST_XML = "<rest/>"
HOLD_NAMESPACE = "https://kumulus.io/xmlns/hold/1"
HOLD_PREFIX = "kumulus-hold"
ARRIVING_NAMESPACE = "https://kumulus.io/xmlns/arriving/1"
ARRIVING_PREFIX = "kumulus-arriving"

SAFE = "/:+,@= "

DECIMALS = 3
"""How exactly a moment is written, in digits of a second."""


@dataclass(frozen=True, slots=True)
class Hold:
    """That a guest is held, and how."""

    halted: bool
    """Its CPUs ran before."""
    frozen: bool
    """Its file systems may be frozen."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a domain's metadata says of it."""

    marks: Marks
    started_at: float | None
    disks: tuple[AttachedDisk, ...] = ()
    """What devices it has, which is read along with it."""
    drives: tuple[AttachedDrive, ...] = ()
    nics: tuple[AttachedNic, ...] = ()
    size: Size = UNKNOWN_SIZE
    resting: bool = False
    """Its guest was asked to bring its file systems to rest, and is not known to have gone on."""
    hold: Hold | None = None
    arriving: str | None = None
    """Uid of the migration by which its guest is to come."""
    saved: int | None = None
    """The epoch of the placement that a memory which is kept is of. Devices and size are those of that memory."""
    agent: bool = False
    """Its guest has opened the port of its agent."""
    shape: Shape = DEFAULT_SHAPE
    machine_type: str | None = None
    adopted: bool = False
    """Somebody else defined it."""
    squeezed: bool = False
    """Somebody had its guest give memory back."""
    lost: bool = False
    """It has no definition, as far as that was asked."""
    edited: tuple[str, ...] = ()
    """What of its definition somebody changed, as far as that was asked."""


def domain_name(uid: str) -> str:
    """Name of the domain of that machine. Derived from the uid alone."""
    return f"kumulus-{uid}"


def instance(marks: Marks, tag: str = "instance", nic: str = "nic") -> ElementTree.Element:
    """The marks as the `instance` element; `tag` and `nic` are its name and that of the elements in it."""
    element = ElementTree.Element(tag, _attributes(marks))
    for one in marks.nics:
        said = {
            "name": one.name,
            "uid": one.uid,
            "mac": one.mac,
            "addresses": " ".join(one.addresses) or None,
            "network": one.network,
            "vni": str(one.vni) if one.vni is not None else None,
            "vlan": str(one.vlan) if one.vlan is not None else None,
        }
        ElementTree.SubElement(element, nic, {key: _encode(text) for key, text in said.items() if text is not None})
    return element


def _attributes(marks: Marks) -> dict[str, str]:
    attributes = {
        "uid": _encode(marks.uid),
        "epoch": str(marks.epoch),
        "namespace": _encode(marks.namespace),
        "name": _encode(marks.name),
        "wanted": marks.wanted.value,
        "restarts": str(marks.restarts),
    }
    if marks.restart_request is not None:
        attributes["restartRequest"] = _encode(marks.restart_request)
    if marks.departed is not None:
        attributes["departed"] = _encode(marks.departed)
    return attributes


def instance_xml(marks: Marks) -> str:
    """The `instance` element for `virDomainSetMetadata`, which gives it its namespace."""
    return ElementTree.tostring(instance(marks), encoding="unicode")


def run_xml(started_at: float) -> str:
    """The `run` element for `virDomainSetMetadata`. Seconds since the epoch."""
    return ElementTree.tostring(
        ElementTree.Element("run", {"startedAt": f"{started_at:.{DECIMALS}f}"}), encoding="unicode"
    )


def hold_xml(hold: Hold) -> str:
    """The `hold` element for `virDomainSetMetadata`."""
    said = {name: "yes" for name, so in (("halted", hold.halted), ("frozen", hold.frozen)) if so}
    return ElementTree.tostring(ElementTree.Element("hold", said), encoding="unicode")


def read(domain_xml: str) -> Record | None:
    """What the metadata of a domain says, or None if the domain is not Kumulus' own.

    It is when its marks are whole, its UUID is the marks' uid, and its name is made of that, or the one that it had when it
    was adopted: a copy of one of our domains (`virt-clone`) carries our marks and is not ours.
    """
    root = adopted.note(ElementTree.fromstring(domain_xml))  # noqa: S314  # libvirt wrote it, not a user
    instance = root.find(f"metadata/{{{NAMESPACE}}}instance")
    if instance is None:
        return None
    try:
        marks = _marks(instance)
    except (KeyError, ValueError):
        return None
    if root.findtext("uuid") != marks.uid or root.findtext("name") not in (
        domain_name(marks.uid),
        adopted.name_of(root),
    ):
        return None
    return Record(
        marks,
        _started_at(root.find(f"metadata/{{{RUN_NAMESPACE}}}run")),
        attached.disks(root),
        attached.drives(root),
        attached.nics(root),
        attached.size(root),
        root.find(f"metadata/{{{REST_NAMESPACE}}}rest") is not None,
        _hold(root.find(f"metadata/{{{HOLD_NAMESPACE}}}hold")),
        arriving=_arriving(root.find(f"metadata/{{{ARRIVING_NAMESPACE}}}arriving")),
        agent=attached.agent_is_there(root),
        shape=shaping.recall(root),
        machine_type=_board(root),
        adopted=adopted.name_of(root) is not None,
        squeezed=attached.squeezed(root),
    )


def board_of(handle: DomainHandle) -> str | None:
    """The board that a domain is defined with, by its exact name; None when that is none of those that ours have."""
    return _board(ElementTree.fromstring(handle.XMLDesc(0)))  # noqa: S314  # libvirt wrote it


def _board(root: ElementTree.Element) -> str | None:
    found = shaping.board(root)
    return found if found is not None and "q35" in found else None


def with_memory(record: Record, saved_xml: str) -> Record:
    """What a domain that is off has, as the memory says that is kept of it; one without marks is of no placement (0)."""
    kept = read(saved_xml)
    if kept is None:
        return replace(record, saved=0)
    return replace(
        record,
        disks=kept.disks,
        drives=kept.drives,
        nics=kept.nics,
        size=kept.size,
        saved=kept.marks.epoch,
        shape=kept.shape,
        machine_type=kept.machine_type,
    )


def _marks(element: ElementTree.Element) -> Marks:
    request = element.get("restartRequest")
    return Marks(
        uid=_decode(element.attrib["uid"]),
        epoch=int(element.attrib["epoch"]),
        namespace=_decode(element.attrib["namespace"]),
        name=_decode(element.attrib["name"]),
        wanted=PowerState(element.attrib["wanted"]),
        restart_request=None if request is None else _decode(request),
        restarts=int(element.attrib["restarts"]),
        departed=None if (departed := element.get("departed")) is None else _decode(departed),
        nics=tuple(map(_nic, element.iterfind("{*}nic"))),
    )


def _nic(element: ElementTree.Element) -> NotedNic:
    network, vni, vlan = (element.get(name) for name in ("network", "vni", "vlan"))
    return NotedNic(
        _decode(element.attrib["name"]),
        _decode(element.attrib["uid"]),
        _decode(element.attrib["mac"]),
        tuple(_decode(element.get("addresses", "")).split()),
        None if network is None else _decode(network),
        None if vni is None else int(vni),
        None if vlan is None else int(vlan),
    )


def _started_at(element: ElementTree.Element | None) -> float | None:
    try:
        return None if element is None else float(element.attrib["startedAt"])
    except (KeyError, ValueError):
        return None


def _hold(element: ElementTree.Element | None) -> Hold | None:
    if element is None:
        return None
    return Hold(halted=element.get("halted") == "yes", frozen=element.get("frozen") == "yes")


def _arriving(element: ElementTree.Element | None) -> str | None:
    """A mark that says nothing is one all the same: who cannot tell what comes starts nothing."""
    return None if element is None else _decode(element.get("migration", ""))


def _encode(text: str) -> str:
    return quote(text, safe=SAFE, errors="surrogatepass")


def _decode(text: str) -> str:
    return unquote(text, errors="surrogatepass")
