"""Solar cells of the package elpv-dataset."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from skanomaly_vit._utils.labels import as_objects
from skanomaly_vit.datasets._folders import StrPath, find_file, find_folder

_ELPV = (
    "the data folder of elpv-dataset: labels.csv with lines 'images/<image> <probability of a "
    "defect: 0, 1/3, 2/3 or 1> <mono or poly>', and the images"
)


def load_elpv(path: StrPath | None = None) -> Bunch:
    """Load solar cells in electroluminescence images, functional and defective [1]_.

    Parameters
    ----------
    path : str or path-like, default=None
        The folder of ``labels.csv``. ``None`` finds the data in the Python package
        ``elpv-dataset``.

    Returns
    -------
    data : Bunch
        - ``images``: ndarray of shape (n,), dtype object, the paths, in the order of the list.
        - ``defect_probability``: ndarray of shape (n,), float: 0, 1/3, 2/3 or 1.
        - ``module_type``: ndarray of shape (n,), ``"mono"`` or ``"poly"`` (crystalline).
        - ``y``: ndarray of shape (n,), int, +1 where the probability is 0, else -1.

    Raises
    ------
    ImportError
        If `path` is None and ``elpv-dataset`` is not installed.
    ValueError
        If the list has another format.
    FileNotFoundError
        If the list or an image is missing.

    References
    ----------
    .. [1] S. Deitsch et al., "Segmentation of Photovoltaic Module Cells in Uncalibrated
       Electroluminescence Images", Machine Vision and Applications 32, 2021.

    Examples
    --------
    >>> from skanomaly_vit.datasets import load_elpv
    >>> cells = load_elpv()
    >>> len(cells.images), int((cells.y == 1).sum())
    (2624, 1508)
    """
    root = find_folder(_find_elpv() if path is None else path, _ELPV)
    table = find_file(root / "labels.csv", _ELPV)
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
    cells = [_read_cell(row, f"{str(table)!r}, line {i}") for i, row in enumerate(rows, 1) if row]
    if not cells:
        raise ValueError(f"{str(table)!r} is empty. Expected {_ELPV}")
    names, probability, module_type = zip(*cells, strict=True)
    return Bunch(
        images=as_objects([str(find_file(root / name, _ELPV)) for name in names]),
        defect_probability=np.array(probability),
        module_type=np.array(module_type),
        y=np.where(np.array(probability) == 0, 1, -1),
    )


def _find_elpv() -> Path:
    spec = find_spec("elpv_dataset")  # does not import it
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "load_elpv needs the package elpv-dataset, which holds the images: "
            "pip install elpv-dataset. Or pass the path of its data folder",
            name="elpv_dataset",
        )
    return Path(spec.submodule_search_locations[0], "data")


def _read_cell(row: list[str], where: str) -> tuple[str, float, str]:
    try:
        name, text, module_type = row
        (probability,) = (k / 3 for k in range(4) if abs(float(text) - k / 3) < 0.01)
    except ValueError:  # too few columns, no number, or none of these probabilities
        module_type = ""
    if module_type not in ("mono", "poly"):
        raise ValueError(f"{where}, reads {' '.join(row)!r}. Expected {_ELPV}")
    return name, probability, module_type
