"""Checkpoints of a fit, to resume it after an interruption."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from skanomaly_vit._utils.files import write_atomically
from skanomaly_vit._utils.progress import log
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.distributed._torchrun import agreed, current_ranks
from skanomaly_vit.exceptions import CheckpointWarning, ModelFileError
from skanomaly_vit.persistence._container import read, refusal, write

if TYPE_CHECKING:
    import torch


#: Seconds between checkpoints within a pass; writing one takes about a second.
INTERVAL = 60.0

#: JSON values, and named tensors on the CPU.
Part: TypeAlias = "tuple[dict[str, Any], dict[str, torch.Tensor]]"

#: Written last: a checkpoint without it is not complete.
_SEAL = "complete.json"

#: Describes the images and parameters of a fit.
_IDENTITY = "fit.json"

_FOLDERS = "fit-"

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Checkpoints:
    """The checkpoints of one fit, each a folder of files with checksums; the last two are kept.

    Parameters
    ----------
    folder : Path or None
        Folder of this fit alone. ``None`` writes nothing.
    key : str
        Digest of all that the fit depends on; files with another one are ignored. Empty for no
        checkpoints.
    check : callable or None
        Called before each checkpoint, and raises an error if `key` is no longer that of the fit.
    """

    def __init__(
        self, folder: Path | None = None, key: str = "", check: Callable[[], None] | None = None
    ) -> None:
        self._folder = folder
        self._key = key
        self._check = check
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint within a pass."""
        return self._folder is not None and time.monotonic() - self._saved_at >= INTERVAL

    def latest(self, names: Iterable[str], verbose: int = 0) -> tuple[int, dict[str, Part]]:
        """Step and parts of the last good checkpoint that has parts of all `names`.

        Step 0 and no parts if there is none. All ranks follow the first.
        """
        if not self._key:
            return 0, {}
        return agreed(self._latest(names, verbose))

    def _latest(self, names: Iterable[str], verbose: int) -> tuple[int, dict[str, Part]]:
        if self._folder is None:
            return 0, {}
        wanted, unusable = sorted(names), []
        step, parts = 0, {}
        for step in reversed(sealed_steps(self._folder)):
            try:
                parts = self._read(step, wanted)
                break
            except ModelFileError as error:
                unusable.append(f"step {step} is unusable: {error.cause}")
        else:
            step = 0
        if unusable:
            self._warn(f"{'; '.join(unusable)}. The fit resumes after step {step}")
        if step:
            log(verbose, "resuming after step %d of %s", step, self._folder)
        return step, parts

    def save(self, step: int, parts: Iterable[tuple[str, Part]]) -> None:
        """Write a checkpoint, and remove all but it and the one before."""
        if self._folder is None:
            return
        if self._check is not None:
            self._check()
        before = [other for other in sealed_steps(self._folder) if other < step][-1:]
        try:
            _remove(self._folder, step)
            self._write(step, parts)
        except OSError as error:
            _remove(self._folder, step)
            self._warn(
                f"step {step} cannot be written: {error}. The fit goes on; after an interruption, "
                f"it would resume after step {before[0] if before else 0}"
            )
            return
        finally:
            self._saved_at = time.monotonic()
        for other in _all_steps(self._folder):
            if other not in (step, *before):
                _remove(self._folder, other)

    def discard(self) -> None:
        """Remove all checkpoints of a finished fit, now or at the end of `kept_checkpoints`."""
        postponed = _postponed.get()
        if postponed is not None:
            postponed.append(self)
        elif self._folder is not None:
            for step in _all_steps(self._folder):  # the newest last, in case this stops
                _remove(self._folder, step)
            shutil.rmtree(self._folder, ignore_errors=True)

    def warn_of_workers(self) -> None:
        """Warn that students trained in other processes have no checkpoints."""
        if self._folder is not None:
            self._warn(
                "workers write none for the block students that they train, so an interrupted fit "
                "starts again"
            )

    def _write(self, step: int, parts: Iterable[tuple[str, Part]]) -> None:
        folder = _folder_of(self._folder, step)
        folder.mkdir(parents=True)
        names = []
        for name, (values, tensors) in parts:
            whole = {"fit": self._key, "step": step, "values": values}
            write(_file_of(folder, name), whole, tensors)
            names.append(name)
        write_atomically(json.dumps({"parts": names}).encode(), folder / _SEAL)

    def _read(self, step: int, names: list[str]) -> dict[str, Part]:
        folder = _folder_of(self._folder, step)
        parts = {}
        for name in names:
            path = _file_of(folder, name)
            if not path.exists():
                raise refusal(str(path), f"it has no part {name!r}")
            whole, tensors, _ = read(str(path))
            if (whole.get("fit"), whole.get("step")) != (self._key, step):
                raise refusal(str(path), f"its part {name!r} is of another checkpoint")
            parts[name] = whole["values"], tensors
        return parts

    def _warn(self, what: str) -> None:
        message = f"Checkpoints in {str(self._folder)!r}: {what}."
        warn_user(message, CheckpointWarning)


#: Checkpoints of finished fits, kept for now.
_postponed: ContextVar[list[Checkpoints] | None] = ContextVar("postponed", default=None)


@contextmanager
def kept_checkpoints() -> Iterator[None]:
    """Keep the checkpoints of the fits in the block until the block succeeds.

    For a step after a fit, such as saving, whose failure must not cost the fit.
    """
    done: list[Checkpoints] = []
    token = _postponed.set(done)
    try:
        yield
    finally:
        _postponed.reset(token)
    for checkpoints in done:
        checkpoints.discard()


def check_checkpoint_dir(checkpoint_dir: str | os.PathLike[str] | None, random_state: Any) -> None:
    """Reject, before any work, a file in place of a folder, and a fit without a seed."""
    if checkpoint_dir is None:
        return
    if os.path.exists(checkpoint_dir) and not os.path.isdir(checkpoint_dir):
        raise ValueError(
            f"checkpoint_dir={os.fsdecode(checkpoint_dir)!r} is a file; checkpoints need a folder"
        )
    if random_state is None:
        raise ValueError(
            "checkpoint_dir needs a random_state: with None, each fit holds out other images and "
            "starts from other weights, so no fit can resume another. Pass an int, such as "
            "random_state=0."
        )


def open_checkpoints(
    checkpoint_dir: str | os.PathLike[str],
    key: bytes,
    identity: Mapping[str, Any],
    check: Callable[[], None] | None = None,
) -> Checkpoints:
    """Open the checkpoints of a fit; warn if there are only those of other fits.

    Parameters
    ----------
    checkpoint_dir : path
        Holds a folder for each interrupted fit. Created if missing.
    key : bytes
        Digest of all that the result depends on.
    identity : mapping of str to JSON value
        The same for people: the warning lists the differences. Digests are bytes.
    check : callable or None
        See `Checkpoints`.

    Raises
    ------
    OSError
        If the folder cannot be written to, unless the disk is full: space may come.
    """
    ranks = current_ranks()
    if ranks is not None and not ranks.is_first:
        return Checkpoints(None, key.hex())
    top = Path(checkpoint_dir)
    folder = top / f"{_FOLDERS}{key.hex()[:16]}"
    readable = {k: f"sha256:{v.hex()}" if isinstance(v, bytes) else v for k, v in identity.items()}
    if not sealed_steps(folder):
        _warn_of_others(top, readable)
    running = {"process": os.getpid(), "host": platform.node()}
    text = json.dumps({"identity": readable, **running}, indent=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(text.encode(), folder / _IDENTITY)
    except OSError as error:
        if error.errno not in _FULL:
            raise
    return Checkpoints(folder, key.hex(), check)


def _warn_of_others(top: Path, identity: Mapping[str, Any]) -> None:
    others = {}
    for path in top.glob(f"{_FOLDERS}*/{_IDENTITY}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(path.read_bytes())
            if sealed_steps(path.parent) and not _is_at_work(found["process"], found["host"]):
                others[path.parent] = _differences(found["identity"], identity)
    if not others:
        return
    nearest = min(others, key=lambda folder: (len(others[folder]), folder))
    warn_user(
        f"The checkpoint in {str(nearest)!r} is of another fit, which differs in "
        f"{', '.join(others[nearest])}. This fit ignores it and starts from the beginning, in a "
        "folder of its own. Delete the other one if you no longer need it.",
        CheckpointWarning,
    )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    values = {name: (there.get(name), here.get(name)) for name in names}
    return [
        name if str(a).startswith("sha256:") else f"{name} ({a!r} there, {b!r} here)"
        for name, (a, b) in values.items()
    ]


def _is_at_work(process: int, host: str) -> bool:
    """Test if the fit that wrote this is another running process of this machine."""
    if os.name != "posix" or host != platform.node() or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def sealed_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, in order."""
    return [step for step in _all_steps(folder) if (_folder_of(folder, step) / _SEAL).exists()]


def _all_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal())


def _folder_of(folder: Path | None, step: int) -> Path:
    return (folder or Path()) / f"{step:08d}"


def _file_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _remove(folder: Path, step: int) -> None:
    target = _folder_of(folder, step)
    with suppress(OSError):
        (target / _SEAL).unlink(missing_ok=True)  # first: half of a checkpoint is none
    shutil.rmtree(target, ignore_errors=True)
