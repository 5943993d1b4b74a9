"""From where a host gets an image: from other hosts that have it whole, or from its source. Reads caches only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from kumulus.api.base import ConditionStatus
from kumulus.api.fabric import Host, HostCondition, host_namespace
from kumulus.api.host import HostReport, WorkOrder, WorkState, WorkType
from kumulus.api.image import ClusterImage, Image, ImageContent, ImageSource
from kumulus.api.image_order import MEASURING, ImageCopy, ImagePeer
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.orders import FOR_UID, host_of, work_orders

PEERS = 4
"""Hosts that an order names at most."""

AnyImage = Image | ClusterImage

_UNDER_WAY = (None, WorkState.PENDING, WorkState.WAITING, WorkState.WORKING)


def refetchable(source: ImageSource) -> bool:
    """Whether the image can be had from its source again."""
    return source.http is not None or source.oci is not None


@dataclass(frozen=True, slots=True)
class _Holder:
    """A host that has the image."""

    peer: ImagePeer
    content: ImageContent


class Copies:
    """Who has which image."""

    def __init__(self, caches: Caches) -> None:
        self._hosts = caches.store(Host)
        self._reports = caches.store(HostReport)
        self._orders = work_orders(caches)

    def plan(self, image: AnyImage, host: str) -> tuple[ImageCopy | None, str | None]:
        """Whom `host` is to ask for the image before its source, and the host of its zone that it is to wait for instead.

        Within a zone an image comes from its source once. Hosts of other zones are asked only for what cannot be had
        from a source.
        """
        found = self._hosts.get(host)
        zone = found.spec.zone if found is not None else None
        near: list[_Holder] = []
        far: list[_Holder] = []
        first: str | None = None
        for order in self._orders.by(FOR_UID, f"{WorkType.DISK}/{image.uid}"):
            name, other = host_of(order), self._hosts.get(host_of(order))
            if name == host or other is None or order.deleting:
                continue
            peer = self.peer(other)
            facts = order.status.disk
            same = other.spec.zone == zone
            if peer is None:
                continue
            if order.status.state is WorkState.READY and order.status.reason != MEASURING:
                if facts is not None and facts.content is not None:
                    (near if same else far).append(_Holder(peer, facts.content))
            elif same and _fetching(order):
                first = min(name, first or name)
        if not near and not refetchable(image.spec.source):
            near = far
        if not near:
            return None, first
        # A zone that fetched the image for itself has a file of its own making, equal in what a guest sees.
        known = image.status.content
        same_as = min(near, key=lambda holder: (holder.content != known, holder.peer.host)).content
        peers = sorted((holder.peer for holder in near if holder.content == same_as), key=_spread(image.uid, host))
        return ImageCopy(content=same_as, peers=tuple(peers[:PEERS])), None

    def peer(self, host: Host) -> ImagePeer | None:
        """How others reach the host; None when they cannot, or it is not there."""
        ready = host.status.condition(HostCondition.READY)
        report = self._reports.get(host.name, host_namespace(host.name))
        facts = report.status.transfer if report is not None else None
        if facts is None or host.deleting or ready is None or ready.status is not ConditionStatus.TRUE:
            return None
        return ImagePeer(host=host.name, address=facts.address, port=facts.port)


def _fetching(order: WorkOrder) -> bool:
    """Whether the image is on its way to that host, and not by way of others that wait."""
    wanted = order.spec.disk.import_image if order.spec.disk is not None else None
    if wanted is None or wanted.wait_for is not None:
        return False
    return order.status.state in _UNDER_WAY or order.status.state is WorkState.READY


def _spread(image: str, host: str) -> Callable[[ImagePeer], bytes]:
    """An order of peers that differs from host to host, so that not all ask the same."""

    def rank(peer: ImagePeer) -> bytes:
        return hashlib.sha256(f"{image}/{host}/{peer.host}".encode()).digest()

    return rank
