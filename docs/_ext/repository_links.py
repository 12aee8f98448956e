"""Links out of docs/ to other files of the repository, which on the site lead elsewhere.

Pages link to ``../SECURITY.md`` or ``../examples/plot_solar_cells.py``, as a repository browser
has it. On the site the first is a page, the second its place in the gallery; of what is not on the
site, such as a folder of results, the text is left.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)\s#]*)(#[^)\s]*)?\)")
_PAGES = {
    "../CHANGELOG.md": "changelog.md",
    "../SECURITY.md": "security.md",
    "../benchmarks/README.md": "benchmark_programs.md",
    "../examples": "auto_examples/index.rst",
}


def rewrite(text: str) -> str:
    """A page with the links that the site needs."""
    return _LINK.sub(_replace, text)


def _replace(link: re.Match[str]) -> str:
    text, path, anchor = link.groups()
    path = path.rstrip("/")
    example = re.fullmatch(r"\.\./examples/(plot_\w+)\.py", path)
    page = f"auto_examples/{example[1]}.rst" if example else _PAGES.get(path)
    return f"[{text}]({page}{anchor or ''})" if page else text


def _on_read(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = rewrite(source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", _on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
