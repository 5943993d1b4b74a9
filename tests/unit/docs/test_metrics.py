"""The page of metrics has what processes say, and what the guides name is on it."""

from __future__ import annotations

import re

from prometheus_client import REGISTRY

from kumulus_agents.agent.drops import Drops
from kumulus_agents.agent.traffic import InterfaceTraffic
from kumulus_lab import reference_metrics
from tests.unit.docs.site import ROOT

NAME = re.compile(r"\bkumulus_[a-z_]+\b")
NO_METRICS = re.compile(r"kumulus_(controllers|agents|services|lab|licences|strip)(?![a-z])")
"""Packages."""
PARTS = ("_bucket", "_sum", "_count")


def test_what_a_process_says_is_on_the_page() -> None:
    page = reference_metrics.page()  # has imported all that has metrics
    said = {family.name for family in REGISTRY.collect() if family.name.startswith("kumulus_")}
    for collector in (Drops, InterfaceTraffic):
        said |= {family.name for family in collector.__new__(collector).describe()}
    assert len(said) > 25
    assert not [name for name in said if not re.search(rf"`{name}(_total)?`", page)]


def test_metrics_that_pages_name_exist() -> None:
    known = set(re.findall(r"^\| `(\w+)`", (ROOT / reference_metrics.PAGE).read_text(), re.MULTILINE))
    named = {
        (page.name, name)
        for page in (ROOT / "docs").glob("*.md")
        for name in NAME.findall(page.read_text())
        if not NO_METRICS.match(name)
    }
    assert len(named) > 15
    wrong = [
        (page, name)
        for page, name in sorted(named)
        if name not in known and not any(name == f"{one}{part}" for one in known for part in PARTS)
    ]
    assert wrong == []
