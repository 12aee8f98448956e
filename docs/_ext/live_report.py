"""A report to click, made at the build of the site from solar cells: live_report.html.

A page shows it where it has the comment ``<!-- live report -->``, which a repository browser leaves
out. The file is a page of its own, under its own content security policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

NAME = "live_report.html"
MARK = "<!-- live report -->"
N_TRAIN, N_FUNCTIONAL, N_DEFECTIVE = 60, 6, 6

_FRAME = f"""```{{raw}} html
<p><a href="{NAME}" target="_blank">Open the report in a tab of its own</a></p>
<iframe class="live-report" src="{NAME}" title="A report on 12 solar cells" loading="lazy"></iframe>
```"""

_logger = logging.getLogger(__name__)


def write_live_report(target: Path) -> None:
    """Fit a detector to functional cells, and report on 12 others."""
    from skanomaly_vit import TransformalyDetector
    from skanomaly_vit.datasets import load_elpv
    from skanomaly_vit.report import write_report

    cells = load_elpv()
    is_mono = cells.module_type == "mono"
    rng = np.random.default_rng(0)
    functional, defective = (
        rng.permutation(cells.images[is_mono & (cells.defect_probability == probability)])
        for probability in (0, 1)
    )
    detector = TransformalyDetector(contamination=0.1, calibration="cross", random_state=0)
    detector.fit(functional[:N_TRAIN])
    chosen = [*functional[N_TRAIN : N_TRAIN + N_FUNCTIONAL], *defective[:N_DEFECTIVE]]
    y = np.repeat(["functional", "defective"], [N_FUNCTIONAL, N_DEFECTIVE])
    write_report(
        detector, chosen, y, target, title="Solar cells", anomaly_label="defective", n_maps=6
    )


def _on_config(app: Sphinx, config: Config) -> None:
    folder = Path(app.srcdir) / "generated" / "live"
    folder.mkdir(parents=True, exist_ok=True)
    config.html_extra_path.append("generated/live")
    if not (folder / NAME).exists():
        _logger.info("writing %s, which takes some seconds", NAME)
        write_live_report(folder / NAME)


def _on_read(app: Sphinx, docname: str, source: list[str]) -> None:
    if MARK in source[0]:
        up = "../" * docname.count("/")
        source[0] = source[0].replace(MARK, _FRAME.replace(f'"{NAME}"', f'"{up}{NAME}"'))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    # Before the names of extra files are checked.
    app.connect("config-inited", _on_config, priority=100)
    app.connect("source-read", _on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
