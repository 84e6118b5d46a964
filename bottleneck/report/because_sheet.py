"""Draw the training images that pull predictions most: a strip for each prediction."""

from __future__ import annotations

from pathlib import Path

from bottleneck.models.because import Because
from bottleneck.report.image_sheets import ACROSS, MOST_LINES, Strip, Tile, cached_thumbnails, contact_sheet
from bottleneck.store.reader import FeatureCache

LINES = 2  # of tiles for each prediction
LEGEND = "Positive: pulls towards the class. Negative: pulls away from it."


def because_sheet(found: Because, path: str | Path) -> Path:
    """Draw the result of `because` to a PNG, up to five predictions with eight training images each.

    An image that cannot be read from the source of the cache is an empty frame with the reason.
    """
    strips = []
    for one in found.pulls[: MOST_LINES // LINES]:
        over = "" if one["against"] is None else f" over {one['against']}"
        tiles = [
            Tile(
                each["image"], caption=(Path(each["image"]).name, str(each["given"]), f"{each['pull']:+.3f}")
            )
            for each in one["training"][: LINES * ACROSS]
        ]
        strips.append(Strip(f"{one['class']}{over}: {one['image']}", tiles))
    keys = sorted({tile.image for strip in strips for tile in strip.tiles})
    with FeatureCache(found.cache) as cache:
        pictures = cached_thumbnails(cache, keys)
    left_out = len(found.pulls) - len(strips)
    more = f" {left_out:,} more predictions are in --json." if left_out else ""
    return contact_sheet(strips, pictures, path, footer=LEGEND + more)
