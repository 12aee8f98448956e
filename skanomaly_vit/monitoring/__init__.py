"""Monitoring: a line of images watched over time, from scores or p-values alone.

`LineMonitor` says that the line has changed, with a guarantee that may be read after every image.
`OnlineFDR` flags images one after the other at a bounded false-discovery rate. Both keep a small
state, which `to_dict` writes for JSON, so that a script that runs every night goes on where it
stopped.
"""

from skanomaly_vit.monitoring._monitor import LineMonitor
from skanomaly_vit.monitoring._online_fdr import OnlineFDR

__all__ = ["LineMonitor", "OnlineFDR"]
