"""The range of values that pictures of anomaly maps show."""

from __future__ import annotations

from typing import Any

import numpy as np

#: The same for all pictures, so that those of several calls compare. In standard deviations of
#: normal patches, from their mean: few normal patches exceed the lower end, which shows the image
#: as it is; patches of plain defects reach the upper one.
MAP_RANGE = (2.0, 8.0)


def check_map_range(map_range: Any) -> tuple[float, float]:
    """The two ends of a range, `MAP_RANGE` for None; a ValueError if there is nothing between."""
    if map_range is None:
        return MAP_RANGE
    try:
        low, high = (float(end) for end in map_range)
    except (TypeError, ValueError) as error:
        raise ValueError(f"map_range={map_range!r} is no pair of numbers (low, high)") from error
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"map_range={map_range!r} has to be finite, with low below high")
    return low, high
