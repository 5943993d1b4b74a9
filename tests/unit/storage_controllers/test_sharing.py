"""Who may use which image, and what those learn who may not."""

from __future__ import annotations

import pytest

from kumulus.api.image import ClusterImage, Image
from kumulus_controllers.storage.sharing import AnyImage, NotUsable, Reference, usable

SPEC = {"source": {"oci": {"reference": "quay.io/a"}}, "format": "qcow2"}


def image(*allowed: str, deleting: bool = False, namespace: str = "golden") -> Image:
    metadata = {"name": "debian", "namespace": namespace, "uid": "u"}
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return Image.parse({"metadata": metadata, "spec": {**SPEC, "allowedNamespaces": list(allowed)}})


def cluster_image(*allowed: str) -> ClusterImage:
    return ClusterImage.parse({"metadata": {"name": "debian"}, "spec": {**SPEC, "allowedNamespaces": list(allowed)}})


OWN, NAMED, FOREIGN = (
    Reference("debian", "golden"),
    Reference("debian", "golden", "golden"),
    Reference("debian", "team", "golden"),
)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (image(), OWN), (image(), NAMED), (image("team"), FOREIGN), (image("other", "team"), FOREIGN),
        (cluster_image(), OWN), (cluster_image("golden"), OWN),
    ],
)  # fmt: skip
def test_may(found: AnyImage, wanted: Reference) -> None:
    assert usable(found, wanted) is found


@pytest.mark.parametrize(
    ("found", "wanted", "reason"),
    [
        (None, OWN, "ImageNotFound"), (None, NAMED, "ImageNotFound"), (image(deleting=True), OWN, "ImageNotFound"),
        (cluster_image("other"), OWN, "ImageNotAllowed"), (cluster_image("team"), FOREIGN, "ImageNotAllowed"),
        (None, FOREIGN, "ImageNotAllowed"), (image(), FOREIGN, "ImageNotAllowed"), (image("tea", "teams"), FOREIGN, "ImageNotAllowed"),
        (image("team", deleting=True), FOREIGN, "ImageNotAllowed"),
    ],
)  # fmt: skip
def test_may_not(found: AnyImage | None, wanted: Reference, reason: str) -> None:
    refused = usable(found, wanted)
    assert isinstance(refused, NotUsable) and refused.reason == reason


def test_nobody_learns_whether_there_is_one() -> None:
    said = {usable(found, FOREIGN) for found in (None, image(), image("other"), image("team", deleting=True))}  # type: ignore[type-var]
    assert len(said) == 1
