"""The tap of a domain that somebody else defined is plugged into what a machine's is, while the guest runs.

Rules are about names, so the tap gets ours before it comes near our bridge, and libvirt goes on calling it by its own: that
stays as an alternative name (`ip-link(8)`, property altname), by which the kernel finds a device as well. It is down for the
time, some milliseconds, which the guest does not see but in packets that are lost.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import SubElement, fromstring

import libvirt

from kumulus_agents.hypervisor.domain import DomainNic
from kumulus_agents.hypervisor.libvirt import adopted, attached
from kumulus_agents.hypervisor.libvirt.handles import DomainHandle
from kumulus_agents.hypervisor.protocol import HypervisorError

_DEVICES = Path("/sys/class/net")
_SECONDS = 20.0


def replug(nic: DomainNic, handle: DomainHandle) -> None:
    """See `Hypervisor.replug_nic`."""
    if not handle.isActive():
        return
    xml = attached.nic_xml(handle.XMLDesc(0), nic.uid)
    if xml is None:
        return
    element = fromstring(xml)  # noqa: S314  # libvirt wrote it
    target, source = element.find("target"), element.find("source")
    tap = target.get("dev") if target is not None else None
    if tap is None or source is None or not attached.can_be_replugged(element):
        raise HypervisorError(
            f"The interface {nic.mac} is of the kind {element.get('type')}, which is not changed while the guest runs: it comes"
            " into its network when the machine is started anew.",
            reason="InterfaceMovesLater",
            retryable=False,
        )
    _name(tap, nic.plug.device)
    if source.get("bridge") != nic.plug.bridge or element.get("type") != "bridge":
        element.remove(source)
        element.set("type", "bridge")
        SubElement(element, "source", bridge=nic.plug.bridge)
        handle.updateDeviceFlags(adopted.as_libvirt_knows(element), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    _ip("link", "set", "dev", nic.plug.device, "mtu", str(nic.plug.mtu), "up")
    note = adopted.with_plugged(fromstring(handle.XMLDesc(0)), nic.uid)  # noqa: S314  # libvirt wrote it
    if note is not None:
        handle.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            note,
            adopted.PREFIX,
            adopted.NAMESPACE,
            libvirt.VIR_DOMAIN_AFFECT_LIVE,
        )


def _name(tap: str, wanted: str) -> None:
    """Give the tap a name besides the one that it has. It has that already, by a death in between perhaps: what is missing."""
    if tap == wanted:
        return
    if not (_DEVICES / wanted).exists():
        _ip("link", "set", "dev", tap, "down")
        _ip("link", "set", "dev", tap, "name", wanted)
    if _run(("link", "show", "dev", tap)).returncode != 0:
        _ip("link", "property", "add", "dev", wanted, "altname", tap)


def _ip(*words: str) -> None:
    done = _run(words)
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-400:]
        raise HypervisorError(f"The interface could not be moved: ip {words[0]} says: {said}.", reason="ReplugFailed")


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    try:
        return subprocess.run(  # by its arguments, and names of ours and of libvirt's
            ["ip", *words],  # noqa: S607  # in the PATH above
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HypervisorError("The interface could not be moved: ip does not run.", reason="ReplugFailed") from error
