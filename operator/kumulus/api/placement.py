"""Where a machine may run: selectors, taints and tolerations, profiles. Shared by machines and hosts."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from kumulus.api.base import Model, Rule, cel

LABEL_KEY = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
"""Pattern of a label's key, without anchors."""

LABEL_KEY_RULE = f"self.all(k, size(k) <= 317 && k.matches('^{LABEL_KEY}$'))"

LABEL_KEYS = Rule(LABEL_KEY_RULE, "keys must be label keys such as disk or example.com/rack")

LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]

Selector = Annotated[
    Mapping[str, LabelValue],
    Field(
        max_length=32,
        json_schema_extra=cel(LABEL_KEYS),
    ),
]
"""Labels that all have to be there with these values."""


class TaintEffect(StrEnum):
    """What a taint does to machines that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"


class Taint(Model):
    """A mark on a host that keeps machines away which do not tolerate it."""

    key: str = Field(
        description="What the mark says, such as `dedicated`.", min_length=1, max_length=317, pattern=f"^{LABEL_KEY}$"
    )
    value: LabelValue = Field(default="", description="Its value; may be empty.")
    effect: TaintEffect = Field(
        default=TaintEffect.NO_SCHEDULE, description="NoSchedule keeps machines away; PreferNoSchedule tries to."
    )


class TolerationOperator(StrEnum):
    """How a toleration compares."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class Toleration(Model):
    """Lets a machine run on hosts with a matching taint."""

    rules = (
        Rule("self.operator != 'Exists' || self.value == ''", "value must be empty when operator is Exists"),
        Rule("self.operator == 'Exists' || self.key != ''", "key must be set unless operator is Exists"),
    )

    key: str = Field(
        default="",
        description="Key of the taint; empty with Exists tolerates every taint.",
        max_length=317,
        pattern=f"^({LABEL_KEY})?$",
    )
    operator: TolerationOperator = Field(
        default=TolerationOperator.EQUAL, description="Equal compares the value, Exists only the key."
    )
    value: LabelValue = Field(default="", description="Value of the taint, for Equal.")
    effect: TaintEffect | None = Field(default=None, description="Only taints with this effect; empty means all.")

    def tolerates(self, taint: Taint) -> bool:
        """Whether this toleration covers that taint."""
        if self.effect is not None and self.effect is not taint.effect:
            return False
        if self.operator is TolerationOperator.EXISTS:
            return self.key in ("", taint.key)
        return self.key == taint.key and self.value == taint.value


class Profile(StrEnum):
    """How to choose among the hosts that fit."""

    SPREAD = "Spread"
    PACK = "Pack"
    LEAST_CONSUMED = "LeastConsumed"
