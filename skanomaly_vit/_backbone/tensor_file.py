"""Tensors in a temporary file, which goes when nobody holds it any longer."""

from __future__ import annotations

import errno
import os
import weakref
from dataclasses import dataclass
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, Any

import torch


@dataclass(frozen=True, slots=True)
class FiledTensor:
    """The place of a tensor in a file."""

    start: int
    shape: torch.Size
    dtype: torch.dtype


class TensorFile:
    """Tensors of a CPU, appended to a file and read from it.

    The file is read and not mapped: the pages of a mapped file count as memory of the process.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0
        self._lock = Lock()  # batches are read ahead in a thread

    def append(self, tensor: torch.Tensor) -> FiledTensor:
        """Write a tensor.

        Raises
        ------
        OSError
            If the folder for temporary files cannot take it.
        """
        data = _bytes_of(tensor.detach().contiguous())
        with self._lock:
            if self._file is None:
                # Without a buffer, which would hold what a full disk has refused.
                self._file = TemporaryFile(buffering=0)  # noqa: SIM115 - lives as this object
                weakref.finalize(self, self._file.close)
            self._file.seek(self._end)
            if self._file.write(data) < data.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            place = FiledTensor(self._end, tensor.shape, tensor.dtype)
            self._end += data.nbytes
        return place

    def read(self, place: FiledTensor) -> torch.Tensor:
        """Read a tensor, the same to the bit."""
        if self._file is None:
            raise ValueError("nothing was written")
        tensor = torch.empty(place.shape, dtype=place.dtype)
        data = _bytes_of(tensor)
        with self._lock:
            self._file.seek(place.start)
            if self._file.readinto(data) < data.nbytes:  # type: ignore[attr-defined]
                raise OSError(errno.EIO, "a temporary file was cut off")
        return tensor


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    values: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(values)
