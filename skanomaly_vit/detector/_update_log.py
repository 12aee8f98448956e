"""Log of what was added to a fitted detector, and when, for its model card."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import numpy as np

from skanomaly_vit.persistence._record import StateRecord

#: Key -> type of each value of an entry.
_CONTENT = {"date": str, "what": str, "n_images": int, "n_calibrating": int, "digest": str}


def log_entry(what: str, contents: np.ndarray, n_calibrating: int) -> dict[str, Any]:
    """Entry of a lot of images.

    Parameters
    ----------
    what : str
        The method that added them.
    contents : ndarray of shape (n_images,), float64
        Ids of their contents (see `find_units`).
    n_calibrating : int
        Images of the lot that set the threshold.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "what": what,
        "n_images": len(contents),
        "n_calibrating": int(n_calibrating),
        "digest": digest_lot(contents),
    }


def digest_lot(contents: np.ndarray) -> str:
    """Digest of the contents of a lot, whatever their order; 64 hexadecimal digits."""
    return hashlib.sha256(np.sort(contents).astype("<f8").tobytes()).hexdigest()


def write_updates(record: StateRecord, updates: list[dict[str, Any]]) -> None:
    """Write a log; an empty one writes nothing."""
    if updates:
        record.write(updates=updates)


def read_updates(record: StateRecord) -> list[dict[str, Any]]:
    """The inverse of `write_updates`; older files have no log."""
    if "updates" not in record.values:
        return []
    updates = record.read_list("updates", dict)
    for entry in updates:
        if entry.keys() != _CONTENT.keys() or any(
            not isinstance(entry[key], kind) for key, kind in _CONTENT.items()
        ):
            raise ValueError(f"{record.name}.updates has the entry {entry!r}")
    return updates
