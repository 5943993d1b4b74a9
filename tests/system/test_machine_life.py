"""The life of a machine on real hosts, as its owner sees it."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from kumulus_lab import deadline
from tests.system.world import World

pytestmark = pytest.mark.libvirt


def test_from_apply_to_the_console(world: World) -> None:
    """A machine boots, finds its first-boot data, and its owner reads its console."""
    world.machine("hello", "#kumulus-echo: first boot data arrived")
    vm = world.phase("hello", "Running")
    world.console("hello", "kumulus-guest: ready")
    said = world.kumulusctl("vm", "logs", "hello").stdout
    assert "kumulus-guest: hello from hello" in said
    assert f"kumulus-guest: instance-id {vm['metadata']['uid']}" in said
    assert "kumulus-guest: first boot data arrived" in said
    assert vm["status"]["resources"] == {"cpus": 1, "memory": "128Mi"}
    shown = world.kumulusctl("vm", "explain", "hello").stdout
    assert "All is well" in shown


def test_two_machines_are_spread(world: World) -> None:
    """Spread is the default, so two machines are on two hosts."""
    world.machine("a")
    world.machine("b")
    world.phase("a", "Running")
    world.phase("b", "Running")
    assert world.host_of("a").name != world.host_of("b").name


def test_stop_and_start_keep_the_disk(world: World) -> None:
    """A graceful stop reaches the guest; a start boots the same disk again."""
    world.machine("vm")
    world.phase("vm", "Running")
    world.console("vm", "kumulus-guest: ready")
    world.patch("vm", "vm", {"spec": {"powerState": "Stopped"}})
    world.phase("vm", "Stopped")
    world.console("vm", "power button, powering off")
    assert world.condition("vm", "vm", "Stopped") is not None
    world.patch("vm", "vm", {"spec": {"powerState": "Running"}})
    world.phase("vm", "Running")
    world.console("vm", "boot 2 of this disk")


def test_a_guest_that_ignores_the_button_is_forced_off(world: World) -> None:
    """The grace period bounds a graceful stop."""
    world.machine("deaf", "#kumulus-ignore-button", stop={"mode": "Graceful", "gracePeriodSeconds": 2})
    world.phase("deaf", "Running")
    world.console("deaf", "kumulus-guest: ready")
    world.patch("vm", "deaf", {"spec": {"powerState": "Stopped"}})
    world.phase("deaf", "Stopped", seconds=30)
    assert "powering off" not in world.console("deaf", "kumulus-guest: ready")


def test_pause_halts_the_guest(world: World) -> None:
    """A paused guest makes no progress, and goes on where it was."""
    world.machine("vm")
    world.phase("vm", "Running")
    world.console("vm", "kumulus-guest: tick 2")
    world.patch("vm", "vm", {"spec": {"powerState": "Paused"}})
    world.phase("vm", "Paused")
    halted = world.console_file("vm").read_text()
    world.patch("vm", "vm", {"spec": {"powerState": "Running"}})
    world.phase("vm", "Running")
    ticks = halted.count("kumulus-guest: tick")
    went_on = world.console("vm", f"kumulus-guest: tick {ticks + 2}")
    assert went_on.count("kumulus-guest: hello") == 1


def test_a_suspended_guest_goes_on_where_it_was(world: World) -> None:
    """Its memory outlives QEMU, and who stops it then has it shut down as always."""
    world.machine("vm")
    uid = world.phase("vm", "Running")["metadata"]["uid"]
    world.console("vm", "kumulus-guest: tick 2")
    world.patch("vm", "vm", {"spec": {"powerState": "Suspended"}})
    world.phase("vm", "Suspended")
    world.condition("vm", "vm", "Suspended")
    assert world.host_of("vm").exec(["pgrep", "-f", f"guest=kumulus-{uid}"], check=False).stdout == ""
    ticks = world.console_file("vm").read_text().count("kumulus-guest: tick")
    world.patch("vm", "vm", {"spec": {"powerState": "Running"}})
    world.phase("vm", "Running")
    went_on = world.console("vm", f"kumulus-guest: tick {ticks + 2}")
    assert went_on.count("kumulus-guest: hello") == 1
    world.patch("vm", "vm", {"spec": {"powerState": "Suspended"}})
    world.phase("vm", "Suspended")
    world.patch("vm", "vm", {"spec": {"powerState": "Stopped"}})
    world.phase("vm", "Stopped")
    world.console("vm", "power button, powering off")


def test_a_restart_request_restarts_exactly_once_with_the_size_of_now(world: World) -> None:
    """Each change of restartRequest is one restart, answered in the status. What cannot change before is said until then."""
    world.machine("vm")
    world.phase("vm", "Running")
    world.console("vm", "kumulus-guest: ready")
    world.patch("vm", "vm", {"spec": {"resources": {"cpus": 2, "memory": "160Mi"}}})
    assert "CPUs 1 to 2, memory 128Mi to 160Mi" in world.condition(
        "vm", "vm", "PendingChanges", type_="RestartRequired"
    )
    vm = world.phase("vm", "Running")
    assert vm["status"]["resources"] == {"cpus": 1, "memory": "128Mi"}
    world.patch("vm", "vm", {"spec": {"restartRequest": "now"}})
    world.wait(
        "vm",
        "vm",
        lambda vm: vm["status"].get("lastRestartRequest") == "now" and vm["status"]["phase"] == "Running",
        "the restart",
    )
    grown = world.wait("vm", "vm", lambda vm: "pendingResources" not in vm["status"], "the new size")
    assert grown["status"]["resources"] == {"cpus": 2, "memory": "160Mi"}
    assert "RestartRequired" not in {condition["type"] for condition in grown["status"]["conditions"]}
    said = world.console("vm", "boot 2 of this disk")
    world.console("vm", "kumulus-guest: tick 3")
    assert said.count("kumulus-guest: hello") == 2
    assert "boot 3" not in world.console_file("vm").read_text()


def test_a_machine_grows_while_it_is_on(world: World) -> None:
    """Within its limits it gets CPUs and memory at once, and gives memory back; only the rest waits for a restart."""
    size = {"cpus": 1, "memory": "256Mi", "maxCpus": 2, "maxMemory": "384Mi"}
    world.machine("vm", resources=size)
    world.phase("vm", "Running")
    world.console("vm", "kumulus-guest: ready")
    world.patch("vm", "vm", {"spec": {"resources": {"cpus": 2, "memory": "384Mi"}}})
    world.console("vm", "kumulus-guest: now cpus 2 memory 2")  # it had less than 200 MB
    grown = {**size, "cpus": 2, "memory": "384Mi"}
    vm = world.wait("vm", "vm", lambda vm: vm["status"]["resources"] == grown, "the new size")
    assert "RestartRequired" not in {condition["type"] for condition in vm["status"]["conditions"]}
    assert "pendingResources" not in vm["status"]
    world.patch("vm", "vm", {"spec": {"resources": {"cpus": 1, "memory": "256Mi", "maxMemory": "1Gi"}}})
    waits = "gets: CPUs 2 to 1, maxMemory 384Mi to 1Gi."  # all that waits, and nothing else
    world.condition("vm", "vm", "PendingChanges", type_="RestartRequired", says=waits)
    world.wait("vm", "vm", lambda vm: vm["status"]["resources"]["memory"] == "256Mi", "memory given back")
    assert "boot 2" not in world.console_file("vm").read_text()


def test_a_machine_runs_within_its_hours(world: World) -> None:
    """Outside of them it is off, and that is as it shall be; its spec is not written."""
    now = datetime.now(ZoneInfo("Europe/Berlin"))  # where the month may be another one than here
    off = {"start": f"0 0 1 {now.month % 12 + 1} *", "stop": f"0 0 1 {now.month} *", "timeZone": "Europe/Berlin"}
    world.machine("vm", schedule=off)
    world.wait("vm", "vm", lambda vm: vm["status"]["scheduled"]["action"] == "Start", "the next start")
    assert "off until" in world.condition("vm", "vm", "OutsideHours", type_="OnSchedule")
    vm = world.phase("vm", "Stopped")
    assert vm["spec"]["powerState"] == "Running"
    assert "Its schedule keeps it off" in world.kumulusctl("vm", "explain", "vm").stdout
    soon = now + timedelta(days=2)
    world.patch("vm", "vm", {"spec": {"schedule": {"start": off["stop"], "stop": f"0 0 {soon.day} {soon.month} *"}}})
    world.phase("vm", "Running")
    world.condition("vm", "vm", "WithinHours", type_="OnSchedule")


def test_a_machine_is_made_of_what_its_spec_asks(world: World) -> None:
    """It has its processor, its board and its TPM; another processor waits for a restart, what no host has for one that has."""
    made = {"cpu": {"model": "Nehalem", "cores": 1}, "firmware": {"tpm": True}, "watchdog": {}}
    world.machine("vm", "#kumulus-run: ls /sys/class/tpm", **made)
    vm = world.phase("vm", "Running")
    assert vm["status"]["cpuModel"] == "Nehalem"
    board = vm["status"]["machineType"]
    assert board.startswith("pc-q35-")
    world.console("vm", "kumulus-guest: tpm0")
    world.patch("vm", "vm", {"spec": {"cpu": {"model": "Westmere"}}})
    message = world.condition("vm", "vm", "PendingChanges", type_="RestartRequired")
    assert "gets: CPU model Nehalem to Westmere." in message
    world.patch("vm", "vm", {"spec": {"cpu": {"model": "Unheard-Of"}}})
    world.condition("vm", "vm", "PendingChanges", type_="RestartRequired", says="without CPU model Unheard-Of")
    world.machine("other", cpu={"model": "Unheard-Of"})
    assert "2 without CPU model Unheard-Of" in world.condition("vm", "other", "NoHostFits", type_="Scheduled")
    assert world.phase("vm", "Running")["status"]["machineType"] == board


@pytest.mark.parametrize(
    ("policy", "end", "reason"),
    [
        pytest.param("Never", "exit", "GuestShutDown", marks=pytest.mark.wide),
        ("OnFailure", "exit", "GuestShutDown"),
        ("Never", "panic", "GuestCrashed"),
    ],
)
def test_a_guest_that_ends_and_shall_stay_off(world: World, policy: str, end: str, reason: str) -> None:
    """restartPolicy leaves it off, and the condition says how it ended."""
    world.machine("job", f"#kumulus-{end}-after: 1", restartPolicy=policy)
    message = world.condition("vm", "job", reason)
    vm = world.phase("job", "Stopped")
    assert "restartPolicy" in message
    assert "restarts" not in vm["status"]


@pytest.mark.wide
@pytest.mark.parametrize(("policy", "end"), [("Always", "exit"), ("OnFailure", "panic")])
def test_a_guest_that_ends_is_started_again_with_pauses(world: World, policy: str, end: str) -> None:
    """restartPolicy starts it again; one that keeps ending is seen to back off."""
    world.machine("loop", f"#kumulus-{end}-after: 1", restartPolicy=policy)
    vm = world.phase("loop", "CrashLoopBackOff", seconds=90)
    stalled = [c for c in vm["status"]["conditions"] if c["type"] == "Stalled"]
    assert stalled and stalled[0]["status"] == "True"
    world.wait("vm", "loop", lambda vm: vm["status"].get("restarts", 0) >= 1, "a restart", seconds=90)
    world.console("loop", "boot 2 of this disk")


def test_qemu_killed_is_started_again_once(world: World) -> None:
    """A QEMU that dies is a failure of the machine: it runs again within 5 s, once."""
    world.machine("vm")
    vm = world.phase("vm", "Running")
    world.console("vm", "kumulus-guest: ready")
    uid = vm["metadata"]["uid"]
    world.host_of("vm").exec(["bash", "-c", f"kill -KILL $(cat /run/libvirt/qemu/kumulus-{uid}.pid)"])
    world.wait("vm", "vm", lambda vm: vm["status"].get("restarts") == 1, "one restart", seconds=5)
    world.console("vm", "boot 2 of this disk")
    world.console("vm", "kumulus-guest: tick 3")
    assert world.phase("vm", "Running")["status"]["restarts"] == 1


def test_deleting_leaves_nothing(world: World) -> None:
    """No domain, file, seed, secret or work order stays."""
    secret = {
        "kind": "Secret",
        "apiVersion": "v1",
        "metadata": {"name": "boot"},
        "stringData": {"data": "#cloud-config\n#kumulus-echo: s3cret-text\n"},
    }
    world.apply(secret)
    world.machine("vm", cloudInit={"userDataSecret": {"name": "boot", "key": "data"}})
    vm = world.phase("vm", "Running")
    world.console("vm", "s3cret-text")
    uid = vm["metadata"]["uid"]
    assert world.left_over(uid)
    orders = world.lab.cluster.kubectl_run("get", "workorders", "-A", "-o", "json").stdout
    assert "s3cret-text" not in orders
    world.delete("vm", "vm")
    deadline.until(lambda: not world.left_over(uid), f"an end of {world.left_over(uid)}", seconds=20)


def test_an_instance_type_gives_the_size_for_good(world: World) -> None:
    """A changed offering never changes a machine; a missing one is explained and heals."""
    name = f"size-{world.namespace}"
    offering = {
        "apiVersion": "compute.kumulus.io/v1alpha1",
        "kind": "InstanceType",
        "metadata": {"name": name},
        "spec": {"cpus": 1, "memory": "96Mi"},
    }
    try:
        world.machine("vm", instanceType=name, resources=None)
        assert name in world.condition("vm", "vm", "InstanceTypeNotFound")
        world.apply(offering)
        vm = world.phase("vm", "Running")
        assert vm["status"]["resources"]["memory"] == "96Mi"
        world.apply({**offering, "spec": {"cpus": 2, "memory": "256Mi"}})
        world.patch("vm", "vm", {"spec": {"restartRequest": "again"}})
        vm = world.wait("vm", "vm", lambda vm: vm["status"].get("lastRestartRequest") == "again", "the restart")
        assert vm["status"]["resources"] == {"cpus": 1, "memory": "96Mi", "instanceType": name}
    finally:
        world.lab.cluster.kubectl_run("delete", "instancetype", name, "--ignore-not-found")


def test_a_missing_secret_is_explained_and_heals(world: World) -> None:
    """The machine waits for its Secret and says which."""
    world.machine("vm", cloudInit={"userDataSecret": {"name": "later", "key": "data"}})
    assert "later" in world.condition("vm", "vm", "SecretNotFound")
    world.apply(
        {
            "kind": "Secret",
            "apiVersion": "v1",
            "metadata": {"name": "later"},
            "stringData": {"data": "#kumulus-echo: at last\n"},
        }
    )
    world.phase("vm", "Running", seconds=90)
    world.console("vm", "kumulus-guest: at last")


def test_no_host_that_fits_names_hosts_and_reasons(world: World) -> None:
    """Scheduled=False lists why each host refused; labelling a host heals it."""
    world.machine("vm", placement={"hostSelector": {"disk": "nvme"}})
    message = world.condition("vm", "vm", "NoHostFits", type_="Scheduled")
    for host in world.lab.hosts:
        assert host.name in message
    assert "without label disk=nvme" in message
    chosen = world.lab.hosts[0].name
    kubectl = world.lab.cluster.kubectl_run
    try:
        kubectl("label", "host", chosen, "disk=nvme")
        world.phase("vm", "Running")
        assert world.host_of("vm").name == chosen
    finally:
        kubectl("label", "host", chosen, "disk-")
