"""Work on many processes: the ranks of torchrun, whose GPUs a fit shares.

Joblib's backends, Dask among them, need nothing from here: see `docs/how_to/distributed.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from skanomaly_vit._ranks import sharing_ranks

__all__ = ["torchrun"]


@contextmanager
def torchrun() -> Iterator[None]:
    """Share the work of estimators among the processes that torchrun has started.

    Within the ``with`` block all ranks make the same calls with the same images. Each passes its
    share of the images through the backbone, trains the block students of its share of the blocks,
    and has the rest from the others: all end with the same results, which are those of one process
    to the bit.

    Yields
    ------
    None
        Nothing; results come from the estimators.

    Raises
    ------
    RuntimeError
        If there are no ranks: the script was not started by torchrun, and
        ``torch.distributed.init_process_group`` has not been called.

    See Also
    --------
    joblib.parallel_config : Shares the work among the workers of Dask, Ray, Spark or this machine.

    Notes
    -----
    It has to be asked for, since a call that only one of the ranks makes would wait for the
    others forever. ``torch.distributed`` is initialised (with gloo) if it is not yet, and left as
    it was found. With ``device=None`` a rank runs on its own GPU. Where `random_state` is no
    int, rank 0 draws for all. Ranks that were given different images get a ValueError.

    Examples
    --------
    A script ``fit.py`` for two GPUs, to be started with ``torchrun --nproc-per-node=2 fit.py``:

    >>> from skanomaly_vit import TransformalyDetector
    >>> from skanomaly_vit.engines import torchrun
    >>> def main(paths):
    ...     with torchrun():
    ...         return TransformalyDetector(student="block", random_state=0).fit(paths)
    """
    with sharing_ranks():
        yield
