"""Threads of BLAS, limited while matrices are small."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from threadpoolctl import ThreadpoolController

from skanomaly_vit._utils.shared_context import Shared

#: Values in a matrix below which BLAS is kept to one thread.
_SMALL = 2**22


def one_blas_thread(n_values: int) -> AbstractContextManager[Any]:
    """Keep BLAS to one thread while densities see few numbers.

    On small matrices its threads and those of torch, which go on waiting for work after a pass of
    the network, fight over the cores: twice the time of a search that finds all in `memory`.
    """
    if n_values >= _SMALL:
        return nullcontext()
    return _limited_blas()


@contextmanager
def _limit_blas() -> Iterator[None]:
    # In threads that end at once: threadpoolctl ignores all but the one that first set a limit, as
    # long as it lives, and here the last thread of several that score lifts it.
    with ThreadPoolExecutor(1) as pool:
        limit = functools.partial(_thread_pools().limit, limits=1, user_api="blas")
        limiter = pool.submit(limit).result()
    yield
    with ThreadPoolExecutor(1) as pool:
        pool.submit(limiter.restore_original_limits).result()


#: The limit is one for the whole process, of which several threads may score at once.
_limited_blas = Shared(_limit_blas)


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """The libraries with threads, which take longer to find than densities to fit."""
    return ThreadpoolController()
