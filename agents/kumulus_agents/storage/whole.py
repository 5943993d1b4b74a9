"""Whole images as they go from pool to pool: the file itself, converted and immutable, known by its digest.

A driver that keeps images as files offers this beside `StorageDriver`; one that keeps them otherwise can take them, and one
that offers neither simply gets its images from their sources.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from kumulus.api.image import ImageContent
from kumulus.api.image_order import ImageRef
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import ProgressListener, StoredImage

Receive = Callable[[Part, Pace], Awaitable[None]]
"""Makes a part whole: when it returns, the part has the bytes and the digest that were asked for. Raises `StorageError`."""


@runtime_checkable
class TakesImages(Protocol):
    """A pool that takes whole images."""

    async def copy_image(
        self, image: ImageRef, content: ImageContent, receive: Receive, progress: ProgressListener
    ) -> StoredImage:
        """Bring an image into the pool as another pool has it: receive (resuming a cut transfer), inspect in the cage like
        any file nobody trusts, settle. There already: nothing. Cancelling leaves a resumable part.

        Raises `StorageError`; nothing of a refused image stays.
        """


@runtime_checkable
class WholeImages(TakesImages, Protocol):
    """A pool that gives and takes whole images."""

    async def measure_image(self, uid: str) -> ImageContent | None:
        """What the file of the image is, to the byte; None when the image is not whole. Reads all of it once, and then
        knows (`StoredImage.content`). Raises `StorageError`."""

    async def open_image(self, uid: str, sha256: str) -> int | None:
        """A descriptor to read the image's file, which the caller closes; None unless it is whole and has that digest."""


@runtime_checkable
class TakesUploads(Protocol):
    """A pool into which images can be uploaded."""

    @property
    def upload_max(self) -> int:
        """Bytes that an upload may have."""

    def upload(self, uid: str) -> AbstractAsyncContextManager[Part]:
        """What has arrived of an image, to go on with. Nobody else has it inside the block.

        Raises `StorageError(reason="Busy")` while somebody has.
        """

    async def uploaded(self, uid: str, idle_seconds: float) -> bool:
        """Whether all of the image has arrived and waits to be imported. Cheap. A part that nothing was added to for so
        long is removed. Raises `StorageError`."""
