"""Which images leave a pool: no more than needed, the longest unused first, and never what must stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.storage import ImageCacheLimits
from kumulus_controllers.storage.eviction import Cached, Room, leaving

GIB = 1 << 30
ROOMY = Room(capacity=100 * GIB, used=50 * GIB)


def cached(name: str, used_at: float, size: int = GIB, spared: str | None = None) -> Cached:
    return Cached(name, size, used_at, spared)


def names(images: list[Cached]) -> list[str]:
    return [image.order for image in images]


def test_nothing_goes_while_there_is_room() -> None:
    assert not leaving([cached("a", 1)], ROOMY, ImageCacheLimits())
    assert not leaving([cached("a", 1)], ROOMY, ImageCacheLimits(max_size="1Gi"))


def test_what_was_not_used_for_longest_goes_first_and_no_more_than_needed() -> None:
    images = [cached("new", 9), cached("old", 1), cached("older", 0, size=1), cached("middle", 5)]
    assert names(leaving(images, ROOMY, ImageCacheLimits(max_size="2Gi"))) == ["older", "old"]
    full = Room(capacity=100 * GIB, used=99 * GIB)
    assert names(leaving(images, full, ImageCacheLimits(min_free="3Gi"))) == ["older", "old", "middle"]


def test_an_image_that_did_not_fit_makes_one_go() -> None:
    short = Room(100 * GIB, 10 * GIB, short=True)
    assert names(leaving([cached("a", 1), cached("b", 2)], short, ImageCacheLimits())) == ["a"]


def test_what_is_spared_stays_and_counts() -> None:
    images = [cached("used", 0, spared="in use"), cached("free", 5), cached("pinned", 1, spared="pinned")]
    assert names(leaving(images, ROOMY, ImageCacheLimits(max_size="0"))) == ["free"]


@given(
    st.lists(
        st.builds(
            Cached, st.uuids().map(str), st.integers(1, GIB), st.floats(0, 1e9), st.sampled_from([None, "in use"])
        )
    ),
    st.integers(0, 10 * GIB),
)
def test_the_limit_holds_or_nothing_more_can_go(images: list[Cached], limit: int) -> None:
    gone = leaving(images, Room(100 * GIB, 0), ImageCacheLimits(max_size=str(limit)))
    kept = [image for image in images if image not in gone]
    assert all(image.spared is None for image in gone)
    assert sum(image.size for image in kept) <= limit or all(image.spared for image in kept)
    if gone:
        last = max(gone, key=lambda image: (image.used_at, image.order))
        assert sum(image.size for image in [*kept, last]) > limit, "one less would not have done"
