"""How values become colours, wherever they are drawn: displays, reports, pictures of maps."""

from __future__ import annotations

#: matplotlib's name. Brightness rises evenly from end to end, so that it means the same in grey
#: and to the colour-blind; over a grey image it stands out more than cividis or viridis do.
SEQUENTIAL = "inferno"
#: Of the highest value of an anomaly map over its image; lower ones leave more of it to be seen.
OPACITY = 0.85
#: Brightness that is left to an image under its map, so that light is not taken for abnormal.
DIMMED = 0.6
