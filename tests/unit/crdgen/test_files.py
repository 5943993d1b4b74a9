"""The generated files: what is in all of them, and that those of the checkout are up to date."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kumulus.api.base import Resource
from kumulus.api.registry import KINDS
from kumulus.crdgen.__main__ import main
from kumulus.crdgen.command import CHECKOUT
from kumulus.crdgen.crd import crd, name_rules
from kumulus.crdgen.files import CRDS, generated, write

Schema = dict[str, Any]


def fields(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every named field of a schema with its path."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from fields(schema[key], f"{path}[]")


def root(resource: type[Resource]) -> Schema:
    schema: Schema = crd(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("resource", KINDS)
def test_every_field_says_what_it_is(resource: type[Resource]) -> None:
    for path, field in fields(root(resource)):
        if path.startswith(".metadata"):
            continue
        assert field["description"].endswith((".", "...")), path


@pytest.mark.parametrize("resource", KINDS)
def test_nothing_unstructured_gets_in(resource: type[Resource]) -> None:
    text = yaml.safe_dump(root(resource))
    for word in ("format:", "$ref", "x-kubernetes-preserve-unknown-fields", "x-kumulus", "nullable", "title:"):
        assert word not in text.replace("  format:\n", "")
    for _, field in fields(root(resource)):
        assert "type" in field or field.get("x-kubernetes-int-or-string")


@pytest.mark.parametrize("resource", KINDS)
def test_conditions_are_merged_by_type(resource: type[Resource]) -> None:
    for path, field in fields(root(resource)):
        if path == ".status.conditions":
            assert field["x-kubernetes-list-map-keys"] == ["type"]


@pytest.mark.parametrize("resource", KINDS)
def test_columns_and_selectors_lead_to_fields(resource: type[Resource]) -> None:
    known = {path for path, _ in fields(root(resource))} | {".metadata.creationTimestamp"}
    for column in resource.KIND.columns:
        assert column.path.split("[?")[0] in known
    for path in resource.KIND.selectable:
        assert path in known


def test_names_are_taken_once() -> None:
    taken = [name for resource in KINDS for name in (resource.KIND.plural, *resource.KIND.short_names)]
    assert len(taken) == len(set(taken))


def test_every_kind_bounds_its_name() -> None:
    for resource in KINDS:
        (rule,) = name_rules(resource.KIND)
        assert rule.field == ".metadata.name"
        assert str(resource.KIND.name_max) in rule.rule


def test_the_same_models_give_the_same_files() -> None:
    assert generated(KINDS) == generated(tuple(KINDS))


def test_the_files_of_the_checkout_are_up_to_date() -> None:
    assert main(["--check"]) == 0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    write(tmp_path, generated(KINDS))
    return tmp_path


def test_writing_again_changes_nothing(checkout: Path) -> None:
    assert write(checkout, generated(KINDS)) == []
    assert main(["--check", "--root", str(checkout)]) == 0


def test_check_names_what_differs_is_missing_or_stale(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed, missing, stale = (
        checkout / CRDS / f"{name}.yaml"
        for name in ("zones.fabric.kumulus.io", "hosts.fabric.kumulus.io", "towers.fabric.kumulus.io")
    )
    changed.write_text(changed.read_text() + "# by hand\n")
    missing.unlink()
    stale.write_text("x")
    assert main(["--check", "--root", str(checkout)]) == 1
    told = capsys.readouterr().err
    assert [name in told for name in (changed.name, missing.name, stale.name)] == [True] * 3
    assert "images.storage" not in told
    assert main(["--root", str(checkout)]) == 0
    assert not stale.exists()
    assert main(["--check", "--root", str(checkout)]) == 0


def test_what_people_write_beside_the_reference_is_left_alone(checkout: Path) -> None:
    notes = checkout / "docs" / "reference" / "README.md"
    notes.write_text("x")
    assert write(checkout, generated(KINDS)) == []
    shutil.rmtree(checkout / "docs")
    assert write(checkout, generated(KINDS))
    assert not notes.exists()


def test_crds_are_plain_yaml_in_the_checkout() -> None:
    for file in (CHECKOUT / CRDS).glob("*.yaml"):
        document = yaml.safe_load(file.read_text())
        assert file.name == f"{document['metadata']['name']}.yaml"
        assert "&" not in file.read_text().replace("&&", "")
