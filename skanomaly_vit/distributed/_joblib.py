"""Engines: the active backend of joblib, or the ranks of torchrun."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import joblib
import torch
from joblib.parallel import get_active_backend

from skanomaly_vit._utils.torch_settings import (
    Settings,
    autocast_of,
    named,
    settings_here,
    under,
)
from skanomaly_vit.distributed._lost_tasks import Outstanding, is_loss
from skanomaly_vit.distributed._tasks import (
    Engine,
    Failure,
    Function,
    Result,
    SharedObjects,
    Success,
    Task,
    run_task,
)
from skanomaly_vit.distributed._torchrun import current_ranks

#: Number of received objects that a process keeps.
_HELD = 4


def active_engine() -> Engine | None:
    """Engine that the user has chosen; None to work in this process alone.

    A task of a joblib call, such as a fit of a grid search, is not split again.
    """
    ranks = current_ranks()
    if ranks is not None:
        return ranks
    # Inside a task of other backends, joblib reports one worker.
    n_workers = 1 if _is_dask_task() else joblib.effective_n_jobs(None)
    return JoblibEngine(n_workers) if n_workers > 1 else None


def _is_dask_task() -> bool:
    # joblib restarts its count of nesting in each worker of Dask.
    if "distributed" not in sys.modules:
        return False
    try:
        sys.modules["distributed"].get_worker()
    except ValueError:
        return False
    return True


# Under joblib


class JoblibEngine:
    """Runs tasks on the active backend of joblib.

    Parameters
    ----------
    n_workers : int
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers

    def run(
        self, function: Function[Result], shared: SharedObjects, tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """See `Engine`."""
        stopped = threading.Event()
        rest = itertools.takewhile(lambda task: not stopped.is_set(), tasks)
        backend, _ = get_active_backend()
        shares_memory = getattr(backend, "supports_sharedmem", False)
        outcomes = (self._run_in_threads if shares_memory else self._run_in_processes)(
            function, shared, rest
        )
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                # Wait for running tasks: joblib aborts by killing workers.
                stopped.set()
                deque(outcomes, maxlen=0)
            yield outcome.result()

    def _run_in_threads(
        self, function: Function[Result], shared: SharedObjects, tasks: Iterable[Task]
    ) -> Iterator[Success[Result] | Failure]:
        """Run tasks in threads of this process."""
        settings = settings_here()  # autocast is a thread's own
        return self._in_order(
            joblib.delayed(_run_in_thread)(function, shared, task, settings) for task in tasks
        )

    def _run_in_processes(
        self, function: Function[Result], shared: SharedObjects, tasks: Iterable[Task]
    ) -> Iterator[Success[Result] | Failure]:
        """Run tasks in processes that share no memory, and perhaps no disk, with this one."""
        # The rounding of some sums depends on the number of threads.
        n_threads, settings = torch.get_num_threads(), tuple(settings_here().values())
        outstanding = Outstanding(tasks)
        missed = False

        def call(task: Task, *, whole: bool) -> Any:
            sent = objects if whole else [shared_object.by_name() for shared_object in objects]
            return joblib.delayed(_run_here)(function, sent, packed(task), n_threads, settings)

        def results() -> Iterator[Success[Result] | Failure]:
            nonlocal missed
            calls = (call(task, whole=missed) for task in outstanding.hand_out())
            for result in map(pickle.loads, self._in_order(calls)):
                if isinstance(result, _Missing):
                    # This worker cannot see the folder. From now on the objects go with each task.
                    missed = True
                    (again,) = self._in_order([call(outstanding.first, whole=True)])
                    result = pickle.loads(again)
                outstanding.settle()
                yield result

        with TemporaryDirectory(prefix="skanomaly-", dir=_shared_folder()) as folder:
            objects = [SharedObject.pack(thing, folder) for thing in shared]
            while True:
                try:
                    yield from results()
                    return
                except Exception as error:
                    if not is_loss(error):
                        raise
                    outstanding.lose(error)

    def _in_order(self, calls: Iterable[Any]) -> Iterator[Any]:
        backend, _ = get_active_backend()
        # A shard is no quick task: joblib must not batch several.
        if backend.supports_return_generator:
            yield from joblib.Parallel(batch_size=1, return_as="generator")(calls)
            return
        # Other backends (Ray, Spark) give all results at once: send tasks in waves.
        iterator = iter(calls)
        while wave := list(itertools.islice(iterator, 4 * self.n_workers)):
            yield from joblib.Parallel(batch_size=1)(wave)


def packed(thing: Any) -> bytes:
    """Pickle a thing, so that a backend has no say in how.

    Arrays that Ray hands over, and large ones of other backends, lie in a store that they share,
    and may not be written to.
    """
    # The script of the user may define the class of a network; pickle would leave it behind.
    return pickle.dumps(joblib.wrap_non_picklable_objects(thing, keep_wrapper=False))


def _shared_folder() -> str | None:
    """Folder that the user sets for files shared by joblib's workers; None is the system's."""
    return os.environ.get("JOBLIB_TEMP_FOLDER")


@dataclass(frozen=True)
class SharedObject:
    """An object that travels under the digest of its content.

    Attributes
    ----------
    digest : bytes
    path : str
        A file with the content, for workers that can read it.
    content : bytes or None
        None leaves it to the file.
    """

    digest: bytes
    path: str
    content: bytes | None

    @classmethod
    def pack(cls, thing: Any, folder: str) -> SharedObject:
        """Write an object into a file named after its content."""
        content = packed(thing.pack() if hasattr(thing, "pack") else thing)
        digest = hashlib.sha256(content)
        path = os.path.join(folder, digest.hexdigest())
        with open(path, "wb") as file:
            file.write(content)
        return cls(digest.digest(), path, content)

    def by_name(self) -> SharedObject:
        """The shared object without its content."""
        return replace(self, content=None)

    def open(self) -> Any:
        """Return the object, or raise `_MissingError` if the file cannot be read."""
        content = self.content
        if content is None:
            try:
                with open(self.path, "rb") as file:
                    content = file.read()
            except OSError as error:
                raise _MissingError(self.path) from error
        # The digest came with the task. Never unpickle a file that anyone may have written.
        if hashlib.sha256(content).digest() != self.digest:
            raise _MissingError(self.path)
        packed = pickle.loads(content)
        return packed.unpack() if hasattr(packed, "unpack") else packed


class _MissingError(Exception):
    """Raised for a shared object that its worker cannot find."""


class _Missing:
    """Outcome of a task whose worker cannot find a shared object."""


#: Objects received by this process, by digest.
_held: OrderedDict[bytes, Any] = OrderedDict()

_held_lock = threading.Lock()


def _unpacked(shared_object: SharedObject) -> Any:
    # One lock for all: if several threads want the same backbone, one loads it.
    with _held_lock:
        if shared_object.digest not in _held:
            _held[shared_object.digest] = shared_object.open()
            if len(_held) > _HELD:
                _held.popitem(last=False)
        _held.move_to_end(shared_object.digest)
        return _held[shared_object.digest]


def _run_in_thread(
    function: Function[Result], shared: SharedObjects, task: Task, settings: Settings
) -> Success[Result] | Failure:
    """Run a task in another thread, under autocast if its sender is."""
    with autocast_of(settings):
        return run_task(function, shared, task)


def _run_here(
    function: Function[Result],
    objects: Sequence[SharedObject],
    task: bytes,
    n_threads: int,
    settings: tuple[Any, ...],
) -> bytes:
    """Run a packed task in a worker, with the number of threads and the settings of its sender."""
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)
    try:
        with under(named(settings)):
            shared = tuple(_unpacked(shared_object) for shared_object in objects)
            return packed(run_task(function, shared, pickle.loads(task)))
    except _MissingError:
        return packed(_Missing())
    except Exception as error:  # noqa: BLE001 - `result` raises it again
        return packed(Failure(error))
