"""From a model to a structural schema."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import pytest
from pydantic import Field

from kumulus.api.base import Model, Rule, cel, immutable, list_map, template
from kumulus.crdgen.schema import UnfitModelError, structural


class Colour(StrEnum):
    """A colour."""

    RED = "Red"
    BLUE = "Blue"


class Wheel(Model):
    """A wheel."""

    rules = (Rule("self.size != 13", "13 is no size", field=".size"),)

    name: str = Field(description="Its name.", max_length=8)
    size: int = Field(default=16, description="Its size.", ge=1, le=99)


class Lock(Model):
    """A lock; nothing in it has a default."""

    key: str | None = Field(default=None, description="Its key.")


class Car(Model):
    """A car."""

    colour: Colour = Field(default=Colour.RED, description="Its colour.")
    spare: Wheel | None = Field(default=None, description="A spare wheel.")
    wheels: tuple[Wheel, ...] = Field(default=(), description="Its wheels.", json_schema_extra=list_map("name"))
    labels: Mapping[str, str] = Field(default_factory=dict, description="What is stuck on it.", max_length=3)
    lock: Lock = Field(default_factory=Lock, description="Its lock.")
    weight: float = Field(default=1.5, description="In tonnes.", ge=0.5, le=40)
    doors: int = Field(description="How many doors.")


def test_a_model_becomes_one_inline_schema() -> None:
    assert structural(Car, path="Car") == {
        "description": "A car.",
        "type": "object",
        "required": ["doors"],
        "properties": {
            "colour": {"description": "Its colour.", "type": "string", "enum": ["Red", "Blue"], "default": "Red"},
            "spare": {
                "description": "A spare wheel.",
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"description": "Its name.", "type": "string", "maxLength": 8},
                    "size": {
                        "description": "Its size.",
                        "type": "integer",
                        "default": 16,
                        "minimum": 1,
                        "maximum": 99,
                    },
                },
                "x-kubernetes-validations": [
                    {"rule": "self.size != 13", "message": "13 is no size", "fieldPath": ".size"}
                ],
            },
            "wheels": {
                "description": "Its wheels.",
                "type": "array",
                "items": {
                    "description": "A wheel.",
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"description": "Its name.", "type": "string", "maxLength": 8},
                        "size": {
                            "description": "Its size.",
                            "type": "integer",
                            "default": 16,
                            "minimum": 1,
                            "maximum": 99,
                        },
                    },
                    "x-kubernetes-validations": [
                        {"rule": "self.size != 13", "message": "13 is no size", "fieldPath": ".size"}
                    ],
                },
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
            "labels": {
                "description": "What is stuck on it.",
                "type": "object",
                "maxProperties": 3,
                "additionalProperties": {"type": "string"},
            },
            "lock": {
                "description": "Its lock.",
                "type": "object",
                "properties": {"key": {"description": "Its key.", "type": "string"}},
            },
            "weight": {
                "description": "In tonnes.",
                "type": "number",
                "default": 1.5,
                "minimum": 0.5,
                "maximum": 40,
                "x-kubernetes-validations": [{"rule": "self >= 0.5", "message": "must be at least 0.5"}],
            },
            "doors": {"description": "How many doors.", "type": "integer"},
        },
    }


def test_an_object_with_defaults_inside_defaults_to_empty_so_that_they_apply() -> None:
    class Garage(Model):
        """A garage."""

        door: Wheel = Field(default_factory=lambda: Wheel(name="x"), description="Round.")

    assert structural(Garage, path="Garage")["properties"]["door"]["default"] == {}


def test_a_status_has_no_defaults() -> None:
    assert "default" not in str(structural(Car, path="Car", defaults=False))


class Engraved(Model):
    """Things that cannot change."""

    number: int = Field(description="Always there.", json_schema_extra=immutable("number"))
    kind: str = Field(default="a", description="Always there, by default.", json_schema_extra=immutable("kind"))
    plate: str | None = Field(
        default=None, description="Perhaps there.", json_schema_extra=immutable("plate", ": it is welded on")
    )
    for_: str | None = Field(default=None, alias="for", description="A CEL word.", json_schema_extra=immutable("for"))
    seats: tuple[Wheel, ...] = Field(
        default=(),
        description="A list.",
        json_schema_extra=list_map("name", Rule("size(self) < 9", "too many")) | immutable("seats"),
    )


def test_what_is_immutable_cannot_change_come_or_go() -> None:
    schema = structural(Engraved, path="Engraved")
    fields = schema["properties"]
    changed = {"rule": "self == oldSelf", "message": "plate cannot be changed: it is welded on"}
    assert fields["plate"]["x-kubernetes-validations"] == [changed]
    assert [rule["rule"] for rule in fields["seats"]["x-kubernetes-validations"]] == [
        "size(self) < 9",
        "self == oldSelf",
    ]
    assert schema["x-kubernetes-validations"] == [
        {
            "rule": "has(self.plate) == has(oldSelf.plate)",
            "message": "plate cannot be changed: it is welded on",
            "fieldPath": ".plate",
        },
        {
            "rule": "has(self.__for__) == has(oldSelf.__for__)",
            "message": "for cannot be changed",
            "fieldPath": ".for",
        },
        {
            "rule": "has(self.seats) == has(oldSelf.seats)",
            "message": "seats cannot be changed",
            "fieldPath": ".seats",
        },
    ]
    assert "x-kumulus" not in str(schema)


class Node(Model):
    """Contains itself."""

    child: Node | None = Field(default=None, description="Another.")


class Silent(Model):
    """Says nothing of its field."""

    field: int = 1


class Either(Model):
    """Two types at once."""

    field: int | str = Field(description="Either.")


class Anything(Model):
    """A map of anything."""

    field: Mapping[str, Any] = Field(description="Anything.")


class Untyped(Model):
    """A field without a type."""

    field: Any = Field(description="Anything.")


class Dated(Model):
    """A `format`, with which Kubernetes 1.34 takes a list for a string."""

    field: datetime = Field(description="When.")


class Deep(Model):
    """Something unfit further down."""

    inner: tuple[Dated, ...] = Field(description="Inside.")


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (Node, "M.child"),
        (Silent, "M.field: no description"),
        (Either, "M.field: a union"),
        (Anything, "M.field"),
        (Untyped, "M.field: no type"),
        (Dated, "M.field: a CRD cannot have format"),
        (Deep, "M.inner[].field"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(model: type[Model], where: str) -> None:
    with pytest.raises(UnfitModelError) as refused:
        structural(model, path="M")
    assert where in str(refused.value)


def test_rules_of_a_field_and_of_its_type_both_hold() -> None:
    class Both(Model):
        """Both."""

        wheel: Wheel = Field(description="Round.", json_schema_extra=cel(Rule("true", "always")))

    rules = structural(Both, path="Both")["properties"]["wheel"]["x-kubernetes-validations"]
    assert [rule["message"] for rule in rules] == ["13 is no size", "always"]


def test_a_template_may_change_where_what_is_made_from_it_may_not() -> None:
    class Part(Model):
        """A part."""

        rules = (Rule("self == oldSelf", "never"), Rule("self.size > 0", "more"))

        size: int = Field(description="Its size.", json_schema_extra=immutable("size"))
        colour: str | None = Field(default=None, description="Its colour.", json_schema_extra=immutable("colour"))

    class Thing(Model):
        """A thing."""

        model: Part = Field(description="What it is made from.", json_schema_extra=template())
        parts: tuple[Part, ...] = Field(default=(), description="Its parts.", max_length=3)

    made = structural(Thing, path="Thing")["properties"]
    assert made["model"]["x-kubernetes-validations"] == [{"rule": "self.size > 0", "message": "more"}]
    assert "x-kubernetes-validations" not in made["model"]["properties"]["size"]
    assert "x-kumulus-template" not in made["model"]
    assert len(made["parts"]["items"]["x-kubernetes-validations"]) == 3
