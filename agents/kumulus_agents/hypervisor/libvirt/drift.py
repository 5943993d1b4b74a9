"""What somebody on the host has changed of a machine of ours that is on, beside the agent. Pure, but for `redefine` and `refill`."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from kumulus_agents.hypervisor.libvirt import sources, verbs
from kumulus_agents.hypervisor.libvirt.handles import DomainHandle

_TOP = ("vcpu", "memory", "os/type", "os/loader", "on_poweroff", "on_reboot", "on_crash")
"""What of a domain's head somebody may have edited, and what the guest has still as it was."""


def edited(live_xml: str, persistent_xml: str) -> tuple[str, ...]:
    """What the definition says otherwise than what is on: `vcpu`, `disk vdb`, ... What is on and not in the definition is not
    told of: it may be on its way out."""
    live, defined = _root(live_xml), _root(persistent_xml)
    found = [name for name in _TOP if _said(live.find(name)) != _said(defined.find(name))]
    for what, of in (("disk", _disk), ("interface", _nic), ("hostdev", _other), ("filesystem", _other)):
        has = {of(element) for element in live.iterfind(f"devices/{what}")}
        more = [of(element) for element in defined.iterfind(f"devices/{what}")]
        found += [f"{what} {one[0]}".strip() for one in more if one not in has]
    return tuple(found)


def refill(handle: DomainHandle) -> None:
    """Ask the guest to take all of its memory again. Off: nothing."""
    whole = _root(handle.XMLDesc(0)).findtext("memory")
    if whole is not None and handle.isActive():
        with verbs.tolerating(libvirt.VIR_ERR_OPERATION_INVALID):
            handle.setMemoryFlags(int(whole), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def redefine(handle: DomainHandle) -> None:
    """Give a domain that is on, and whose definition somebody took away, one as it is. It has one, or is off: nothing."""
    if handle.isActive() and not handle.isPersistent():
        handle.connect().defineXML(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def _root(xml: str) -> Element:
    return ElementTree.fromstring(xml)  # noqa: S314  # libvirt wrote it


def _said(element: Element | None) -> tuple[str, ...]:
    """Text and attributes of an element; nothing of those below."""
    if element is None:
        return ()
    own = (element.text or "").strip()
    return (own, *(f"{key}={value}" for key, value in sorted(element.items())))


def _disk(element: Element) -> tuple[str, ...]:
    return (
        sources.attribute(element, "target", "dev"),
        sources.attribute(element, "target", "bus"),
        sources.path_of(element) or "",
    )


def _nic(element: Element) -> tuple[str, ...]:
    return (sources.attribute(element, "mac", "address").lower(),)


def _other(element: Element) -> tuple[str, ...]:
    return ("", element.get("type", ""), *(f"{key}={value}" for key, value in sorted(element.items())))
