"""Roles and policies beside the CRDs: what nobody of Kumulus is ever allowed, read from the files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from kumulus.api.registry import KINDS
from kumulus.crdgen.command import CHECKOUT

Raw = dict[str, Any]

MANIFESTS = CHECKOUT / "charts" / "kumulus" / "manifests"


def documents(name: str) -> list[Raw]:
    return [document for document in yaml.safe_load_all((MANIFESTS / name).read_text()) if document]


ROLES = [document for document in documents("rbac.yaml") if document["kind"] in ("ClusterRole", "Role")]


def grants(role: Raw) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Group, resource, verb and names, one by one."""
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield group, resource, verb, tuple(rule.get("resourceNames", ()))


def named(name: str) -> Raw:
    return next(role for role in ROLES if role["metadata"]["name"] == name and role["kind"] == "ClusterRole")


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role["kind"] + "-" + role["metadata"]["name"])
def test_nobody_gets_what_leads_further(role: Raw) -> None:
    ours = {resource.KIND.group: {} for resource in KINDS}
    for resource in KINDS:
        ours[resource.KIND.group][resource.KIND.plural] = resource.KIND
    for group, resource, verb, names in grants(role):
        assert "*" not in (group, resource, verb)
        assert verb not in ("escalate", "impersonate")
        assert not (resource == "secrets" and verb in ("list", "watch", "update", "patch"))
        assert resource.split("/")[0] not in ("nodes", "pods", "clusterrolebindings", "certificatesigningrequests")
        assert verb != "bind" or set(names) == {"kumulus-host-agent", "kumulus-host-join"}
        assert resource != "clusterroles" or verb == "bind"
        assert resource != "serviceaccounts/token" or names
        if group in ours:
            plural, _, sub = resource.partition("/")
            assert sub in ("", "status", "scale", "finalizers")
            assert ours[group][plural].status or sub != "status"
            assert ours[group][plural].scale or sub != "scale"
            assert verb == "update" or sub != "finalizers"
    assert not any(resource == "workorders" and verb == "create" for _, resource, verb, _ in grants(role)) or (
        role["metadata"]["name"] == "kumulus-controllers"
    )


def test_status_is_written_by_controllers_and_agents_only() -> None:
    for role in ROLES:
        written = {resource for _, resource, _, _ in grants(role) if resource.endswith("/status")}
        if written and role["metadata"]["name"] not in ("kumulus-controllers", "kumulus-host-agent"):
            assert (role["metadata"]["name"], written) == ("kumulus-events", {"eventsinks/status"})


def test_claims_are_written_by_the_controllers_only() -> None:
    for role in ROLES:
        written = {resource for _, resource, verb, _ in grants(role) if verb not in ("get", "list", "watch")}
        if role["metadata"]["name"] != "kumulus-controllers":
            assert not written & {"ipaddresses", "segmentids"}


def test_tenants_have_no_part_in_hosts() -> None:
    for name in ("kumulus-view", "kumulus-edit", "kumulus-admin", "kumulus-catalog"):
        groups = {(group, resource) for group, resource, _, _ in grants(named(name))}
        assert not any(
            group == "host.kumulus.io" or resource in ("hosts", "storagepools") for group, resource in groups
        )


def test_every_kind_is_somebody_s() -> None:
    for resource in KINDS:
        kind = resource.KIND
        readers = {
            role["metadata"]["name"]
            for role in ROLES
            for group, plural, verb, _ in grants(role)
            if (group, plural, verb) == (kind.group, kind.plural, "list")
        }
        reader = {"UnmanagedInstance": "kumulus-operator", "EventSink": "kumulus-events"}
        assert reader.get(kind.kind, "kumulus-controllers") in readers, kind.kind


def test_every_policy_fails_closed_and_is_bound() -> None:
    policies = documents("policies.yaml")
    names = {document["metadata"]["name"] for document in policies if document["kind"] == "ValidatingAdmissionPolicy"}
    bound = {
        document["spec"]["policyName"]
        for document in policies
        if document["kind"] == "ValidatingAdmissionPolicyBinding" and document["spec"]["validationActions"] == ["Deny"]
    }
    assert names == bound
    for document in policies:
        if document["kind"] == "ValidatingAdmissionPolicy":
            assert document["spec"]["failurePolicy"] == "Fail"
            for validation in document["spec"]["validations"]:
                assert validation.get("message") or validation.get("messageExpression")
