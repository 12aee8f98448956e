"""Fixtures in a model file."""

from __future__ import annotations

import numpy as np

from skanomaly_vit._images.fixture_files import as_text, from_text
from skanomaly_vit.detector._fixtures import Fixtures, Numbers
from skanomaly_vit.persistence._record import StateRecord


def write_fixtures(record: StateRecord, fixtures: Fixtures) -> None:
    """Write fixtures as a part of `record`."""
    part, numbers = record.write_part("fixtures"), fixtures.numbers
    part.write(
        files=[as_text(content) for content in fixtures.files],
        digests=numbers.digests,
        n_pixels=len(numbers.pixels),
        n_inputs=numbers.inputs.shape[1],
        n_features={view: rows.shape[1] for view, rows in numbers.features.items()},
        n_blocks=numbers.errors.shape[1],
        n_known=numbers.known.shape[1],
        unit=fixtures.unit,
    )
    for name in ("pixels", "inputs", "errors", "scores", "known"):
        part.write_tensor(name, np.ascontiguousarray(getattr(numbers, name)))
    for view, rows in numbers.features.items():
        part.write_tensor(f"features.{view}", rows)


def read_fixtures(record: StateRecord, n_spaces: int) -> Fixtures | None:
    """The inverse of `write_fixtures`; older files hold no fixtures."""
    if "fixtures" not in record.values:
        return None
    part = record.read_part("fixtures")
    files = [from_text(text) for text in part.read_list("files", str)]
    digests, n = part.read_list("digests", str), len(files)
    if not n or len(digests) != n:
        raise ValueError(f"{part.name} holds {n} files and {len(digests)} digests")
    of_views = part.read_part("n_features")
    views = list(of_views.values)
    numbers = Numbers(
        digests=digests,
        pixels=part.read_array("pixels", part.read_int("n_pixels"), dtype=np.float32),
        inputs=part.read_array("inputs", n, part.read_int("n_inputs"), dtype=np.float32),
        features={
            view: part.read_array(f"features.{view}", n, of_views.read_int(view), dtype=np.float32)
            for view in views
        },
        errors=part.read_array("errors", n, part.read_int("n_blocks")),
        scores=part.read_array("scores", n_spaces, n),
        known=part.read_array("known", n_spaces, part.read_int("n_known")),
    )
    unit = part.read_number("unit", positive=True)
    part.close()
    return Fixtures(files, numbers, unit)
