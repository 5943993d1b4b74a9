"""Which image a name means, and whether it may be used there. Pure but for `Images`, which looks it up.

A name means an Image of the user's own namespace, else a ClusterImage; with a namespace, an Image of that
one alone. Who may not use an image of another namespace does not learn whether there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.image import ClusterImage, Image
from kumulus.runtime.reconciler import Caches

AnyImage = Image | ClusterImage


@dataclass(frozen=True, slots=True)
class Reference:
    """An image as somebody in a namespace names it."""

    name: str
    user: str
    """The namespace of who uses it."""
    namespace: str | None = None
    """The namespace that is named for the image."""

    @property
    def key(self) -> str:
        """What it is called among what one user names."""
        return f"{self.namespace}/{self.name}" if self.namespace is not None else self.name

    @property
    def foreign(self) -> bool:
        """Whether another namespace is named."""
        return self.namespace is not None and self.namespace != self.user


@dataclass(frozen=True, slots=True)
class NotUsable:
    """Why the image may not be used."""

    reason: str
    message: str


class Images:
    """The caches of both kinds."""

    def __init__(self, caches: Caches) -> None:
        self.images = caches.store(Image)
        self.cluster_images = caches.store(ClusterImage)

    def find(self, wanted: Reference) -> AnyImage | None:
        """What the name means, allowed or not."""
        if wanted.namespace is not None:
            return self.images.get(wanted.name, wanted.namespace)
        return self.images.get(wanted.name, wanted.user) or self.cluster_images.get(wanted.name)


def usable(image: AnyImage | None, wanted: Reference) -> AnyImage | NotUsable:
    """The image if it is there and may be used; its import may not be done."""
    if wanted.foreign:
        if isinstance(image, Image) and not image.deleting and wanted.user in image.spec.allowed_namespaces:
            return image
        return NotUsable(
            "ImageNotAllowed",
            f"There is no Image {wanted.name} in namespace {wanted.namespace} that may be used in namespace"
            f" {wanted.user}: its owner has to name {wanted.user} in its spec.allowedNamespaces.",
        )
    if image is None or image.deleting:
        where = "the namespace" if wanted.namespace is not None else "the namespace and no ClusterImage of that name"
        return NotUsable("ImageNotFound", f"There is no Image {wanted.name} in {where}.")
    allowed = image.spec.allowed_namespaces if isinstance(image, ClusterImage) else ()
    if allowed and wanted.user not in allowed:
        return NotUsable("ImageNotAllowed", f"ClusterImage {wanted.name} may not be used in namespace {wanted.user}.")
    return image
