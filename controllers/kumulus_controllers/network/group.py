"""SecurityGroup: how many are in it, what of its rules lets nothing through, and that one in use stays, in force."""

from __future__ import annotations

from collections.abc import Sequence

from kumulus.api.network import NetworkInterface
from kumulus.api.security_groups import SecurityGroup, SecurityGroupStatus
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers.network import leaving_alone
from kumulus_controllers.network.lack import Lack, facts, in_use, named
from kumulus_controllers.network.networks import IN_GROUP, NAMES_GROUP, Networks, group_names, named_groups
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_report

COUNT_SECONDS = 5.0
"""How stale the count of members may be: it is no reason for a write per machine."""


def derive_status(
    group: SecurityGroup, known: frozenset[str], members: int, now: str, users: Sequence[str] = ()
) -> SecurityGroupStatus:
    """The whole status. `known` are the groups of the namespace, `users` who keeps it from going. Pure."""
    gone = sorted(named_groups(group) - known)
    lack = None
    if group.deleting and users:
        lack = in_use(users, "Its rules stay in force until then. Take it out of their spec, or delete them.")
    elif gone:
        which = ", ".join(gone)
        lack = Lack(
            "SecurityGroupNotFound",
            f"Its rules name {which}, which {'is' if len(gone) == 1 else 'are'} not in the namespace: those rules let nothing"
            " through. Make the group, or take the rules out.",
        )
    generation = group.metadata.generation
    found = facts(lack, "Ready", "Its rules are in force where its members are.")
    return SecurityGroupStatus(
        observed_generation=generation,
        conditions=derive(group.status.conditions, found, generation=generation, now=now),
        members=members,
    )


class GroupReconciler:
    """Says of a group what is so. Its rules travel with the networks of its members."""

    name = "securitygroup"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._networks = Networks(services.caches)
        self._counted: dict[str, float] = {}

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, groups that rules name, and members that come and go."""
        networks = self._networks

        def group_changed(before: SecurityGroup | None, after: SecurityGroup | None) -> None:
            item = after or before
            if item is None or (
                before and after and before.metadata.generation == after.metadata.generation and not after.deleting
            ):
                return
            enqueue(Key(item.namespace, item.name))
            for one in (before, after):
                for name in named_groups(one) if one is not None else ():
                    if (other := networks.groups.get(name, item.namespace)) is not None and other.deleting:
                        enqueue(Key(other.namespace, other.name))
            if before is None or after is None:
                for other in networks.groups.by(NAMES_GROUP, f"{item.namespace}/{item.name}"):
                    enqueue(Key(other.namespace, other.name))

        def interface_changed(before: NetworkInterface | None, after: NetworkInterface | None) -> None:
            had = {Key(before.namespace, name) for name in group_names(before)} if before is not None else set()
            has = {Key(after.namespace, name) for name in group_names(after)} if after is not None else set()
            for key in had ^ has:
                enqueue(key)

        networks.groups.listen(group_changed)
        networks.interfaces.listen(interface_changed)

    def everything(self) -> list[Key]:
        """All groups."""
        return self._networks.groups.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a group."""
        networks, clock = self._networks, self._services.clock
        group = networks.groups.get(key.name, key.namespace)
        if group is None:
            self._counted.pop(str(key), None)
            return Gone()
        if group.paused:
            await leaving_alone.say_so(self._services, networks.groups, group)
            return Done()
        users = self._users(group) if group.deleting else ()
        if group.deleting and not users:
            await drop_finalizer(self._services.client, networks.groups, group)
            return Gone()
        if not group.deleting and await ensure_finalizer(self._services.client, networks.groups, group):
            group = networks.groups.get(key.name, key.namespace) or group
        known = frozenset(
            name for name in named_groups(group) if networks.groups.get(name, group.namespace) is not None
        )
        members = len(networks.interfaces.by(IN_GROUP, str(key)))
        after = derive_status(group, known, members, rfc3339(clock.now()), users)
        counts = {"members": group.status.members}
        since = clock.monotonic() - self._counted.get(str(key), float("-inf"))
        if after.to_json() == group.status.to_json():
            return Done()
        if since < COUNT_SECONDS and after.model_copy(update=counts).to_json() == group.status.to_json():
            return Requeue(COUNT_SECONDS - since)
        self._counted[str(key)] = clock.monotonic()
        await write_report(self._services.client, networks.groups, group, after)
        return Done()

    def _users(self, group: SecurityGroup) -> Sequence[str]:
        """Interfaces that are in it, and groups that stay whose rules name it."""
        key, networks = f"{group.namespace}/{group.name}", self._networks
        rules = [one for one in networks.groups.by(NAMES_GROUP, key) if one.uid != group.uid and not one.deleting]
        return [named(item) for item in (*networks.interfaces.by(IN_GROUP, key), *rules)]
