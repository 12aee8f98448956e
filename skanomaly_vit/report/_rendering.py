"""HTML of a report, self-contained."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np

from skanomaly_vit.report._calibration import CONFIDENCE
from skanomaly_vit.report._data import encode_data
from skanomaly_vit.report._page import Page

_PACKAGES = ("jinja2", "matplotlib")

_TEMPLATE, _STYLE = "report.html.j2", "report.css"

#: Parts of the script, in the order in which they use each other.
_SCRIPTS = ("text.js", "data.js", "marks.js", "threshold.js", "list.js", "viewer.js", "main.js")

#: Where pictures may come from: the page itself, or files beside it, from a disk or a server.
_PICTURES = {False: "data:", True: "data: 'self' file:"}


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
    environment.filters["percent"] = lambda share: f"{100 * share:.4g}%"
    style = _source(environment, _STYLE)
    script = "\n".join(_source(environment, name) for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; img-src {_PICTURES[page.has_files]}; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    html = environment.get_template(_TEMPLATE).render(
        page=page,
        confidence=CONFIDENCE,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=Markup(encode_data(page, digits)),
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
