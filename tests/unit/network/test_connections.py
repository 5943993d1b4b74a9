"""Connections that a guest takes along to another host: what is read of the kernel's list, and what is believed."""

from __future__ import annotations

import json

import pytest

from kumulus_agents.network.connections import LONGEST, MOST, Connection, from_json, to_json
from kumulus_agents.network.linux.tracked import entries, listed

OWN = "10.0.0.1"
ONE = Connection(OWN, 1000, "10.0.0.2", 80, 299)
SAVED = (
    "-A -t 299 -u SEEN_REPLY,ASSURED -w 5 -s 10.0.0.1 -d 10.0.0.2 -r 10.0.0.2 -q 10.0.0.1 -p tcp --sport 1000"
    " --dport 80 --reply-port-src 80 --reply-port-dst 1000 --state ESTABLISHED"
)


def test_what_conntrack_lists() -> None:
    six = SAVED.replace("10.0.0.1", "fd00::1").replace("10.0.0.2", "fd00::2")
    assert listed(f"{SAVED}\n{six}\n", [OWN, "fd00::1"]) == (ONE, Connection("fd00::1", 1000, "fd00::2", 80, 299))
    for other in (
        SAVED.replace("ESTABLISHED", "TIME_WAIT"),
        SAVED.replace("-r 10.0.0.2", "-r 192.0.2.1"),  # translated
        SAVED.replace("SEEN_REPLY,ASSURED", "UNREPLIED"),
        SAVED.replace("-p tcp", "-p udp"),
        SAVED.replace("10.0.0.1", "10.0.0.9"),
        "conntrack v1.4.7 (conntrack-tools): 1 flow entries have been shown.",
    ):
        assert listed(other, [OWN]) == ()


def test_what_conntrack_is_given() -> None:
    assert entries([ONE], 7) == (
        "-A -w 7 -t 299 -u SEEN_REPLY,ASSURED -s 10.0.0.1 -d 10.0.0.2 -p tcp --sport 1000 --dport 80 --state ESTABLISHED\n"
    )


def test_what_one_host_tells_another() -> None:
    assert from_json(json.loads(json.dumps(to_json([ONE]))), [OWN]) == (ONE,)
    assert len(from_json([[OWN, 1, "10.0.0.2", 1 + n, 5] for n in range(1, 3 * MOST)], [OWN])) == MOST
    assert from_json([[OWN, 1, "10.0.0.2", 1, 10 * LONGEST]], [OWN])[0].seconds == LONGEST


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        "x",
        [[OWN, 1, "10.0.0.2", 1]],
        [["10.0.0.8", 1, "10.0.0.9", 1, 5]],
        [[OWN, 1, OWN, 1, 5]],
        [[OWN, 0, "10.0.0.2", 1, 5]],
        [[OWN, 1, "10.0.0.2", 70000, 5]],
        [[OWN, "1", "10.0.0.2", 1, 5]],
        [[OWN, 1, "10.0.0.2\n-A -w 1", 1, 5]],
        [[OWN, 1, "fd00::1", 1, 5]],
        [[OWN, True, "10.0.0.2", 1, 5]],
    ],
)
def test_what_is_not_believed(said: object) -> None:
    assert from_json(said, [OWN]) == ()
