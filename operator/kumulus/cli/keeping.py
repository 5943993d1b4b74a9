"""What keeps a machine on its host, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from kumulus.api.compute import VirtualMachine, VirtualMachineCondition
from kumulus.cli.facts import Finding, Level
from kumulus.cli.problem import as_sentence

TODO: Mapping[str, str] = {
    "AdoptedDevices": "`kumulusctl -n {namespace} vm restart {name}` gives it Kumulus' own.",
    "CacheUnsafe": "`kubectl get volumeclasses` shows the classes: one with cache none, and a restart.",
    "DiscInDrive": "Take the image out of the drive in spec.disks: `kubectl -n {namespace} edit vm {name}`.",
    "HostPassthrough": "Set spec.cpu.model to host-model, or to a model that both hosts have, and restart it.",
    "LocalDisks": "`kumulusctl -n {namespace} vm migrate {name} --with-local-disks` copies them along; `kubectl get storagepools` shows which pools are shared; `kumulusctl -n {namespace} volume move VOLUME"
    " --to POOL` moves a volume there.",
    "NetworkCannotFollow": "Its interfaces have to be in networks of another class: `kubectl get networkclasses`.",
    "NoTunnel": "The operator sets transfer.migration_port of the agent on that host.",
    "NotRunning": "`kumulusctl -n {namespace} vm resume {name}` lets it go on.",
    "PendingChanges": "`kumulusctl -n {namespace} vm restart {name}`, if it does not pass by itself.",
    "RestoreInProgress": "It passes by itself: `kubectl -n {namespace} get vmrestores`.",
    "VolumeMoves": "It passes by itself: `kumulusctl -n {namespace} volume list`.",
}
"""By reason of `Migratable`; a test holds it against all that the controllers give."""


def keeping(vm: VirtualMachine) -> list[Finding]:
    """That it could not be moved while it is on; nothing of one that could, or that is off."""
    found = vm.status.condition(VirtualMachineCondition.MIGRATABLE)
    if found is None or found.status != "False":
        return []
    todo = TODO.get(found.reason, "").format(namespace=vm.namespace, name=vm.name)
    what = f"It cannot move to another host while it is on ({found.reason}): {as_sentence(found.message)}"
    return [Finding(Level.NOTE, what, todo)]
