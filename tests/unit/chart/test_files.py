"""The chart and the images say what the code says: modules, metrics, pinned packages."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import yaml

from kumulus.runtime.modules import GROUP
from kumulus_lab import places

CHART = places.CHECKOUT / "charts" / "kumulus"
SOURCES = ("operator", "controllers", "agents", "services")


def test_every_module_is_a_switch() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    entries = {
        entry.name
        for entry in importlib.metadata.entry_points(group=GROUP)
        if entry.dist and entry.dist.name == "kumulus"
    }
    assert set(values["modules"]) == {name for name in entries if "." in name}


def test_alerts_ask_for_metrics_that_there_are() -> None:
    rules = yaml.safe_load((CHART / "alerts.yaml").read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"kumulus_[a-z_]+", rule["expr"])}
    there: set[str] = set()
    for source in SOURCES:
        for file in (places.CHECKOUT / source).rglob("*.py"):
            there |= set(re.findall(r'"(kumulus_[a-z_]+)"', file.read_text()))
    assert {name for name in asked if name.removesuffix("_total") not in there} == set()


def test_images_have_the_packages_that_were_tested() -> None:
    tested = _pins(places.CHECKOUT / "requirements.lock")
    assert _pins(places.CHECKOUT / "images" / "controllers.lock") <= tested


def _pins(file: Path) -> set[str]:
    found = set(re.findall(r"^([a-z0-9._-]+==[^\s\\]+)", file.read_text(), re.MULTILINE))
    assert found
    return found
