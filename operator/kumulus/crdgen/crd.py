"""From a kind to its CustomResourceDefinition."""

from __future__ import annotations

from typing import Any

from kumulus.api.base import Kind, Model, Resource, Rule
from kumulus.crdgen.schema import Schema, UnfitModelError, structural

_LABELS = {"app.kubernetes.io/name": "kumulus", "app.kubernetes.io/part-of": "kumulus"}


def crd_name(kind: Kind) -> str:
    """Name of the CRD object, `<plural>.<group>`."""
    return f"{kind.plural}.{kind.group}"


def crd(resource: type[Resource]) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind, as JSON. Raises `UnfitModelError`."""
    kind = resource.KIND
    version: dict[str, Any] = {"name": kind.version, "served": True, "storage": True}
    if kind.columns:
        version["additionalPrinterColumns"] = [
            {
                "name": column.name,
                "type": column.type,
                "jsonPath": column.path,
                **({"priority": column.priority} if column.priority else {}),
                **({"description": column.description} if column.description else {}),
            }
            for column in kind.columns
        ]
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    if kind.status:
        version["subresources"] = {"status": {}}
    if kind.scale is not None:
        version.setdefault("subresources", {})["scale"] = {
            "specReplicasPath": kind.scale.wanted,
            "statusReplicasPath": kind.scale.found,
            "labelSelectorPath": kind.scale.selector,
        }
    version["schema"] = {"openAPIV3Schema": schema(resource)}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": crd_name(kind), "labels": dict(_LABELS)},
        "spec": {
            "group": kind.group,
            "names": _names(kind),
            "scope": kind.scope.value,
            "versions": [version],
        },
    }


def _names(kind: Kind) -> dict[str, Any]:
    names: dict[str, Any] = {
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
        "plural": kind.plural,
        "singular": kind.kind.lower(),
    }
    if kind.short_names:
        names["shortNames"] = list(kind.short_names)
    if kind.categories:
        names["categories"] = list(kind.categories)
    return names


def schema(resource: type[Resource]) -> Schema:
    """The structural schema of the whole object: metadata, spec and status."""
    kind = resource.KIND
    out: Schema = {
        "description": _docstring(resource),
        "type": "object",
        "required": [name for name, field in resource.model_fields.items() if field.is_required()],
        "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string"}}}},
    }
    if not out["required"]:
        del out["required"]
    for name, field in resource.model_fields.items():
        if name == "metadata":
            continue
        if not field.description:
            raise UnfitModelError(f"{kind.kind}.{name}: no description")
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Model)):
            raise UnfitModelError(f"{kind.kind}.{name}: not a Model")
        made = structural(field.annotation, path=f"{kind.kind}.{name}", defaults=name != "status")
        made["description"] = field.description
        out["properties"][name] = made
    if ("status" in out["properties"]) != kind.status:
        raise UnfitModelError(f"{kind.kind}: has a status and no status subresource, or the other way round")
    if rules := (*name_rules(kind), *kind.rules):
        out["x-kubernetes-validations"] = [rule.as_json() for rule in rules]
    return out


def name_rules(kind: Kind) -> tuple[Rule, ...]:
    """What a name of this kind has to be. Names become host names, parts of other names, labels."""
    if not kind.dns_label:
        return (
            Rule(
                f"size(self.metadata.name) <= {kind.name_max}",
                f"metadata.name must have at most {kind.name_max} characters",
                field=".metadata.name",
            ),
        )
    return (
        Rule(
            f"size(self.metadata.name) <= {kind.name_max}"
            " && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            f"metadata.name must be a DNS label of at most {kind.name_max} characters:"
            " lower-case letters, digits and '-', starting and ending with a letter or digit",
            field=".metadata.name",
        ),
    )


def _docstring(resource: type[Resource]) -> str:
    if not resource.__doc__:
        raise UnfitModelError(f"{resource.KIND.kind}: no docstring; it is what `kubectl explain` says")
    return " ".join(resource.__doc__.split())
