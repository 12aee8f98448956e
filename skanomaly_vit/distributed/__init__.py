"""Distributed computing: the ranks of torchrun share the work of a fit.

The backends of joblib, such as Dask, need nothing from here: see docs/how_to/distributed.md.
"""

from skanomaly_vit.distributed._torchrun import torchrun

__all__ = ["torchrun"]
