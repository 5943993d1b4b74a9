"""From a model to a structural schema, as apiextensions.k8s.io/v1 wants it.

pydantic makes the JSON schema; this module turns it into the subset the API server takes: everything
inline, no unions with null, no titles, every field described. What the subset cannot say is refused
here, by the path of the field, and not first by an API server.

Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from kumulus.api.base import IMMUTABLE, TEMPLATE, Model, Rule

Schema = dict[str, Any]

_VALIDATIONS = "x-kubernetes-validations"
_INT_OR_STRING = "x-kubernetes-int-or-string"

_ORDER = (
    "description",
    "type",
    "enum",
    "default",
    _INT_OR_STRING,
    "anyOf",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "properties",
    "items",
    "additionalProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    _VALIDATIONS,
)
"""The keywords a schema may have, in the order they are written. Any other is refused."""


_CEL_RESERVED = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)


class UnfitModelError(Exception):
    """A model says something that a CRD cannot, or does not say something that a CRD has to."""


class _WithRules(GenerateJsonSchema):
    """pydantic's generator, with the `rules` of each model as CEL validations."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        if issubclass(model, Model) and model.rules:
            made[_VALIDATIONS] = [rule.as_json() for rule in model.rules]
        return made


def structural(model: type[BaseModel], *, path: str, defaults: bool = True) -> Schema:
    """The structural schema of a model.

    `path` is what errors call it, such as `VirtualMachine.spec`. Without `defaults` none are written:
    a status has only what somebody reported.

    Raises `UnfitModelError`, naming the field.
    """
    made = model.model_json_schema(by_alias=True, mode="validation", schema_generator=_WithRules)
    definitions: Mapping[str, Schema] = made.pop("$defs", {})
    return _Structural(definitions, defaults=defaults).of(made, path, ())


class _Structural:
    """One pass over a JSON schema. `seen` are the definitions that are open: a second one is a recursion."""

    def __init__(self, definitions: Mapping[str, Schema], *, defaults: bool) -> None:
        self._definitions = definitions
        self._defaults = defaults

    def of(self, node: Schema, path: str, seen: tuple[str, ...]) -> Schema:
        """The structural form of `node`, without references and unions with null."""
        node, seen = self._resolved(node, path, seen)
        out = {key: value for key, value in node.items() if key not in ("title", "default", "properties", "items")}
        if node.get("additionalProperties", None) is False:
            del out["additionalProperties"]
        if "properties" in node:
            out["properties"] = self._properties(node, out, path, seen)
        if "items" in node:
            out["items"] = self._anonymous(self.of(node["items"], f"{path}[]", seen))
        if isinstance(node.get("additionalProperties"), dict):
            out["additionalProperties"] = self._anonymous(self.of(node["additionalProperties"], f"{path}{{}}", seen))
        if self._defaults and node.get("default") not in (None, [], {}):
            out["default"] = node["default"]
        return _checked(out, path)

    def _resolved(self, node: Schema, path: str, seen: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
        """`node` with its reference inlined and its null taken away; what stands beside them wins."""
        while True:
            if "$ref" in node:
                name = node["$ref"].rsplit("/", 1)[-1]
                if name in seen:
                    raise UnfitModelError(f"{path}: {name} contains itself; a schema of a CRD cannot")
                beside = {key: value for key, value in node.items() if key != "$ref"}
                node, seen = _merged(self._definitions[name], beside), (*seen, name)
            elif any(choice.get("type") == "null" for choice in node.get("anyOf", ())):
                choices = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
                if len(choices) != 1:
                    raise UnfitModelError(f"{path}: a union of several types; use one optional field for each")
                beside = {key: value for key, value in node.items() if key != "anyOf"}
                node = _merged(choices[0], beside)
            else:
                return node, seen

    def _properties(self, node: Schema, out: Schema, path: str, seen: tuple[str, ...]) -> Schema:
        """The fields of an object. Adds to `out` the rules that only the object can hold for them."""
        properties: Schema = {}
        required = node.get("required", ())
        for name, field in node["properties"].items():
            made = self.of(field, f"{path}.{name}", seen)
            if not made.get("description"):
                raise UnfitModelError(f"{path}.{name}: no description; `kubectl explain` would have nothing to say")
            if made.pop(TEMPLATE, False):
                _forget_before(made)
            made_by_factory = name not in required and "default" not in field
            if self._defaults and made_by_factory and made.get("properties") and _has_defaults(made):
                made["default"] = {}
            if (message := made.pop(IMMUTABLE, None)) is not None:
                _add_rule(made, Rule("self == oldSelf", message))
                if name not in required and "default" not in made:
                    # A rule on an optional field is not asked when the field comes or goes.
                    known = _cel_name(name)
                    _add_rule(out, Rule(f"has(self.{known}) == has(oldSelf.{known})", message, field=f".{name}"))
            properties[name] = _ordered(made)
        return properties

    @staticmethod
    def _anonymous(schema: Schema) -> Schema:
        """The schema of an element: the field that holds it has described it unless it is an object."""
        if "properties" not in schema:
            schema.pop("description", None)
        return schema


def _merged(base: Schema, beside: Schema) -> Schema:
    """`base` overlaid with what stands beside the reference; validations of both hold."""
    merged = {**base, **beside}
    if _VALIDATIONS in base and _VALIDATIONS in beside:
        merged[_VALIDATIONS] = [*base[_VALIDATIONS], *beside[_VALIDATIONS]]
    return merged


def _add_rule(schema: Schema, rule: Rule) -> None:
    schema[_VALIDATIONS] = [*schema.get(_VALIDATIONS, ()), rule.as_json()]


def _forget_before(schema: Schema) -> None:
    """Take out of `schema`, and of all below it, the rules about what was there before."""
    rules = [entry for entry in schema.get(_VALIDATIONS, ()) if "oldSelf" not in entry["rule"]]
    if rules:
        schema[_VALIDATIONS] = rules
    else:
        schema.pop(_VALIDATIONS, None)
    for below in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(below, dict):
            _forget_before(below)


def _cel_name(name: str) -> str:
    """A field's name as CEL rules write it: reserved words are escaped."""
    return f"__{name}__" if name in _CEL_RESERVED else name


def _has_defaults(schema: Schema) -> bool:
    """Whether an empty object of this schema would be filled in."""
    return any("default" in field for field in schema.get("properties", {}).values())


def _checked(schema: Schema, path: str) -> Schema:
    """`schema`, if a CRD can say it. `format` is refused: a list passes as a string that has one (TECH.md)."""
    unknown = set(schema) - set(_ORDER) - {IMMUTABLE, TEMPLATE}
    if unknown:
        raise UnfitModelError(f"{path}: a CRD cannot have {', '.join(sorted(unknown))} here")
    if schema.get(_INT_OR_STRING):
        schema.pop("type", None)
    elif "anyOf" in schema:
        raise UnfitModelError(f"{path}: a union of several types; use one optional field for each")
    elif "type" not in schema:
        raise UnfitModelError(f"{path}: no type; unknown fields would have to be kept")
    if schema.get("type") == "number":
        _bound_fractions(schema)
    if schema.get("additionalProperties") is True:
        raise UnfitModelError(f"{path}: a map of anything; say what its values are")
    return _ordered(schema)


def _bound_fractions(schema: Schema) -> None:
    """Bounds that are no whole numbers, once more as rules.

    The API server cuts such a bound to a whole number when the value is written as one: 0 passes `minimum: 0.1`
    (k8s.io/kube-openapi, `MinimumNativeType`).
    """
    for keyword, sign, words in (("minimum", ">=", "at least"), ("maximum", "<=", "at most")):
        bound = schema.get(keyword)
        if bound is not None and bound != int(bound):
            _add_rule(schema, Rule(f"self {sign} {bound}", f"must be {words} {bound}"))


def _ordered(schema: Schema) -> Schema:
    return {key: schema[key] for key in (*_ORDER, IMMUTABLE, TEMPLATE) if key in schema}
