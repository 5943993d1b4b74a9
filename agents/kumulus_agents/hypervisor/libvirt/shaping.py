"""What a domain is made of beside its size and its disks, as XML, and as its own metadata remembers it. Pure.

Processor, board, firmware, TPM, watchdog: https://libvirt.org/formatdomain.html. The firmware's variables and the state of
the TPM are files that libvirt makes for the domain (`/var/lib/libvirt/qemu/nvram`, `/var/lib/libvirt/swtpm/<uuid>`), keeps
over stop and start, brings along when it migrates, and removes when the domain is undefined.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement

from pydantic import ValidationError

from kumulus.api.hardware import HOST_MODEL, HOST_PASSTHROUGH, NEWEST_MACHINE_TYPE, Shape, WatchdogAction
from kumulus_agents.hypervisor.domain import DEFAULT_SHAPE, DomainSpec
from kumulus_agents.hypervisor.protocol import HypervisorError

NAMESPACE = "https://kumulus.io/xmlns/shape/1"
PREFIX = "kumulus-shape"

ACTIONS: Mapping[WatchdogAction, str] = {
    WatchdogAction.RESET: "reset",
    WatchdogAction.POWER_OFF: "poweroff",
}


def remember(metadata: Element, shape: Shape) -> None:
    """Write down what the domain was made of: libvirt works out the rest, and tells one from the other no more."""
    if shape != DEFAULT_SHAPE:
        said = {name: str(value) for name, value in shape.to_json().items() if value}
        SubElement(metadata, f"{{{NAMESPACE}}}shape", said)


def recall(root: Element) -> Shape:
    """What the domain was made of; of what nobody can read, nothing."""
    element = root.find(f"metadata/{{{NAMESPACE}}}shape")
    try:
        return Shape.model_validate(element.attrib) if element is not None else DEFAULT_SHAPE
    except ValidationError:
        return DEFAULT_SHAPE


def board(root: Element) -> str | None:
    """The board, by its exact name."""
    found = root.find("os/type")
    return found.get("machine") if found is not None else None


def firmware(domain: Element, spec: DomainSpec, has: str | None) -> Element:
    """The board and what starts the guest. `has`: the board that the machine was started with before."""
    shape = spec.shape
    found = SubElement(domain, "os")
    machine = spec.machine_type or has or NEWEST_MACHINE_TYPE
    SubElement(found, "type", arch="x86_64", machine=machine).text = "hvm"
    if shape.uefi:
        # By the descriptors of the distribution's firmware libvirt finds the file, and makes the variables from its template.
        found.set("firmware", "efi")
        asked = SubElement(found, "firmware")
        for feature in ("secure-boot", "enrolled-keys"):
            SubElement(asked, "feature", enabled="yes" if shape.secure_boot else "no", name=feature)
    return found


def features(element: Element, shape: Shape) -> None:
    """What only the firmware may write to is kept from the guest by system management mode."""
    if shape.secure_boot:
        SubElement(element, "smm", state="on")


def processor(domain: Element, spec: DomainSpec, cpus: int, *, emulated: str | None) -> Element:
    """The processor, with as many CPUs. `emulated`: the model where QEMU emulates it and the machine asks for none, or
    `maximum`; None: the host's processor runs it."""
    model = spec.shape.cpu_model or HOST_MODEL
    if emulated is not None and model == HOST_PASSTHROUGH:
        model, emulated = HOST_MODEL, "maximum"  # there is no processor to pass through: all that QEMU can do
    if emulated is not None and model == HOST_MODEL:
        model = emulated
    if model == "maximum":
        cpu = SubElement(domain, "cpu", mode="maximum", check="none")
    elif model == HOST_MODEL:
        cpu = SubElement(domain, "cpu", mode="host-model", check="partial")
    elif model == HOST_PASSTHROUGH:
        cpu = SubElement(domain, "cpu", mode="host-passthrough", check="none")
    else:
        # QEMU emulates no model to the last feature; where it is the host's, one that lacks a feature does not start.
        check = "partial" if emulated is None else "none"
        cpu = SubElement(domain, "cpu", mode="custom", match="exact", check=check)
        SubElement(cpu, "model", fallback="forbid").text = model
    SubElement(cpu, "topology", _topology(spec.shape, cpus))
    return cpu


def _topology(shape: Shape, cpus: int) -> dict[str, str]:
    """One socket unless asked otherwise: some guests are licensed or limited by sockets."""
    threads = shape.threads or 1
    if shape.cores is not None:
        sockets, cores = shape.sockets or cpus // (shape.cores * threads), shape.cores
    else:
        sockets = shape.sockets or 1
        cores = cpus // (sockets * threads)
    if sockets * cores * threads != cpus:
        raise HypervisorError(
            f"{cpus} CPUs cannot be {sockets} sockets of {cores} cores with {threads} threads.",
            reason="InvalidDomain",
            retryable=False,
        )
    return {"sockets": str(sockets), "dies": "1", "cores": str(cores), "threads": str(threads)}


def devices(element: Element, shape: Shape) -> None:
    """The TPM and the watchdog."""
    if shape.tpm:
        tpm = SubElement(element, "tpm", model="tpm-crb")
        SubElement(tpm, "backend", type="emulator", version="2.0")
    if shape.watchdog is not None:
        SubElement(element, "watchdog", model="i6300esb", action=ACTIONS[shape.watchdog])
