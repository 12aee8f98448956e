"""HTML page of a report, self-contained."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from skanomaly_vit._utils.provenance import Parameter
from skanomaly_vit.display._overlay import Picture, Scale
from skanomaly_vit.report._figures import Statistic

_PACKAGES = ("jinja2", "matplotlib")

_TEMPLATE, _STYLE, _SCRIPT = "report.html.j2", "report.css", "report.js"


@dataclass(frozen=True)
class ImageRow:
    """An image in the table.

    Parameters
    ----------
    rank : int
        1 for the most abnormal image.
    name : str
        Printable name.
    score, decision : float
        Higher = more normal; negative = anomaly.
    is_flagged : bool
        Whether the decision is negative.
    label : str
        Known label, or empty.
    thumbnail : Picture
        Small copy.
    """

    rank: int
    name: str
    score: float
    decision: float
    is_flagged: bool
    label: str
    thumbnail: Picture


@dataclass(frozen=True)
class Card:
    """A large image.

    Parameters
    ----------
    row : ImageRow
        Row of the image in the table.
    image : Picture
        The image itself.
    overlay : Picture or None
        The image under its anomaly map.
    highest : float or None
        Highest value of the map.
    """

    row: ImageRow
    image: Picture
    overlay: Picture | None
    highest: float | None


@dataclass(frozen=True)
class Page:
    """Content of a report; `histograms` maps (width, theme) to a data URI."""

    title: str
    created: datetime
    statistics: list[Statistic]
    guarantees: list[Statistic]
    notes: list[str]
    histograms: dict[tuple[str, str], str]
    histogram_text: str
    most_abnormal: list[Card]
    least_certain: list[Card]
    scale: Scale | None
    colorbar: Picture | None
    rows: list[ImageRow]
    labels: list[str]
    labels_of_anomalies: list[str]
    offset: float
    detector: str
    folder: str
    parameters: list[Parameter]
    versions: dict[str, str]
    fingerprint: str | None


def require_packages() -> None:
    """Raise an ImportError that says what to install if a package is missing."""
    from importlib import import_module

    for package in _PACKAGES:
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(
                f"write_report needs {package}: pip install 'skanomaly-vit[report]'", name=package
            ) from error


def render(page: Page) -> bytes:
    """Render a page as HTML in UTF-8."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("skanomaly_vit.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digits = _digits([row.score for row in page.rows])
    environment.filters["number"] = lambda value: f"{value:.{digits}f}"
    style, script = (_source(environment, name) for name in (_STYLE, _SCRIPT))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    html = environment.get_template(_TEMPLATE).render(
        page=page, policy=policy, style=Markup(style), script=Markup(script)
    )
    return html.encode("utf-8")


def _source(environment: Any, name: str) -> str:
    text, _, _ = environment.loader.get_source(environment, name)
    # Browsers turn all line ends into "\n" before they hash.
    return "\n".join(text.splitlines())


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _digits(scores: list[float]) -> int:
    """Decimals that show three significant digits of the scores' spread."""
    spread = float(np.std(scores))
    return int(np.clip(2 - np.floor(np.log10(spread)), 1, 6)) if spread > 0 else 3
