"""Threads of BLAS, limited while matrices are small."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from threadpoolctl import ThreadpoolController

from skanomaly_vit._utils.shared_context import SharedContext

#: Below this number of values in a matrix, BLAS gets one thread.
_SMALL = 2**22


def one_blas_thread(n_values: int) -> AbstractContextManager[Any]:
    """Limit BLAS to one thread while densities see few numbers.

    On small matrices its threads fight over the cores with those of torch, which still spin after
    a pass of the network. A search that finds all in `memory` then takes twice the time.
    """
    if n_values >= _SMALL:
        return nullcontext()
    return _limited_blas()


@contextmanager
def _limit_blas() -> Iterator[None]:
    # In threads that end at once: as long as the thread that first set a limit lives,
    # threadpoolctl ignores all others, and here the last of several scoring threads lifts it.
    with ThreadPoolExecutor(1) as pool:
        limit = functools.partial(_thread_pools().limit, limits=1, user_api="blas")
        limiter = pool.submit(limit).result()
    yield
    with ThreadPoolExecutor(1) as pool:
        pool.submit(limiter.restore_original_limits).result()


#: One limit for the whole process: several of its threads may score at once.
_limited_blas = SharedContext(_limit_blas)


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """Find the libraries with threads, once: the search takes longer than a fit of densities."""
    return ThreadpoolController()
