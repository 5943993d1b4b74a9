"""Transitions of a machine: every row of the table, and that repeating plan and act converges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus.api.compute import PowerState, RestartPolicy, Stop, StopMode
from kumulus.api.disks import DriveBus
from kumulus.api.host import WorkOrderStatus, WorkState
from kumulus.api.image import ImageFormat
from kumulus.api.image_order import ImageRef
from kumulus.api.instance_order import Drive, InstanceDisk, InstanceFacts, InstanceOrder
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver
from kumulus.api.qos import Qos
from kumulus.api.segments import Nic, NicFacts
from kumulus.api.volumes import CacheMode
from kumulus_agents.agent import instance_memory, instance_plan, instance_status
from kumulus_agents.agent.hold import Hold
from kumulus_agents.agent.instance_scope import (
    Attach,
    ChangeDisc,
    Detach,
    DropMemory,
    Filter,
    ForceOff,
    Limit,
    Mark,
    Memory,
    Pause,
    Plan,
    PlugIn,
    PressButton,
    Remove,
    RemovePort,
    Resize,
    Resume,
    Scope,
    Situation,
    Start,
    Step,
    Suspend,
    Tray,
    Unplug,
    Wake,
    situation,
)
from kumulus_agents.hypervisor.domain import (
    AttachedDisk,
    AttachedDrive,
    AttachedNic,
    Domain,
    DomainState,
    ExitReason,
    Growth,
    Marks,
)
from kumulus_agents.storage.source import FileSource

UID = "00000000-0000-0000-0000-000000000001"
NOW, WALL = 5000.0, 1_800_000_000.0


def order(**changes: Any) -> InstanceOrder:
    fields: dict[str, Any] = {
        "uid": UID,
        "epoch": 3,
        "power": PowerState.RUNNING,
        "restart_policy": RestartPolicy.ALWAYS,
        "cpus": 1,
        "memory": 1 << 28,
    }
    return InstanceOrder(**(fields | changes))


def marks(**changes: Any) -> Marks:
    return replace(Marks(UID, 3, "tenant", "vm", PowerState.RUNNING), **changes)


def on(**changes: Any) -> Domain:
    return Domain(marks(**changes), DomainState.RUNNING, started_at=WALL - 100)


def paused(**changes: Any) -> Domain:
    return Domain(marks(**changes), DomainState.PAUSED, started_at=WALL - 100)


def kept(**changes: Any) -> Domain:
    """Its memory is on disk."""
    return replace(
        off(ExitReason.UNKNOWN, **({"wanted": PowerState.SUSPENDED} | changes)), saved=changes.get("epoch", 3)
    )


def held(**changes: Any) -> Domain:
    """Halted for a snapshot."""
    return replace(paused(**changes), held=True)


def off(why: ExitReason = ExitReason.SHUTDOWN, **changes: Any) -> Domain:
    return Domain(marks(**changes), DomainState.STOPPED, exit_reason=why)


def reported(state: WorkState = WorkState.RUNNING, reason: str | None = None, **facts: Any) -> WorkOrderStatus:
    full: dict[str, Any] = {
        "epoch": 3,
        "restarts": 0,
        "started_at": instance_status.moment(WALL - 100),
    }
    return WorkOrderStatus(state=state, reason=reason, instance=InstanceFacts(**(full | facts)))


def scope(domain: Domain | None, wanted: InstanceOrder | None = None, **changes: Any) -> Scope:
    """What a pass that has just begun sees, memory brought up to date."""
    fields: dict[str, Any] = {
        "order": wanted or order(),
        "deleting": False,
        "term": 1,
        "highest_term": 1,
        "namespace": "tenant",
        "name": "vm",
        "domain": domain,
        "status": WorkOrderStatus(),
        "memory": Memory(),
        "now": NOW,
        "wall": WALL,
    }
    made = Scope(**(fields | changes))
    facts = made.status.instance
    memory = instance_memory.remember(
        made,
        instance_status.seconds(facts.started_at if facts else None),
        instance_status.seconds(facts.next_start_at if facts else None),
    )
    return replace(made, memory=memory)


def plan(domain: Domain | None, wanted: InstanceOrder | None = None, **changes: Any) -> Plan:
    return instance_plan.plan(scope(domain, wanted, **changes))


def steps(*args: Any, **changes: Any) -> tuple[Step, ...]:
    return plan(*args, **changes).steps


STOPPED, RUNNING, PAUSED = PowerState.STOPPED, PowerState.RUNNING, PowerState.PAUSED
SUSPENDED = PowerState.SUSPENDED


def test_the_table_is_whole() -> None:
    assert set(instance_plan.TRANSITIONS) == {(row, power) for row in Situation for power in PowerState}


@pytest.mark.parametrize(
    ("domain", "status", "row"),
    [
        (None, WorkOrderStatus(), Situation.ABSENT),
        (None, reported(), Situation.ENDED),
        (None, reported(epoch=2), Situation.ABSENT),
        (None, reported(WorkState.STOPPED), Situation.ABSENT),
        (None, reported(WorkState.STOPPED, "GuestShutDown"), Situation.ENDED),
        (on(), WorkOrderStatus(), Situation.RUNNING),
        (on(wanted=STOPPED), reported(), Situation.STOPPING),
        (on(restart_request="old"), reported(), Situation.STOPPING),
        (paused(), reported(), Situation.PAUSED),
        (kept(), reported(WorkState.SUSPENDED), Situation.SUSPENDED),
        (kept(wanted=PowerState.RUNNING), reported(), Situation.SUSPENDED),
        (kept(restart_request="old"), reported(), Situation.SUSPENDED),
        (kept(epoch=2), reported(), Situation.OFF),
        (off(wanted=PowerState.SUSPENDED), reported(), Situation.ENDED),
        (off(wanted=STOPPED), reported(), Situation.OFF),
        (off(epoch=2), reported(epoch=2), Situation.OFF),
        (off(restart_request="old"), reported(), Situation.OFF),
        (off(ExitReason.FAILED), reported(), Situation.OFF),
        (off(ExitReason.UNKNOWN), WorkOrderStatus(), Situation.OFF),
        (off(ExitReason.UNKNOWN), reported(WorkState.STOPPING), Situation.OFF),
        (off(ExitReason.UNKNOWN), reported(), Situation.ENDED),
        (off(), WorkOrderStatus(), Situation.ENDED),
        (off(ExitReason.CRASHED, wanted=PAUSED), reported(WorkState.PAUSED), Situation.ENDED),
    ],
)
def test_situations(domain: Domain | None, status: WorkOrderStatus, row: Situation) -> None:
    assert situation(scope(domain, status=status)) is row


@pytest.mark.parametrize(
    ("domain", "power", "wanted"),
    [
        (None, RUNNING, (Start(marks()),)),
        (None, PAUSED, (Start(marks(wanted=PAUSED)), Pause())),
        (None, STOPPED, ()),
        (off(wanted=STOPPED), RUNNING, (Start(marks()),)),
        (off(wanted=STOPPED, restarts=4), RUNNING, (Start(marks(restarts=4)),)),
        (off(epoch=2, restarts=4), RUNNING, (Start(marks()),)),
        (off(wanted=STOPPED), PAUSED, (Start(marks(wanted=PAUSED)), Pause())),
        (off(wanted=STOPPED), STOPPED, ()),
        (off(epoch=2, wanted=STOPPED), STOPPED, (Mark(marks(wanted=STOPPED)),)),
        (off(), STOPPED, (Mark(marks(wanted=STOPPED)),)),
        (on(), RUNNING, ()),
        (on(epoch=2), RUNNING, (Mark(marks()),)),
        (on(wanted=PAUSED), RUNNING, (Mark(marks()),)),
        (on(), PAUSED, (Mark(marks(wanted=PAUSED)), Pause())),
        (on(), STOPPED, (Mark(marks(wanted=STOPPED)),)),
        (on(wanted=STOPPED), STOPPED, (PressButton(),)),
        (on(wanted=STOPPED), RUNNING, (PressButton(),)),
        (on(wanted=STOPPED), PAUSED, (PressButton(),)),
        (paused(wanted=PAUSED), RUNNING, (Mark(marks()), Resume())),
        (paused(), RUNNING, (Resume(),)),
        (paused(), PAUSED, (Mark(marks(wanted=PAUSED)),)),
        (paused(wanted=PAUSED), PAUSED, ()),
        (on(), SUSPENDED, (Mark(marks(wanted=SUSPENDED)), Suspend())),
        (on(wanted=SUSPENDED), SUSPENDED, (Suspend(),)),
        (on(wanted=SUSPENDED), RUNNING, (Mark(marks()),)),
        (paused(wanted=PAUSED), SUSPENDED, (Mark(marks(wanted=SUSPENDED)), Suspend())),
        (kept(), SUSPENDED, ()),
        (kept(), RUNNING, (Wake(marks()),)),
        (kept(), PAUSED, (Wake(marks(wanted=PAUSED)),)),
        (kept(), STOPPED, (Wake(marks(wanted=STOPPED)),)),
        (kept(wanted=RUNNING), RUNNING, (Wake(marks()),)),
        (off(wanted=SUSPENDED), SUSPENDED, (Mark(marks(wanted=STOPPED)),)),
        (kept(epoch=2), STOPPED, (DropMemory(),)),
        (kept(epoch=2), SUSPENDED, (DropMemory(),)),
        (replace(kept(), saved=2), STOPPED, (DropMemory(),)),
        (off(wanted=STOPPED), SUSPENDED, ()),
        (None, SUSPENDED, ()),
        (paused(wanted=PAUSED), STOPPED, (Mark(marks(wanted=STOPPED)),)),
        (paused(wanted=STOPPED), STOPPED, (ForceOff(),)),
        (held(wanted=STOPPED), STOPPED, (PressButton(),)),
    ],
)
def test_rows(domain: Domain | None, power: PowerState, wanted: tuple[Step, ...]) -> None:
    assert steps(domain, order(power=power)) == wanted


@pytest.mark.parametrize("state", list(DomainState))
@pytest.mark.parametrize("power", list(PowerState))
def test_an_older_placement_is_refused_whatever_is_wanted(state: DomainState, power: PowerState) -> None:
    domain = Domain(marks(epoch=4), state, exit_reason=ExitReason.SHUTDOWN if state is DomainState.STOPPED else None)
    refused = plan(domain, order(power=power))
    assert (refused.steps, refused.state, refused.reason) == ((), WorkState.REFUSED, "StaleEpoch")
    assert plan(domain, order(power=power), deleting=True) == Plan(release=True)


def test_an_older_leader_is_refused() -> None:
    refused = plan(None, term=4, highest_term=5)
    assert (refused.steps, refused.state, refused.reason) == ((), WorkState.REFUSED, "StaleTerm")


@pytest.mark.parametrize(
    ("policy", "why", "again"),
    [
        (policy, why, policy is RestartPolicy.ALWAYS or (policy is RestartPolicy.ON_FAILURE and why != "Shutdown"))
        for policy in RestartPolicy
        for why in (ExitReason.SHUTDOWN, ExitReason.CRASHED, ExitReason.DESTROYED, ExitReason.UNKNOWN)
    ],
)
def test_policies(policy: RestartPolicy, why: ExitReason, again: bool) -> None:
    found = plan(off(why, restarts=0), order(restart_policy=policy), status=reported())
    if again:
        assert found.steps == (Start(marks(restarts=1)),)
    else:
        assert (found.steps, found.state) == ((), WorkState.STOPPED)
        assert found.reason == instance_plan.ENDINGS[why][0]


@pytest.mark.parametrize("policy", list(RestartPolicy))
def test_a_start_that_failed_is_no_restart(policy: RestartPolicy) -> None:
    found = steps(off(ExitReason.FAILED, restarts=2), order(restart_policy=policy), status=reported())
    assert found == (Start(marks(restarts=2)),)


@pytest.mark.parametrize(("streak", "seconds"), [(0, 0), (1, 10), (2, 20), (3, 40), (5, 160), (6, 300), (60, 300)])
def test_back_off(streak: int, seconds: float) -> None:
    """The first restart is at once, whatever the guest did."""
    assert instance_memory.back_off(streak) == seconds


def test_restarts_are_forgiven_after_a_calm_run() -> None:
    long_ago = reported(started_at=instance_status.moment(WALL - 700), restarts=9)
    assert steps(off(ExitReason.CRASHED, restarts=9), status=long_ago) == (Start(marks(restarts=10)),)
    short = reported(started_at=instance_status.moment(WALL - 60), restarts=9)
    assert plan(off(ExitReason.CRASHED, restarts=9), status=short).after == 300


def test_back_off_survives_the_agent_but_no_clock_that_jumped() -> None:
    told = reported(WorkState.BACK_OFF, "GuestCrashed", restarts=1, next_start_at=instance_status.moment(WALL + 17))
    assert plan(off(ExitReason.CRASHED, restarts=1), status=told).after == 17
    far = reported(WorkState.BACK_OFF, "GuestCrashed", restarts=1, next_start_at=instance_status.moment(WALL + 3600))
    assert plan(off(ExitReason.CRASHED, restarts=1), status=far).after == 300


def test_a_machine_that_dies_at_once_after_its_restart_waits_longer() -> None:
    """What was reported before that restart does not count for the next one."""
    told = reported(WorkState.BACK_OFF, "GuestCrashed", restarts=1, next_start_at=instance_status.moment(WALL - 1))
    assert plan(off(ExitReason.CRASHED, restarts=2), status=told).state is WorkState.BACK_OFF


def test_the_button_is_pressed_again_and_then_the_power_goes() -> None:
    stop = Stop(mode=StopMode.GRACEFUL, grace_period_seconds=12)
    wanted, domain = order(power=STOPPED, stop=stop), on(wanted=STOPPED)
    memory = Memory(stopping_since=NOW)
    assert steps(domain, wanted, memory=memory) == (PressButton(),)
    memory = replace(memory, pressed_at=NOW)
    waiting = plan(domain, wanted, memory=memory, now=NOW + 1)
    assert (waiting.steps, waiting.state, waiting.after) == ((), WorkState.STOPPING, 4.0)
    assert steps(domain, wanted, memory=memory, now=NOW + 5) == (PressButton(),)
    memory = replace(memory, pressed_at=NOW + 10)
    assert plan(domain, wanted, memory=memory, now=NOW + 11).after == 1.0
    assert steps(domain, wanted, memory=memory, now=NOW + 12) == (ForceOff(),)


def test_force_and_no_grace_do_not_ask() -> None:
    for stop in (Stop(mode=StopMode.FORCE), Stop(grace_period_seconds=0)):
        assert steps(on(wanted=STOPPED), order(power=STOPPED, stop=stop)) == (ForceOff(),)


def test_a_restart_is_marked_first_and_recorded_with_the_start() -> None:
    wanted = order(restart_request="r1")
    assert steps(on(), wanted) == (Mark(marks(wanted=STOPPED)),)
    assert steps(on(wanted=STOPPED), wanted) == (PressButton(),)
    assert steps(off(wanted=STOPPED), wanted) == (Start(marks(restart_request="r1")),)
    assert steps(on(restart_request="r1"), wanted) == ()


def test_a_guest_that_pauses_by_itself_is_resumed_now_and_then() -> None:
    memory = Memory(resumed_at=NOW - 1)
    found = plan(paused(), memory=memory)
    assert (found.steps, found.state, found.reason, found.after) == ((), WorkState.PAUSED, "PausedByItself", 9.0)
    assert steps(paused(), memory=memory, now=NOW + 9) == (Resume(),)
    assert steps(paused(wanted=PAUSED), memory=memory) == (Mark(marks()), Resume())


def test_a_guest_that_was_resumed_by_us_is_not_said_to_run_before_it_has_for_a_moment() -> None:
    """While a pool is full it pauses again at once: its status stays as it is, with no write in between."""
    full = reported(WorkState.PAUSED, "DiskFull")
    found = plan(on(), memory=Memory(resumed_at=NOW - 1), status=full)
    assert (found.steps, found.state, found.reason, found.after) == ((), WorkState.PAUSED, "DiskFull", 2.0)
    assert plan(on(), memory=Memory(resumed_at=NOW - 4), status=full).state is WorkState.RUNNING
    asked_for = reported(WorkState.PAUSED)
    assert plan(on(), memory=Memory(resumed_at=NOW - 1), status=asked_for).state is WorkState.RUNNING
    wanted_off = plan(on(), order(power=STOPPED), memory=Memory(resumed_at=NOW - 1), status=full)
    assert wanted_off.steps == (Mark(marks(wanted=STOPPED)),)


@pytest.mark.parametrize(
    ("domain", "wanted", "first"),
    [
        (None, order(), Remove()),
        (off(), order(), Remove()),
        (on(), order(), Mark(marks(wanted=STOPPED))),
        (on(wanted=STOPPED), order(), PressButton()),
        (held(wanted=STOPPED), order(), PressButton()),
        (on(), order(stop=Stop(mode=StopMode.FORCE)), Remove()),
        (on(wanted=STOPPED), order(stop=Stop(grace_period_seconds=0)), Remove()),
        (on(), order(power=STOPPED), Remove()),
        (paused(), order(), Remove()),
    ],
)
def test_deleting(domain: Domain | None, wanted: InstanceOrder, first: Step) -> None:
    assert steps(domain, wanted, deleting=True)[0] == first


def test_deleting_asks_for_five_seconds_at_most() -> None:
    memory = Memory(stopping_since=NOW - 5, pressed_at=NOW - 1)
    assert plan(on(wanted=STOPPED), order(), deleting=True, memory=memory) == Plan((Remove(),), release=True)


@pytest.mark.parametrize(
    ("domain", "state"),
    [(None, WorkState.FAILED), (on(), WorkState.RUNNING), (paused(wanted=PAUSED), WorkState.PAUSED)],
)
def test_a_hold_never_hides_that_a_machine_runs(domain: Domain | None, state: WorkState) -> None:
    hold = Hold(WorkState.FAILED, "NoSpace", "the disk is full", NOW + 7, 1, 1)
    found = plan(domain, memory=Memory(hold=hold))
    assert (found.steps, found.state, found.reason, found.after) == ((), state, "NoSpace", 7.0)
    assert plan(domain, memory=Memory(hold=hold), now=NOW + 7).reason is None


class World:
    """A host of one machine: what a plan's steps do to it."""

    def __init__(self, domain: Domain | None, obeys: bool) -> None:
        self.domain = domain
        self.obeys = obeys
        self.starts: list[Marks] = []

    def take(self, step: Step, wall: float) -> None:
        domain = self.domain
        match step:
            case Start(new):
                assert domain is None or domain.state is DomainState.STOPPED, "started twice"
                assert domain is None or domain.marks.epoch <= new.epoch, "an older placement was started"
                self.starts.append(new)
                self.domain = Domain(new, DomainState.RUNNING, started_at=wall)
            case Mark(new):
                assert domain is not None
                assert new.epoch >= domain.marks.epoch
                self.domain = replace(domain, marks=new)
            case Pause():
                assert domain is not None
                self.domain = replace(domain, state=DomainState.PAUSED)
            case Resume():
                assert domain is not None
                self.domain = replace(domain, state=DomainState.RUNNING)
            case Suspend():
                assert domain is not None
                off = replace(domain, state=DomainState.STOPPED, exit_reason=ExitReason.UNKNOWN)
                self.domain = replace(off, saved=domain.marks.epoch)
            case Wake(new):
                assert domain is not None and domain.saved is not None, "woken without a memory"
                assert domain.saved == new.epoch, "a memory of another placement was woken"
                self.domain = Domain(new, DomainState.RUNNING, started_at=wall)
            case DropMemory():
                assert domain is not None
                self.domain = replace(domain, saved=None)
            case PressButton():
                if self.obeys:
                    self._off(ExitReason.SHUTDOWN)
            case ForceOff():
                self._off(ExitReason.DESTROYED)
            case Remove():
                self.domain = None

    def _off(self, why: ExitReason) -> None:
        assert self.domain is not None
        self.domain = Domain(self.domain.marks, DomainState.STOPPED, exit_reason=why)


REQUESTS = st.sampled_from([None, "r1", "r2"])
DOMAINS = st.none() | st.builds(
    lambda state, why, epoch, wanted, request, restarts, saved: Domain(
        Marks(UID, epoch, "tenant", "vm", wanted, request, restarts),
        state,
        exit_reason=why if state is DomainState.STOPPED else None,
        started_at=None if state is DomainState.STOPPED else WALL - 30,
        saved=min(saved, epoch) if saved and state is DomainState.STOPPED else None,
    ),
    st.sampled_from(DomainState),
    st.sampled_from(sorted(set(ExitReason) - {ExitReason.MIGRATED})),
    st.integers(1, 5),
    st.sampled_from(PowerState),
    REQUESTS,
    st.integers(0, 20),
    st.none() | st.integers(1, 5),
)
ORDERS = st.builds(
    lambda epoch, power, policy, request, mode, grace: order(
        epoch=epoch,
        power=power,
        restart_policy=policy,
        restart_request=request,
        stop=Stop(mode=mode, grace_period_seconds=grace),
    ),
    st.integers(1, 5),
    st.sampled_from(PowerState),
    st.sampled_from(RestartPolicy),
    REQUESTS,
    st.sampled_from(StopMode),
    st.integers(0, 3600),
)
STATUSES = st.just(WorkOrderStatus()) | st.builds(
    lambda state, reason, epoch, request, restarts: WorkOrderStatus(
        state=state,
        reason=reason,
        instance=InstanceFacts(epoch=epoch, restarts=restarts, last_restart_request=request),
    ),
    st.sampled_from(WorkState),
    st.sampled_from([None, "GuestShutDown"]),
    st.integers(1, 5),
    REQUESTS,
    st.integers(0, 20),
)


@settings(max_examples=600, deadline=None)
@given(
    domain=DOMAINS,
    wanted=ORDERS,
    status=STATUSES,
    deleting=st.booleans(),
    obeys=st.booleans(),
    crash_after=st.none() | st.integers(0, 6),
)
def test_it_converges_whatever_was_and_wherever_the_agent_dies(
    domain: Domain | None,
    wanted: InstanceOrder,
    status: WorkOrderStatus,
    deleting: bool,
    obeys: bool,
    crash_after: int | None,
) -> None:
    world, memory, now, taken = World(domain, obeys), Memory(), NOW, 0
    foreign = domain is not None and domain.marks.epoch > wanted.epoch
    for _ in range(2000):
        seen = scope(
            world.domain, wanted, memory=memory, status=status, deleting=deleting, now=now, wall=WALL + now - NOW
        )
        found, memory = instance_plan.plan(seen), seen.memory
        for step in found.steps:
            world.take(step, seen.wall)
            taken += 1
            if isinstance(step, PressButton):
                memory = replace(memory, pressed_at=now)
            if isinstance(step, Resume):
                memory = replace(memory, resumed_at=now)
            if taken == crash_after:
                memory = Memory()
                break
        else:
            if found.release:
                assert foreign or world.domain is None
                break
            if not found.steps:
                status = instance_status.derive(seen, found, 1)
                if found.after is None:
                    break
                now += max(found.after, 0.001)
    else:
        raise AssertionError("it does not settle")
    if foreign:
        assert world.domain == domain
        assert not world.starts
    elif not deleting:
        _check_settled(world, wanted, status)
    assert len(world.starts) <= 2


def _check_settled(world: World, wanted: InstanceOrder, status: WorkOrderStatus) -> None:
    domain = world.domain
    ended = status.state is WorkState.STOPPED and wanted.power is not STOPPED
    if wanted.power is SUSPENDED:
        assert domain is None or domain.state is DomainState.STOPPED
        assert domain is None or domain.marks.wanted is (SUSPENDED if domain.saved is not None else STOPPED)
        return
    if ended:
        assert wanted.restart_policy is not RestartPolicy.ALWAYS
        assert status.reason is not None
    expected: dict[PowerState, Callable[[], bool]] = {
        RUNNING: lambda: domain is not None and domain.state is DomainState.RUNNING,
        PAUSED: lambda: domain is not None and domain.state is DomainState.PAUSED,
        STOPPED: lambda: domain is None or domain.state is DomainState.STOPPED,
    }
    assert ended or expected[wanted.power]()
    if domain is not None and not ended:
        assert domain.marks.epoch == wanted.epoch
        assert domain.marks.wanted is wanted.power


V1, V2, V3 = (f"00000000-0000-0000-0000-00000000000{number}" for number in (7, 8, 9))
POOL_REF = PoolRef(uid=UID, name="local", driver=PoolDriver.DIR)


def with_volumes(*volumes: str, qos: Qos | None = None, **changes: Any) -> InstanceOrder:
    disks = tuple(
        InstanceDisk(name=f"d-{uid[-1]}", pool=POOL_REF, volume=uid, boot_order=number + 1, qos=qos)
        for number, uid in enumerate(volumes)
    )
    return order(disks=disks, **changes)


def having(domain: Domain, *volumes: str) -> Domain:
    return replace(domain, disks=tuple(AttachedDisk(f"d-{uid[-1]}", f"/pool/{uid}", uid) for uid in volumes))


@pytest.mark.parametrize(("domain", "power"), [(on(), RUNNING), (paused(wanted=PAUSED), PAUSED)])
def test_disks_come_and_go_while_a_machine_is_on(domain: Domain, power: PowerState) -> None:
    seen = having(domain, V1, V2)
    assert steps(seen, with_volumes(V1, V2, power=power)) == ()
    assert steps(seen, with_volumes(V2, V3, power=power)) == (Detach(V1), Attach(V3))
    assert steps(seen, order(power=power)) == (Detach(V1), Detach(V2))


MI = 1 << 20


def sized(domain: Domain, cpus: int, memory: int, asked: int | None = None) -> Domain:
    """It began with 1 CPU and 256 MiB, and can get 4 CPUs and 1 GiB. MiB."""
    growth = Growth(4, 256 * MI, (memory if asked is None else asked) * MI, 1024 * MI)
    return replace(domain, cpus=cpus, memory=memory * MI, growth=growth)


@pytest.mark.parametrize(("domain", "power"), [(on(), RUNNING), (paused(wanted=PAUSED), PAUSED)])
def test_a_machine_that_is_on_gets_what_it_can_of_another_size(domain: Domain, power: PowerState) -> None:
    def asked(has: Domain, cpus: int, memory: int) -> tuple[Step, ...]:
        return steps(has, order(power=power, cpus=cpus, memory=memory * MI))

    begun = sized(domain, 1, 256)
    assert asked(begun, 1, 256) == ()
    assert asked(begun, 2, 512) == (Resize(2, 512 * MI),)
    assert asked(begun, 8, 512) == (Resize(8, 512 * MI),), "of the CPUs it gets none, of the memory all"
    assert asked(begun, 8, 2048) == asked(begun, 1, 128) == (), "more than it can get, less than it began with"
    assert asked(begun, 1, 257) == (), "less than a guest can take at a time"
    grown = sized(domain, 4, 512)
    assert asked(grown, 2, 512) == (), "a CPU stays until the next start"
    assert asked(grown, 4, 384) == (Resize(4, 384 * MI),), "memory is given back"
    assert asked(sized(domain, 1, 256, asked=512), 1, 512) == (), "it was asked, and has not taken it"
    assert asked(replace(domain, cpus=1, memory=256 * MI), 2, 512) == (), "it cannot grow"


def test_a_guest_has_a_moment_to_take_memory_before_it_is_told() -> None:
    taking, wanted = sized(on(), 1, 256, asked=512), order(memory=512 * MI)

    def unsaid(domain: Domain, resized_at: float | None) -> float:
        seen = scope(domain, wanted, memory=Memory(resized_at=resized_at))
        return instance_status.unsaid(seen, instance_plan.plan(seen))

    assert unsaid(taking, NOW - 1) == instance_status.RESIZED_WITHIN - 1
    assert unsaid(taking, NOW - 60) <= 0 and unsaid(sized(on(), 1, 512), NOW - 1) == 0 and unsaid(taking, None) == 0
    seen = scope(taking, wanted, memory=Memory(resized_at=NOW - 60))
    facts = instance_status.derive(seen, instance_plan.plan(seen), 1).instance
    assert facts is not None, "what it has is told, and what it can get"
    assert (facts.cpus, facts.memory, facts.max_cpus, facts.max_memory) == (1, 256 * MI, 4, 1024 * MI)


def test_a_guest_that_keeps_taking_and_giving_back_memory_is_told_of_ever_more_seldom() -> None:
    wanted, memory, told = order(memory=512 * MI), Memory(resized_at=NOW - 60), list[int | None]()
    status = WorkOrderStatus(instance=InstanceFacts(memory=256 * MI))
    for second in range(3600):
        domain = sized(on(), 1, 384 if second % 2 else 256, asked=512)
        seen = replace(scope(domain, wanted, memory=memory), status=status, now=NOW + second)
        status = instance_status.derive(seen, instance_plan.plan(seen), 1)
        assert status.instance is not None
        if instance_status.told(seen, status) != memory:
            told.append(status.instance.memory)
        memory = instance_status.told(seen, status)
    assert 384 * MI in told[:2], "the first change is told at once"
    assert len(told) <= 3600 / instance_status.AMOUNT_KEPT_MOST + 8
    taken = replace(
        scope(sized(on(), 1, 512), wanted, memory=replace(memory, amounts=0)), status=status, now=NOW + 3600
    )
    said = instance_status.derive(taken, instance_plan.plan(taken), 1).instance
    assert said is not None and said.memory == 512 * MI, "of what was asked anew it is told at once"


SLOW = Qos(iops=10)


@pytest.mark.parametrize(("domain", "power"), [(on(), RUNNING), (paused(wanted=PAUSED), PAUSED)])
def test_a_volume_is_as_fast_as_its_order_says(domain: Domain, power: PowerState) -> None:
    seen = having(domain, V1, V2)
    limited = with_volumes(V1, V2, power=power, qos=SLOW)
    assert steps(seen, limited) == (Limit(V1), Limit(V2))
    drifted = replace(seen, disks=tuple(replace(disk, qos=SLOW) for disk in seen.disks))
    assert steps(drifted, limited) == ()
    assert steps(drifted, with_volumes(V1, V2, power=power)) == (Limit(V1), Limit(V2))
    assert steps(drifted, with_volumes(V2, power=power, qos=SLOW)) == (Detach(V1),)
    assert steps(having(off(wanted=STOPPED), V1), with_volumes(V1, power=STOPPED, qos=SLOW)) == ()


def test_how_a_volume_is_had_is_said_where_that_was_asked_for() -> None:
    def said(domain: Domain, wanted: InstanceOrder) -> list[tuple[str, Qos | None, CacheMode | None]]:
        seen = scope(domain, wanted)
        facts = instance_status.derive(seen, instance_plan.plan(seen), 1).instance
        assert facts is not None
        return [(manner.volume, manner.qos, manner.cache) for manner in facts.manners]

    drifted = having(on(), V1, V2)
    drifted = replace(drifted, disks=(drifted.disks[0], replace(drifted.disks[1], qos=SLOW, cache=CacheMode.NONE)))
    assert said(having(on(), V1), with_volumes(V1)) == []
    assert said(drifted, with_volumes(V1, V2)) == [(V2, SLOW, CacheMode.NONE)]
    assert said(drifted, with_volumes(V1, V2, qos=SLOW)) == [(V1, None, None), (V2, SLOW, CacheMode.NONE)]
    assert said(having(off(wanted=STOPPED), V1), with_volumes(V1, qos=SLOW, power=STOPPED)) == []


DISC = FileSource("/pool/images/disc.raw")


def with_drive(disc: bool, **changes: Any) -> InstanceOrder:
    image = ImageRef(uid=V3, sha256="0" * 64, format=ImageFormat.ISO) if disc else None
    drive = Drive(name="cd", bus=DriveBus.SATA, image=image, pool=POOL_REF if disc else None, boot_order=1)
    return order(drives=(drive,), **changes)


def with_disc(domain: Domain, path: str | None) -> Domain:
    return replace(domain, drives=(AttachedDrive("cd", path),))


@pytest.mark.parametrize(("domain", "power"), [(on(), RUNNING), (paused(wanted=PAUSED), PAUSED)])
def test_discs_are_changed_while_a_machine_is_on(domain: Domain, power: PowerState) -> None:
    there = {"cd": DISC}
    assert steps(with_disc(domain, DISC.path), with_drive(True, power=power), discs=there) == ()
    assert steps(with_disc(domain, None), with_drive(True, power=power), discs=there) == (ChangeDisc("cd", DISC),)
    assert steps(with_disc(domain, "/old"), with_drive(True, power=power), discs=there) == (ChangeDisc("cd", DISC),)
    assert steps(with_disc(domain, DISC.path), with_drive(False, power=power)) == (ChangeDisc("cd", None),)
    assert steps(with_disc(domain, None), with_drive(False, power=power)) == ()
    assert steps(domain, with_drive(True, power=power), discs=there) == (), "drives come and go with starts alone"
    assert steps(with_disc(off(wanted=STOPPED), None), with_drive(True, power=STOPPED), discs=there) == ()


def test_a_disc_that_is_not_there_is_waited_for_and_the_old_one_stays() -> None:
    made = plan(with_disc(on(), "/old"), with_drive(True))
    assert (made.steps, made.state, made.reason) == ((), WorkState.RUNNING, "ImageNotReady")


def test_a_guest_that_holds_the_tray_shut_is_asked_then_told_of_then_forced() -> None:
    def at(first: float, last: float) -> Memory:
        return Memory(trays={"cd": Tray(NOW - first, NOW - last)})

    seen, wanted, every = with_disc(on(), DISC.path), with_drive(False), instance_plan.TRAY_EVERY
    made = plan(seen, wanted, memory=at(1, 1))
    assert (made.steps, made.state, made.reason, made.after) == ((), WorkState.RUNNING, "TrayLocked", every - 1)
    assert made.message is not None and "tray of cd" in made.message and "force" in made.message
    assert steps(seen, wanted, memory=at(every, every)) == (ChangeDisc("cd", None),)
    assert steps(seen, wanted, memory=at(instance_plan.TRAY_PATIENCE, 1)) == ()
    assert steps(seen, wanted, memory=at(instance_plan.TRAY_PATIENCE, every)) == (ChangeDisc("cd", None, force=True),)
    assert scope(off(), wanted, memory=at(1, 1)).memory.trays == {}


N1, N2 = (
    Nic(name=f"eth{number}", uid=uid, network=V3, mac=f"02:00:00:00:00:0{number}", addresses=(f"10.0.0.{number}",))
    for number, uid in enumerate((V1, V2))
)
CHANGED = N1.model_copy(update={"groups": (V3,)})


def with_nics(*nics: Nic, **changes: Any) -> InstanceOrder:
    return order(nics=nics, **changes)


def plugged(domain: Domain, *nics: Nic) -> Domain:
    return replace(domain, nics=tuple(AttachedNic(nic.uid, nic.mac, f"kt{nic.name}") for nic in nics))


def ports(*nics: Nic) -> Memory:
    return Memory(ports={nic.uid: nic for nic in nics})


@pytest.mark.parametrize(("domain", "power"), [(on(), RUNNING), (paused(wanted=PAUSED), PAUSED)])
def test_interfaces_come_and_go_while_a_machine_is_on(domain: Domain, power: PowerState) -> None:
    seen, wanted = plugged(domain, N1), with_nics(N1, N2, power=power)
    assert steps(seen, wanted, memory=ports(N1)) == (PlugIn(N2),)
    assert steps(seen, with_nics(N1, power=power), memory=ports(N1)) == ()
    assert steps(seen, with_nics(N2, power=power), memory=ports(N1)) == (Unplug(V1), PlugIn(N2))
    asked = replace(ports(N1), asked={V1: NOW - 1})
    made = plan(seen, order(power=power), memory=asked)
    assert (made.steps, made.reason, made.after) == ((), "Detaching", instance_plan.DETACH_EVERY - 1)
    assert made.message is not None and N1.mac in made.message
    assert steps(domain, order(power=power), memory=ports(N1)) == (RemovePort(V1),)


def test_what_is_in_force_of_an_interface_is_what_its_order_says_also_after_a_restart_of_the_agent() -> None:
    assert steps(plugged(on(), N1), with_nics(N1), memory=Memory()) == (Filter(N1),)
    assert steps(plugged(on(), N1), with_nics(CHANGED), memory=ports(N1)) == (Filter(CHANGED),)
    assert steps(plugged(on(), N1), with_nics(CHANGED), memory=ports(CHANGED)) == ()


@pytest.mark.parametrize(
    ("domain", "wanted"),
    [
        (off(wanted=STOPPED), {"power": STOPPED}),
        (off(), {"restart_policy": RestartPolicy.NEVER}),
        (off(ExitReason.CRASHED, restarts=3), {}),
    ],
)
def test_a_machine_that_is_off_loses_interfaces_at_once(domain: Domain, wanted: dict[str, Any]) -> None:
    status = reported()
    seen = steps(plugged(domain, N1, N2), with_nics(N2, **wanted), status=status, memory=ports(N1, N2))
    assert seen == (Unplug(V1),)
    assert steps(plugged(domain, N2), with_nics(N2, **wanted), status=status, memory=ports(N1, N2)) == (RemovePort(V1),)
    assert steps(plugged(domain, N2), with_nics(N2, **wanted), status=status, memory=ports(N2)) == ()


def test_all_interfaces_go_with_a_machine() -> None:
    seen = plugged(off(wanted=STOPPED), N1)
    assert steps(seen, with_nics(N2), deleting=True, memory=ports(N2)) == (Remove((V1,)),)
    assert steps(None, with_nics(N2), deleting=True, memory=ports(N1)) == (Remove((V1,)),)


def test_facts_say_which_interfaces_a_guest_has() -> None:
    def said(domain: Domain | None, *nics: Nic, **facts: Any) -> dict[str, tuple[str, bool]]:
        seen = scope(domain, with_nics(*nics), status=reported(**facts))
        found = instance_status.derive(seen, instance_plan.plan(seen), 1).instance
        assert found is not None
        return {nic.name: (nic.uid, nic.attached) for nic in found.nics}

    before = {"nics": (NicFacts(name="eth0", uid=V1, attached=True),)}
    assert said(plugged(on(), N1), N1, N2) == {"eth0": (V1, True), "eth1": (V2, False)}
    assert said(plugged(off(), N1), N1) == {"eth0": (V1, False)}
    assert said(None, N1) == {"eth0": (V1, False)}
    assert said(plugged(on(), N1), **before) == {"eth0": (V1, True)}
    again = N2.model_copy(update={"name": "eth0"})
    assert said(plugged(on(), N1), again, **before) == {"eth0": (V2, False), f"old-{V1[:8]}": (V1, True)}


def test_marks_come_before_disks() -> None:
    assert [type(step) for step in steps(having(on(epoch=2), V1), with_volumes(V2))] == [Mark, Detach, Attach]


def test_a_guest_that_does_not_let_go_is_asked_again_after_a_pause() -> None:
    memory = Memory(asked={V1: NOW - 5})
    made = plan(having(on(), V1, V2), with_volumes(V2), memory=memory)
    assert (made.steps, made.state, made.reason) == ((), WorkState.RUNNING, "Detaching")
    assert made.message is not None
    assert "d-7" in made.message
    assert made.after == instance_plan.DETACH_EVERY - 5
    memory = Memory(asked={V1: NOW - instance_plan.DETACH_EVERY})
    assert steps(having(on(), V1), memory=memory) == (Detach(V1),)


def test_what_a_guest_was_asked_is_forgotten_when_it_let_go() -> None:
    assert scope(having(on(), V2), memory=Memory(asked={V1: NOW, V2: NOW})).memory.asked == {V2: NOW}


@pytest.mark.parametrize(
    ("domain", "wanted", "state"),
    [
        (off(wanted=STOPPED), {"power": STOPPED}, WorkState.STOPPED),
        (off(), {"restart_policy": RestartPolicy.NEVER}, WorkState.STOPPED),
        (off(ExitReason.CRASHED, restarts=3), {}, WorkState.BACK_OFF),
    ],
)
def test_a_machine_that_is_off_loses_disks_at_once_and_gets_them_at_its_next_start(
    domain: Domain, wanted: dict[str, Any], state: WorkState
) -> None:
    assert plan(having(domain, V1, V2), with_volumes(V2, V3, **wanted), status=reported()).steps == (Detach(V1),)
    after = plan(having(domain, V2), with_volumes(V2, V3, **wanted), status=reported())
    assert (after.steps, after.state) == ((), state)


def test_a_machine_whose_volume_another_has_is_not_started() -> None:
    for domain in (None, off(wanted=STOPPED), off(ExitReason.FAILED)):
        made = plan(domain, with_volumes(V1, V2), taken={V2: "other"})
        assert (made.steps, made.state, made.reason) == ((), WorkState.REFUSED, "VolumeInUse")
        assert made.message is not None
        assert "d-8 (other)" in made.message


def test_a_machine_that_is_on_waits_for_a_volume_that_another_has() -> None:
    wanted = with_volumes(V1, V2)
    assert steps(on(), wanted, taken={V2: "other"}) == (Attach(V1),)
    made = plan(having(on(), V1), wanted, taken={V2: "other"})
    assert (made.steps, made.state, made.reason) == ((), WorkState.RUNNING, "VolumeInUse")
    assert steps(on(), replace_power(wanted, STOPPED), taken={V2: "other"})
    assert steps(on(), wanted, taken={V2: "other"}, deleting=True)


def replace_power(wanted: InstanceOrder, power: PowerState) -> InstanceOrder:
    return wanted.model_copy(update={"power": power})


def test_facts_say_what_the_hypervisor_has() -> None:
    seen = scope(having(on(), V2, V1), with_volumes(V2))
    facts = instance_status.derive(seen, instance_plan.plan(seen), 1).instance
    assert facts is not None
    assert facts.volumes == (V1, V2)
    seen = scope(None, with_volumes(V2))
    facts = instance_status.derive(seen, instance_plan.plan(seen), 1).instance
    assert facts is not None
    assert facts.volumes == ()


def test_what_a_new_machine_waits_for_is_said_when_it_is_looked_for_in_vain_twice() -> None:
    def waits(attempts: int, **changes: Any) -> float:
        memory = Memory(hold=Hold(WorkState.WAITING, "VolumeNotReady", "not yet", NOW + 0.4, attempts, 1))
        seen = scope(None, memory=memory, **changes)
        return instance_status.unsaid(seen, instance_plan.plan(seen))

    assert waits(1) == pytest.approx(0.4)
    assert waits(2) == 0
    assert waits(1, status=reported(WorkState.STOPPED)) == 0, "what was said of it is no longer so"
    assert waits(1, now=NOW + 1) == 0
    failed = scope(None, memory=Memory(hold=Hold(WorkState.FAILED, "NoSpace", "full", NOW + 2, 1, 1)))
    assert instance_status.unsaid(failed, instance_plan.plan(failed)) == 0


def test_that_a_machine_stops_to_be_removed_is_said_when_it_takes_long() -> None:
    def stops(since: float, **changes: Any) -> float:
        stopping = Memory(stopping_since=since, pressed_at=NOW)
        seen = scope(on(wanted=STOPPED), deleting=True, memory=stopping, **changes)
        return instance_status.unsaid(seen, instance_plan.plan(seen))

    assert 0 < stops(NOW - 0.5) <= 1.5
    assert stops(NOW - 3) <= 0
