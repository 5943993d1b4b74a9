"""`vm explain` names the cause and what to do, for each way a machine can fail to run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from kumulus.api.base import FORCE_DETACH, PAUSED
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.image import Image
from kumulus.api.storage import StoragePool
from kumulus.cli.explain import explain
from kumulus.cli.facts import Absence, Facts, Finding, Level, image_names, secret_refs
from kumulus.kube.service import PUBLISHED, Service

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
UID = "0b5c1f8e-7a5a-4a53-9c6e-6f1f3d3f5a11"


def condition(type_: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-11-20T11:55:00Z",
    }


def machine(
    *, spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **metadata: Any
) -> VirtualMachine:
    return VirtualMachine.parse(
        {
            "metadata": {
                "name": "web1",
                "namespace": "shop",
                "uid": UID,
                "generation": 1,
                "creationTimestamp": "2026-11-20T11:00:00Z",
                "finalizers": ["kumulus.io/cleanup"],
                **metadata,
            },
            "spec": {
                "instanceType": "small",
                "disks": [{"name": "root", "ephemeral": {"image": "debian"}}],
                **(spec or {}),
            },
            "status": {"observedGeneration": 1, "phase": "Pending", **(status or {})},
        }
    )


def pool(name: str, *conditions: dict[str, Any]) -> StoragePool:
    return StoragePool.parse(
        {
            "metadata": {"name": name, "uid": UID, "generation": 1},
            "spec": {"driver": "lvm", "parameters": {"lvm": {"volumeGroup": "vg0", "thinPool": "thin"}}},
            "status": {"conditions": list(conditions)},
        }
    )


def running(**status: Any) -> dict[str, Any]:
    return {
        "phase": "Running",
        "host": "h1",
        "resources": {"cpus": 1, "memory": "1Gi"},
        "startedAt": "2026-11-20T11:50:00Z",
        "conditions": [condition("Ready", "True", "Running"), condition("Scheduled", "True", "Placed")],
        **status,
    }


def test_a_service_that_cannot_have_it_as_an_endpoint_is_told_beside_that_all_is_well() -> None:
    def service(name: str, *conditions: dict[str, Any]) -> Service:
        return Service.parse({"metadata": {"name": name}, "status": {"conditions": list(conditions)}})

    services = [
        service("db", condition(PUBLISHED, "False", "NotReachable", "Machine web1 cannot be reached.")),
        service("web", condition(PUBLISHED, "True", "Published")),
        service("new"),
    ]
    facts = Facts(
        machine(status=running()), NOW, order=order("Running"), host=host("Ready", ready="True"), services=services
    )
    well, said = explain(facts)
    assert well.level is Level.OK and said.level is Level.NOTE
    assert said.what == "The Service db selects it, and says (NotReachable): Machine web1 cannot be reached."
    assert "kumulusctl -n shop fip list" in said.todo


def test_a_broken_rule_of_its_placement_is_told_beside_that_all_is_well() -> None:
    broken = condition("PlacementSatisfied", "False", "RuleBroken", "It would not be placed on host h1 now.")
    status = running()
    status["conditions"].append(broken)
    well, said = explain(Facts(machine(status=status), NOW, order=order("Running"), host=host("Ready", ready="True")))
    assert well.level is Level.OK and said.level is Level.NOTE
    assert said.what == "It would not be placed on host h1 now."
    assert "`kumulusctl -n shop vm explain web1 --hosts`" in said.todo


def host(phase: str, reason: str = "", message: str = "", ready: str = "False") -> Host:
    conditions = [condition("Ready", ready, reason, message)]
    return Host.parse(
        {"metadata": {"name": "h1"}, "spec": {"zone": "z1"}, "status": {"phase": phase, "conditions": conditions}}
    )


def order(state: str | None, reason: str = "", message: str = "", **instance: Any) -> WorkOrder:
    return WorkOrder.parse(
        {
            "metadata": {"name": f"instance-{UID}", "namespace": "kumulus-host-h1", "generation": 1},
            "spec": {"type": "Instance", "for": {"kind": "VirtualMachine", "name": "web1", "uid": UID}},
            "status": {
                "observedGeneration": 1,
                "state": state,
                "reason": reason or None,
                "message": message or None,
                "instance": instance,
            },
        }
    )


def image(phase: str, reason: str = "", message: str = "", **status: Any) -> Image:
    return Image.parse(
        {
            "metadata": {"name": "debian", "namespace": "shop"},
            "spec": {"source": {"http": {"url": "https://x/y"}}, "checksum": {"sha256": "a" * 64}, "format": "qcow2"},
            "status": {"phase": phase, "conditions": [condition("Ready", "False", reason, message)], **status},
        }
    )


def tell(vm: VirtualMachine, **facts: Any) -> list[Finding]:
    return explain(Facts(vm=vm, now=NOW, **facts))


def the_one(findings: list[Finding], level: Level) -> Finding:
    assert [finding.level for finding in findings] == [level], findings
    return findings[0]


def test_all_is_well() -> None:
    found = the_one(tell(machine(status=running()), host=host("Ready", ready="True"), order=order("Running")), Level.OK)
    assert "on h1" in found.what
    assert "10m" in found.what


def test_paused_by_annotation() -> None:
    vm = machine(status={"observedGeneration": None, "phase": None}, annotations={PAUSED: "true"})
    first = tell(vm)[0]
    assert first.level is Level.PROBLEM
    assert first.todo == f"kubectl -n shop annotate vm web1 {PAUSED}-"


def test_no_controller_runs() -> None:
    vm = machine(status={"observedGeneration": None, "phase": None})
    found = the_one(tell(vm, controllers="Of the controllers, none runs now."), Level.PROBLEM)
    assert "No controller has looked at it yet" in found.what
    assert "none runs now" in found.what
    assert "kumulus run" in found.todo


def test_a_machine_made_this_second_is_only_waited_for() -> None:
    vm = machine(status={"observedGeneration": None, "phase": None}, creationTimestamp="2026-11-20T11:59:55Z")
    the_one(tell(vm, controllers="Of the controllers, none runs now."), Level.WAITING)


def test_a_change_nobody_has_looked_at() -> None:
    vm = machine(status=running(), generation=2)
    assert "last change" in the_one(tell(vm, order=order("Running"), host=host("Ready")), Level.WAITING).what


def test_everything_that_is_missing_is_told_at_once() -> None:
    vm = machine(
        spec={
            "cloudInit": {"userDataSecret": {"name": "boot", "key": "user-data"}},
            "sshKeys": [{"secret": {"name": "alice", "key": "id.pub"}}],
        },
        status={
            "conditions": [condition("Scheduled", "False", "InstanceTypeNotFound", "There is no InstanceType small.")]
        },
    )
    boot, alice = secret_refs(vm)
    findings = tell(
        vm,
        instance_type=Absence.MISSING,
        secrets={boot: Absence.MISSING, alice: False},
        images=dict.fromkeys(image_names(vm), Absence.MISSING),
    )
    assert [finding.level for finding in findings] == [Level.PROBLEM] * 4
    text = " ".join(finding.what for finding in findings)
    for words in (
        "InstanceType small",
        "Secret boot",
        "spec.cloudInit.userDataSecret",
        "no key id.pub",
        "image debian",
    ):
        assert words in text
    assert "kubectl get instancetypes" in findings[0].todo


def test_an_instance_type_deleted_later_is_no_matter() -> None:
    vm = machine(status=running())
    the_one(tell(vm, instance_type=Absence.MISSING, order=order("Running"), host=host("Ready")), Level.OK)


def test_a_failed_image_gives_its_own_reason() -> None:
    why = "The bytes add up to 1234, not to what spec.checksum says."
    vm = machine(
        status={
            "conditions": [
                condition("Scheduled", "False", "VolumesNotReady", why),
                condition("Stalled", "True", "ImageFailed", why),
            ]
        }
    )
    found = the_one(tell(vm, images={"debian": image("Failed", "ChecksumMismatch", why)}), Level.PROBLEM)
    assert "ChecksumMismatch" in found.what
    assert why in found.what
    assert "delete it and make it anew" in found.todo


def test_an_image_on_its_way_shows_how_far_it_is() -> None:
    vm = machine(status={"conditions": [condition("Scheduled", "False", "VolumesNotReady")]})
    importing = image("Importing", progress={"bytes": 2**29, "total": 2**30})
    found = the_one(tell(vm, images={"debian": importing}), Level.WAITING)
    assert "512 MiB of 1 GiB" in found.what


def test_an_image_no_host_can_import() -> None:
    found = the_one(
        tell(machine(), images={"debian": image("Pending", "NoHostFits", "0 of 1 hosts fit")}), Level.PROBLEM
    )
    assert "0 of 1 hosts fit" in found.what
    assert "host list" in found.todo


def test_no_host_fits_gives_the_reasons_per_host() -> None:
    why = "0 of 3 hosts fit: 2 have not enough memory (h1, h2); 1 not ready (h3)"
    vm = machine(status={"phase": "Scheduling", "conditions": [condition("Scheduled", "False", "NoHostFits", why)]})
    found = the_one(tell(vm), Level.PROBLEM)
    assert why in found.what
    assert "host add" in found.todo


def test_a_machine_that_waits_for_a_pool_is_told_what_is_wrong_with_it() -> None:
    why = "0 of 1 hosts fit: 1 without a storage pool that is ready (h1)"
    vm = machine(status={"phase": "Scheduling", "conditions": [condition("Scheduled", "False", "NoHostFits", why)]})
    pools = [
        pool("near", condition("Ready", "False", "DriverUnsupported", "h1: The kernel has no device-mapper")),
        pool("there", condition("Ready", "True", "Degraded", "Not ready on 1 of 2 hosts")),
        pool("new"),
    ]
    first, second = tell(vm, pools=pools)
    assert why in first.what
    assert second.level is Level.PROBLEM
    assert "near" in second.what
    assert "(DriverUnsupported): h1: The kernel has no device-mapper." in second.what
    assert "describe storagepool near" in second.todo
    elsewhere = machine(
        status={"conditions": [condition("Scheduled", "False", "NoHostFits", "0 of 1 hosts fit: 1 not ready (h1)")]}
    )
    assert len(tell(elsewhere, pools=pools)) == 1


@pytest.mark.parametrize("reason", ["ZoneNotFound", "InstanceTypeNotAllowed", "MemoryTooSmall", "SecretNotText"])
def test_other_refusals_tell_the_controllers_sentence(reason: str) -> None:
    vm = machine(status={"conditions": [condition("Scheduled", "False", reason, "Because of this")]})
    found = the_one(tell(vm), Level.PROBLEM)
    assert reason in found.what
    assert "Because of this." in found.what


def test_an_image_the_namespace_may_not_use() -> None:
    why = "ClusterImage debian may not be used in namespace shop."
    status = {
        "conditions": [
            condition("Scheduled", "False", "VolumesNotReady", why),
            condition("Stalled", "True", "ImageNotAllowed", why),
        ]
    }
    assert why in the_one(tell(machine(status=status), images={"debian": Absence.HIDDEN}), Level.PROBLEM).what


@pytest.mark.parametrize(("stalled", "level"), [(True, Level.PROBLEM), (False, Level.WAITING)])
def test_a_machine_that_waits_for_its_addresses_says_why(stalled: bool, level: Level) -> None:
    said = "NetworkInterface web1-eth0: Network front has no address left in 10.0.0.0/29."
    conditions = [condition(type_, "False", "NetworkFull", said) for type_ in ("Ready", "NetworkReady")]
    conditions += [condition("Scheduled", "False", "NetworkNotReady", said)]
    conditions += [condition("Stalled" if stalled else "Reconciling", "True", "NetworkFull", said)]
    finding = the_one(tell(machine(status={"conditions": conditions})), level)
    assert "NetworkFull" in finding.what and "10.0.0.0/29" in finding.what
    assert "kumulusctl -n shop nic list" in finding.todo


def test_a_running_machine_tells_its_addresses_and_what_it_has_not_got() -> None:
    assert (
        "Its addresses: 10.0.0.3, fd00::3." in tell(machine(status=running(addresses=["10.0.0.3", "fd00::3"])))[0].what
    )
    waits = condition("NetworkReady", "False", "NotAttached", "The guest has not got eth1 yet.")
    status = running()
    status["conditions"].append(waits)
    assert "has not got eth1" in the_one(tell(machine(status=status)), Level.WAITING).what


def test_a_host_that_is_not_heard_of() -> None:
    vm = machine(
        status=running(phase="Unknown", conditions=[condition("Ready", "Unknown", "HostUnknown", "h1 does not answer")])
    )
    found = the_one(
        tell(vm, host=host("Unknown", "LeaseExpired", ready="Unknown"), order=order("Running")), Level.PROBLEM
    )
    assert "is not known" in found.what
    assert "5m" in found.what
    assert f"kubectl -n shop annotate vm web1 {FORCE_DETACH}=true" in found.todo


def test_a_host_one_may_not_see_leaves_the_machines_own_words() -> None:
    vm = machine(
        status=running(
            phase="Unknown", conditions=[condition("Ready", "Unknown", "HostUnknown", "Host h1 does not answer.")]
        )
    )
    found = the_one(tell(vm, host=Absence.HIDDEN, order=Absence.HIDDEN), Level.PROBLEM)
    assert "Host h1 does not answer." in found.what


def test_a_host_whose_hypervisor_is_down() -> None:
    vm = machine(status=running(phase="Starting", conditions=[condition("Ready", "False", "Starting")]))
    broken = host("NotReady", "HypervisorNotReady", "The hypervisor does not answer: no socket")
    findings = tell(vm, host=broken, order=order("Starting"))
    assert "NotReady" in findings[0].what
    assert "no socket." in findings[0].what
    assert "host show h1" in findings[0].todo


def test_a_host_that_is_gone() -> None:
    vm = machine(status=running(phase="Unknown"))
    assert "no longer known" in tell(vm, host=Absence.MISSING, order=Absence.MISSING)[0].what


@pytest.mark.parametrize(
    ("state", "level"),
    [
        ("Waiting", Level.WAITING),
        ("Starting", Level.WAITING),
        ("Working", Level.WAITING),
        ("Failed", Level.PROBLEM),
        ("Refused", Level.PROBLEM),
    ],
)
def test_what_the_host_says_of_its_work(state: str, level: Level) -> None:
    vm = machine(status=running(phase="Provisioning", conditions=[condition("Ready", "False", "X", "y")]))
    found = the_one(tell(vm, host=host("Ready"), order=order(state, "NoSpace", "The pool is full")), level)
    assert "NoSpace" in found.what
    assert "The pool is full." in found.what


def test_an_agent_that_has_not_answered_and_an_order_not_written() -> None:
    vm = machine(status=running(phase="Starting", conditions=[condition("Ready", "False", "Starting")]))
    silent = order(None).model_copy(update={"metadata": order(None).metadata.model_copy(update={"generation": 2})})
    assert "has not answered" in the_one(tell(vm, host=host("Ready"), order=silent), Level.WAITING).what
    assert "not written yet" in the_one(tell(vm, host=host("Ready"), order=Absence.MISSING), Level.WAITING).what


def test_a_crash_loop_says_when_the_next_start_is() -> None:
    vm = machine(
        status=running(
            phase="CrashLoopBackOff",
            restarts=4,
            conditions=[condition("Ready", "False", "GuestCrashed"), condition("Stalled", "True", "GuestCrashed")],
        )
    )
    back_off = order("BackOff", "GuestCrashed", "x", lastExit="crashed", nextStartAt="2026-11-20T12:00:40Z")
    found = the_one(tell(vm, host=host("Ready"), order=back_off), Level.PROBLEM)
    for words in ("4 times", "crashed", "in 40s"):
        assert words in found.what
    assert "vm logs web1" in found.todo


@pytest.mark.parametrize("reason", ["GuestShutDown", "GuestCrashed", "ForcedOff", "EndedUnseen"])
def test_a_guest_that_ended_by_itself(reason: str) -> None:
    vm = machine(
        spec={"restartPolicy": "Never"},
        status=running(phase="Stopped", conditions=[condition("Ready", "False", reason)]),
    )
    found = the_one(tell(vm, host=host("Ready"), order=order("Stopped", reason)), Level.PROBLEM)
    assert "restartPolicy Never" in found.what
    assert "vm restart web1" in found.todo


def test_what_waits_for_a_restart_and_what_cannot_be_had() -> None:
    said = condition("RestartRequired", "True", "PendingChanges", "At its next start it gets: CPUs 1 to 2")
    vm = machine(status=running(conditions=[condition("Ready", "True", "Running"), said]))
    found = the_one(tell(vm, host=host("Ready"), order=order("Running")), Level.NOTE)
    assert "CPUs 1 to 2" in found.what and "vm restart web1" in found.todo
    said = condition("RestartRequired", "False", "NoRoomOnHost", "It cannot have 9 CPUs")
    vm = machine(status=running(conditions=[condition("Ready", "True", "Running"), said]))
    assert "9 CPUs" in the_one(tell(vm, host=host("Ready"), order=order("Running")), Level.PROBLEM).what


def test_a_guest_paused_by_nobody() -> None:
    vm = machine(status=running(phase="Paused", conditions=[condition("Ready", "False", "PausedByItself")]))
    assert "storage" in the_one(tell(vm, host=host("Ready"), order=order("Paused")), Level.PROBLEM).what


@pytest.mark.parametrize(("power", "verb"), [("Stopped", "start"), ("Paused", "resume")])
def test_what_was_asked_for_is_no_problem(power: str, verb: str) -> None:
    vm = machine(
        spec={"powerState": power}, status=running(phase=power, conditions=[condition("Ready", "True", power)])
    )
    found = the_one(tell(vm, host=host("Ready"), order=order(power)), Level.NOTE)
    assert f"vm {verb} web1" in found.todo


def test_a_machine_that_is_held_by_a_restore() -> None:
    said = "VirtualMachineRestore back gives the machine's disks what snapshot before kept"
    waits = [condition(type_, "False", "RestoreInProgress", said) for type_ in ("Ready", "VolumesReady", "Reconciling")]
    vm = machine(status=running(phase="Stopped", conditions=waits))
    found = the_one(tell(vm, host=host("Ready"), order=order("Stopped")), Level.WAITING)
    assert said in found.what


def test_a_restart_that_is_not_carried_out() -> None:
    vm = machine(spec={"restartRequest": "now"}, status=running(lastRestartRequest="before"))
    assert "restart" in the_one(tell(vm, host=host("Ready"), order=order("Running")), Level.WAITING).what


def test_being_deleted_on_a_host_that_does_not_answer() -> None:
    vm = machine(status=running(phase="Terminating"), deletionTimestamp="2026-11-20T11:58:00Z")
    findings = tell(vm, host=host("Unknown", "LeaseExpired", ready="Unknown"), order=order("Running"))
    assert [f.level for f in findings] == [Level.WAITING, Level.PROBLEM]
    assert FORCE_DETACH in findings[1].todo


def test_a_finalizer_that_is_not_ours_holds_it_back() -> None:
    vm = machine(status=running(), deletionTimestamp="2026-11-20T11:58:00Z", finalizers=["example.com/backup"])
    assert any("example.com/backup" in finding.what for finding in tell(vm))


def test_deletion_protection_is_mentioned() -> None:
    vm = machine(spec={"deletionProtection": True}, status=running())
    findings = tell(vm, host=host("Ready"), order=order("Running"))
    assert [finding.level for finding in findings] == [Level.OK, Level.NOTE]


@pytest.mark.parametrize(
    "phase", ["Pending", "Scheduling", "Provisioning", "Starting", "Running", "Stopped", "Failed", "Unknown"]
)
@pytest.mark.parametrize("power", ["Running", "Stopped", "Paused"])
def test_there_is_always_something_to_say(phase: str, power: str) -> None:
    vm = machine(spec={"powerState": power}, status={"phase": phase})
    findings = tell(vm)
    assert findings
    assert all(finding.what.endswith((".", "!", "?")) for finding in findings)
