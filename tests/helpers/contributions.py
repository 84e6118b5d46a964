"""The contributions of an explanation by pixel."""

import numpy as np


def by_pixel(one):
    """The contribution of each pixel, (size, size): a place spreads its own evenly over what it covers."""
    total = np.zeros((one.size, one.size))
    for values in one.maps[0].values():
        sides = []
        for count in values.shape:  # the share of each place that is in each pixel, (size, count)
            ends, part = np.arange(one.size + 1) * count / one.size, np.arange(count)
            sides.append(np.minimum(ends[1:, None], part + 1) - np.maximum(ends[:-1, None], part))
        rows, columns = (np.clip(side, 0, None) for side in sides)
        total += rows @ values @ columns.T
    return total
