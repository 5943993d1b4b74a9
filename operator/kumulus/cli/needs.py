"""What a machine needs before it can be placed, and whether it is there: size, Secrets, images. Pure."""

from __future__ import annotations

from kumulus.api.compute import Phase
from kumulus.api.image import ImagePhase
from kumulus.cli.amounts import size
from kumulus.cli.facts import Absence, Facts, Finding, Level
from kumulus.cli.problem import as_sentence


def references(facts: Facts) -> list[Finding]:
    """What the spec names and is not there. What was resolved once is kept, so it may go afterwards."""
    vm, found = facts.vm, []
    type_ = vm.spec.instance_type
    if vm.status.resources is None and type_ and facts.instance_type is Absence.MISSING:
        found.append(
            Finding(
                Level.PROBLEM,
                f"There is no InstanceType {type_}.",
                "`kubectl get instancetypes` lists the sizes there are; make this machine anew with one of them, or "
                "ask the operator to make that one.",
            )
        )
    for ref, there in facts.secrets.items():
        if vm.status.host is not None:
            break
        if there is Absence.MISSING:
            what = f"There is no Secret {ref.name}, which {ref.field} names."
            found.append(Finding(Level.PROBLEM, what, f"Make it in namespace {vm.namespace}, with the key {ref.key}."))
        elif there is False:
            what = f"The Secret {ref.name} has no key {ref.key}, which {ref.field} names."
            found.append(Finding(Level.PROBLEM, what, f"Add the key {ref.key} to the Secret."))
    return found


def images(facts: Facts) -> list[Finding]:
    """Images its disks are made from, that are missing, failed or not there yet."""
    if facts.vm.status.phase in (Phase.RUNNING, Phase.MIGRATING, Phase.PAUSED, Phase.SUSPENDED, Phase.STOPPED):
        return []
    found = []
    for name, image in facts.images.items():
        if image is Absence.MISSING:
            what = f"There is no image {name}, neither in namespace {facts.vm.namespace} nor in the cluster."
            if "/" in name:
                what = f"There is no image {name}."
            found.append(
                Finding(Level.PROBLEM, what, f"`kumulusctl -n {facts.vm.namespace} image list` shows what there is.")
            )
        if isinstance(image, Absence) or image.status.phase is ImagePhase.READY:
            continue
        ready = image.status.condition("Ready")
        message = f" {as_sentence(ready.message)}" if ready is not None and ready.message else ""
        if image.status.phase is ImagePhase.FAILED:
            reason = f" ({ready.reason})" if ready is not None and ready.reason else ""
            todo = f"Correct the {image.KIND.kind} {name}: its source cannot be changed, so delete it and make it anew."
            found.append(Finding(Level.PROBLEM, f"The image {name} could not be imported{reason}.{message}", todo))
        elif image.status.phase is ImagePhase.IMPORTING:
            at = image.status.progress
            done = f": {size(at.bytes)}" + (f" of {size(at.total)}" if at.total else "") if at else ""
            found.append(Finding(Level.WAITING, f"The image {name} is being imported{done}."))
        elif ready is not None and ready.reason == "NoHostFits":
            what = f"The image {name} cannot be imported yet.{message}"
            found.append(Finding(Level.PROBLEM, what, "`kumulusctl host list` shows the hosts; it goes on by itself."))
        else:
            found.append(Finding(Level.WAITING, f"The image {name} is not imported yet.{message}"))
    return found
