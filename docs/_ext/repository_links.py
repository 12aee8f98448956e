"""Links out of docs/ to other files of the repository, which on the site lead elsewhere.

Pages link to ``../SECURITY.md`` or ``../../examples/plot_solar_cells.py``, as a repository browser
has it. On the site the first is a page, the second its place in the gallery. Files that are not on
the site, such as a folder of results, keep the text of their link alone.
"""

from __future__ import annotations

import posixpath
import re
from functools import partial
from typing import Any

from sphinx.application import Sphinx

_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)\s#]*)(#[^)\s]*)?\)")
#: Path from docs/ -> page of the site.
_PAGES = {
    "../CHANGELOG.md": "reference/changelog.md",
    "../CONTRIBUTING.md": "reference/contributing.md",
    "../SECURITY.md": "reference/security.md",
    "../benchmarks/README.md": "reference/benchmark_programs.md",
    "../examples": "auto_examples/index.rst",
}


def rewrite(text: str, docname: str) -> str:
    """The text of a page with the links that the site needs."""
    return _LINK.sub(partial(_replace, folder=posixpath.dirname(docname)), text)


def _replace(link: re.Match[str], folder: str) -> str:
    text, path, anchor = link.groups()
    target = posixpath.normpath(posixpath.join(folder, path))
    if not target.startswith("../"):  # another page of docs/
        return link[0]
    example = re.fullmatch(r"\.\./examples/(plot_\w+)\.py", target)
    page = f"auto_examples/{example[1]}.rst" if example else _PAGES.get(target)
    return f"[{text}]({posixpath.relpath(page, folder or '.')}{anchor or ''})" if page else text


def _on_read(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = rewrite(source[0], docname)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", _on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
