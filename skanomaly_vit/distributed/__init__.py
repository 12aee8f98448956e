"""Work on many processes: the ranks of torchrun, whose GPUs a fit shares.

Joblib's backends, Dask among them, need nothing from here: see docs/how_to/distributed.md.
"""

from skanomaly_vit.distributed._torchrun import torchrun

__all__ = ["torchrun"]
