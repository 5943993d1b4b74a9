"""The rules of nftables: golden, and what changes when something changes."""

from __future__ import annotations

import json
from pathlib import Path

from kumulus.api.segments import FilterGroup
from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.bridging import link_local
from kumulus_agents.network.linux.rules import render
from kumulus_agents.network.linux.ruleset import Json, changes, whole
from tests.unit.network.material import DATA, MACHINE, NETWORK, WEB, layout, nic_uid, order, port

GOLDEN = Path(__file__).parent / "golden" / "rules.json"


def said(commands: list[Json]) -> list[tuple[str, str, str]]:
    """Verb, kind and name of each command."""
    found = []
    for command in commands:
        ((verb, what),) = command.items()
        ((kind, about),) = what.items()  # type: ignore[attr-defined]
        found.append((verb, kind, about.get("chain") or about["name"]))
    return found


def test_golden() -> None:
    """`python -m tests.unit.network.test_rules` writes it."""
    assert json.loads(GOLDEN.read_text()) == json.loads(json.dumps(whole(render(layout()))))


def test_the_same_again_changes_nothing() -> None:
    assert changes(render(layout()), render(layout())) == []


def test_a_new_member_is_one_element_of_a_set() -> None:
    first = order()
    more = first.groups[0].model_copy(update={"members": (*first.groups[0].members, "10.20.30.99")})
    after = layout().with_network(first.model_copy(update={"groups": (more, first.groups[1])}))
    commands = changes(render(layout()), render(after))
    elements = [command for command in commands if "element" in str(command)]
    assert len(elements) == 1
    assert elements[0]["add"]["element"]["elem"] == ["10.20.30.99"]  # type: ignore[index]
    others = {name for _, _, name in said(commands)} - {f"members4-{names.short(NETWORK)}-{WEB}"}
    passing = {name for _, name in (*render(layout()).learned, *render(after).learned)}
    assert len(passing) == 2, "what passes by the old rules is not remembered for the new ones"
    assert others == {"judge", "known", *passing}, "only the number that connections are marked with changes besides"


def test_a_port_that_comes_and_goes_touches_no_other() -> None:
    before, after = render(layout()), render(layout().with_port(port(20)))
    tap = names.tap(nic_uid(20))
    touched = {name for _, kind, name in said(changes(before, after)) if kind in ("chain", "rule")}
    assert touched == {f"enter-{tap}", f"ask-{tap}", f"to-{tap}", f"count-{tap}", "judge", "known"}
    touched = {name for _, kind, name in said(changes(after, before)) if kind in ("chain", "rule")}
    assert touched == {f"enter-{tap}", f"ask-{tap}", f"to-{tap}", f"count-{tap}", "judge", "known"}


def test_what_is_barred_passes_nothing_until_its_order_comes_again() -> None:
    here = layout()
    everything = {*here.networks, *here.places}
    rules = render(here.barring(everything))
    assert rules.chains["bridge", "entry"] == render(here).chains["bridge", "entry"], "frames are still looked at"
    assert not any(rules.maps["bridge", name].ways for name in ("enters", "asks", "reaches"))
    assert rules.marks["bridge", "marks"].marks == {}
    again = here.barring(everything).with_network(order())
    assert names.tunnel(NETWORK) in render(again).maps["bridge", "enters"].ways
    assert names.tap(nic_uid(11)) not in render(again).maps["bridge", "enters"].ways
    again = again.with_port(port(11))
    assert names.tap(nic_uid(11)) in render(again).maps["bridge", "enters"].ways
    assert again.places[nic_uid(11)].number == here.places[nic_uid(11)].number
    assert render(here.barring({NETWORK})) == render(
        here.without_network(NETWORK).without_port(nic_uid(11)).without_port(nic_uid(12))
    )


def test_numbers_are_kept_and_given_again() -> None:
    first = layout()
    assert first.with_port(port(11, groups=[DATA])).places[nic_uid(11)].number == first.places[nic_uid(11)].number
    gone = first.without_port(nic_uid(11))
    assert gone.with_port(port(30)).places[nic_uid(30)].number == first.places[nic_uid(11)].number
    assert len({place.number for place in first.places.values()}) == 3


def test_connections_have_to_show_themselves_again_when_anything_changes() -> None:
    def number(rules: object) -> str:
        return json.dumps(rules.chains["inet", "judge"].rules[2].does)  # type: ignore[attr-defined]

    numbers = {
        number(render(layout())),
        number(render(layout().without_port(nic_uid(11)))),
        number(render(layout().with_port(port(11, groups=[])))),
        number(render(layout().with_network(order(groups=[])))),
    }
    assert len(numbers) == 4


def test_a_group_that_the_order_does_not_have_lets_nobody_through() -> None:
    lone = FilterGroup.model_validate({"uid": DATA, "ingress": [{"group": WEB}]})
    rules = render(layout().with_network(order(groups=[lone.model_dump()])))
    assert rules.chains["inet", f"ingress-{names.short(NETWORK)}-{DATA}"].rules == ()


def test_two_halves_are_everybody() -> None:
    """nftables has no word for a prefix of no bits."""
    halves = {"cidrs": ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]}
    everybody = {"cidrs": ["0.0.0.0/0", "::/0"]}
    made = [
        render(layout().with_network(order(groups=[{"uid": WEB, "ingress": [rule]}]))).chains[
            "inet", f"ingress-{names.short(NETWORK)}-{WEB}"
        ]
        for rule in (halves, everybody)
    ]
    assert made[0] == made[1]
    assert len(made[0].rules) == 2


def test_link_local() -> None:
    assert link_local("02:00:5e:10:00:01") == "fe80::5eff:fe10:1"


def test_a_vlan_has_the_rules_of_a_tunnel_and_those_of_a_wire_that_others_are_on() -> None:
    tunnel, told = names.tunnel(NETWORK), order(vni=None, peers=[], uplink={"device": "eth1", "vlan": 101})
    before, after = render(layout()), render(layout().with_network(told))
    for chain, more in ((f"enter-{tunnel}", 4), (f"to-{tunnel}", 2)):
        had, has = before.chains["bridge", chain].rules, after.chains["bridge", chain].rules
        assert len(has) == len(had) + more
        assert set(map(str, had)) <= set(map(str, has))
    short = names.short(NETWORK)
    assert ("inet", f"tunnel-{short}") in before.chains
    assert ("inet", f"tunnel-{short}") not in after.chains
    alone = render(layout().with_network(told.model_copy(update={"dhcp": False, "subnets": ()})))
    assert len(alone.chains["bridge", f"to-{tunnel}"].rules) == len(before.chains["bridge", f"to-{tunnel}"].rules)


def test_no_text_of_anybody_is_in_the_rules() -> None:
    """Names in rules follow from uids; hostnames, domains and options are not in them."""
    text = json.dumps(whole(render(layout())))
    assert "corp" not in text
    assert "host11" not in text
    assert MACHINE not in text


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(whole(render(layout())), indent=1) + "\n")
