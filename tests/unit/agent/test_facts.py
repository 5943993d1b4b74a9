"""Small pure things: what is reported, how settings are read, what a bundle must be."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from kumulus.api.host import HostReportStatus, WorkOrder, WorkState
from kumulus_agents.agent import hold, machine_facts, settings
from kumulus_agents.agent.console import fitting
from kumulus_agents.agent.credentials import TokenKeeper
from kumulus_agents.agent.drivers import api_server_networks
from kumulus_agents.agent.identity import Credentials, IdentityProblem, StateDirectory, read_bundle
from kumulus_agents.agent.pool import STEP, steady, steady_capacity
from kumulus_agents.agent.report import Found, MachineFacts, derive
from kumulus_agents.hypervisor.foreign import ForeignDomain
from kumulus_agents.hypervisor.protocol import HypervisorError, Inventory

FACTS = MachineFacts(addresses=lambda: ("192.0.2.1",), agent="1", kernel="6.1", os="Debian")
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def order(generation: int = 1) -> WorkOrder:
    return WorkOrder.parse(
        {
            "metadata": {"name": "o", "generation": generation},
            "spec": {
                "type": "Console",
                "for": {"kind": "ConsoleRequest", "name": "c", "uid": "u"},
                "console": {"uid": "00000000-0000-0000-0000-000000000001", "maxBytes": 1},
            },
        }
    )


def go_json(text: str) -> int:
    """Bytes of the text as Go's encoder writes it."""
    encoded = json.dumps(text, ensure_ascii=False)
    for character in "<>&\x7f\u2028\u2029":
        encoded = encoded.replace(character, "\\u0000")
    return len(encoded.encode()) - 2


@given(st.text(max_size=300), st.integers(0, 400))
def test_a_console_fits_whatever_a_guest_printed(text: str, budget: int) -> None:
    cut = fitting(text, budget)
    assert text.endswith(cut)
    assert go_json(cut) <= budget


def test_a_plain_console_is_not_cut() -> None:
    assert fitting("login: " * 20000) == "login: " * 20000


@pytest.mark.parametrize(
    ("used", "before", "told"),
    [(0, None, 0), (1, None, STEP), (STEP + 1, STEP, STEP), (1, STEP, STEP), (3 * STEP - 1, STEP, 3 * STEP)],
)
def test_what_is_used_changes_seldom(used: int, before: int | None, told: int) -> None:
    assert steady(used, before) == told


@pytest.mark.parametrize(("used", "before", "told"), [(1, None, 4096), (500_000, 4096, 503_808)])
def test_what_is_used_of_a_small_pool_is_told_more_exactly(used: int, before: int | None, told: int) -> None:
    assert steady(used, before, 400_000) == told


@pytest.mark.parametrize(
    ("capacity", "before", "told"),
    [(10_000, None, 10_000), (10_050, 10_000, 10_000), (10_200, 10_000, 10_200), (0, 0, 0)],
)
def test_capacity_that_moves_a_little_stays_what_it_was(capacity: int, before: int | None, told: int) -> None:
    assert steady_capacity(capacity, before) == told


def test_failures_wait_longer_and_longer_until_the_order_changes() -> None:
    first = hold.failed("R", "m", retryable=True, order=order(), before=None, now=100.0)
    second = hold.failed("R", "m", retryable=True, order=order(), before=first, now=200.0)
    assert (first.until, second.until) == (102.0, 204.0)
    assert hold.failed("R", "m", retryable=True, order=order(2), before=second, now=300.0).until == 302.0
    assert hold.failed("R", "m", retryable=False, order=order(), before=None, now=0.0).until == hold.RETRY_REFUSED
    many = first
    for _ in range(40):
        many = hold.failed("R", "m", retryable=True, order=order(), before=many, now=0.0)
    assert many.until == hold.RETRY_MOST
    assert hold.current(first, order()) is first
    assert hold.current(first, order(2)) is None
    assert hold.waiting("R", "m", order=order(), before=None, now=0.0).state is WorkState.WAITING


def test_a_report_keeps_what_was_known_while_the_hypervisor_is_away() -> None:
    there = Found(Inventory(cpus=4, memory=1 << 30, machine_types=("q35", "pc")), [])
    before = derive(HostReportStatus(), FACTS, there, None)
    away = derive(before, FACTS, HypervisorError("libvirtd is not running"), None)
    assert (before.hypervisor_ready, away.hypervisor_ready) == (True, False)
    assert away.capacity == before.capacity
    assert away.hypervisor_message == "libvirtd is not running"
    assert derive(away, FACTS, there, None) == before


def test_foreign_domains_are_counted() -> None:
    foreign = [ForeignDomain(uuid, "n", "running") for uuid in ("b", "a")]
    report = derive(HostReportStatus(), FACTS, Found(Inventory(cpus=1, memory=1), foreign), None)
    assert report.unmanaged_count == 2


def test_the_end_of_the_credentials_is_told_in_half_hours() -> None:
    there = Found(Inventory(cpus=1, memory=1), [])
    told = {
        derive(HostReportStatus(), FACTS, there, NOW + timedelta(minutes=minutes)).credentials_expire_at
        for minutes in (30, 45, 59)
    }
    assert told == {"2026-11-20T12:30:00Z"}


class StillClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.moment = NOW

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("passed", "seconds"), [(0, 2400), (1800, 600), (2400, 0), (9999, 0), (-3600, 2400), (-86400, 2400)]
)
def test_a_token_is_due_after_two_thirds_of_its_life_whatever_the_clock_says(
    tmp_path: Path, passed: int, seconds: float
) -> None:
    clock = StillClock()
    credentials = Credentials(
        server="https://a",
        ca_data="",
        host="h",
        namespace="n",
        token=SecretStr("t"),
        issued_at=NOW,
        expires_at=NOW + timedelta(hours=1),
    )
    keeper = TokenKeeper(StateDirectory(tmp_path), credentials, clock)
    clock.moment = NOW + timedelta(seconds=passed)
    assert keeper.due() == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"kind": "JoinBundle", "token": "s3cret"}'])
def test_a_bad_bundle_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(IdentityProblem) as caught:
        read_bundle(text)
    assert "run kumulusctl host add again" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_host_that_has_not_joined_says_so(tmp_path: Path) -> None:
    with pytest.raises(IdentityProblem, match="has not joined yet"):
        StateDirectory(tmp_path).load()


def test_settings_come_from_file_environment_and_command_line(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("lease_seconds: 30\nhttp_port: 1\nstorage: {roots: [/srv]}\n")
    environment = {
        "KUMULUS_AGENT_HTTP_PORT": "2",
        "KUMULUS_AGENT_STORAGE__FETCH__ALLOWED_NETWORKS": "[10.0.0.0/8]",
        "OTHER": "x",
    }
    found = settings.load(tmp_path, {"hypervisor": "simulated"}, environment)
    assert (found.lease_seconds, found.http_port, found.hypervisor) == (30, 2, "simulated")
    assert [str(root) for root in found.storage.roots] == ["/srv"]
    assert [str(network) for network in found.storage.fetch.allowed_networks] == ["10.0.0.0/8"]


@pytest.mark.parametrize(
    "name", ["KUMULUS_AGENT_NONSENSE", "KUMULUS_AGENT_LEASE_SECONDS", "KUMULUS_AGENT_STORAGE__ROOTS"]
)
def test_settings_that_do_not_fit_are_named(name: str) -> None:
    with pytest.raises(settings.SettingsProblem, match=name.removeprefix("KUMULUS_AGENT_").lower().split("__")[0]):
        settings.load(None, None, {name: "-1"})


def test_own_addresses_without_loopback(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.3\n        /32 host LOCAL\n"
        "     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n"
    )
    (tmp_path / "if_inet6").write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe800000000000000000000000000001 02 40 20 80     eth0\n"
        "fd000000000000000000000000000007 02 40 00 80     eth0\n"
    )
    assert machine_facts.addresses(tmp_path) == ("10.1.2.3", "fd00::7")
    assert machine_facts.addresses(tmp_path / "none") == ()


def test_images_may_not_come_from_the_api_server() -> None:
    assert [str(network) for network in api_server_networks("https://127.0.0.1:6443")] == ["127.0.0.1/32"]
    assert [str(network) for network in api_server_networks("https://[fd00::1]:6443")] == ["fd00::1/128"]
    assert api_server_networks("https://no-such-name.invalid") == ()
