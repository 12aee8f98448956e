"""A written report: shown in a notebook, opened in a browser, saved under another name."""

from __future__ import annotations

import os
import shutil
import webbrowser
from dataclasses import dataclass
from html import escape
from pathlib import Path

from skanomaly_vit._utils.files import check_target, write_atomically

#: Larger pages are not copied into a notebook, whose file would grow by as much.
_LARGEST_IN_A_CELL = 2**24


@dataclass(frozen=True)
class Report(os.PathLike[str]):
    """A report that `write_report` has written; a path, too.

    In a notebook, it shows itself in the cell.

    Parameters
    ----------
    path : pathlib.Path
        The HTML file.

    Examples
    --------
    >>> from pathlib import Path
    >>> from skanomaly_vit.report import Report
    >>> Report(Path("report.html")).path.name
    'report.html'
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def open(self) -> bool:
        """Open the page in the browser of this machine.

        Returns
        -------
        opened : bool
            Whether there is a browser that could be asked.
        """
        return webbrowser.open(self.path.resolve().as_uri())

    def save(self, path: str | os.PathLike[str]) -> Report:
        """Copy the page, and its folder of pictures if it has one.

        Parameters
        ----------
        path : str or path-like
            The file to write, in an existing folder; it replaces an older one.

        Returns
        -------
        copied : Report
            The copy.

        Raises
        ------
        OSError
            If the report is gone, or `path` cannot be written.
        ValueError
            If the report has a folder of pictures, and `path` another file name: the page names
            that folder.
        """
        target = check_target(path, "report.html")
        pictures = self._pictures()
        if pictures.is_dir():
            if target.name != self.path.name:
                raise ValueError(
                    f"the page shows the pictures in {pictures.name!r} beside it, and would not "
                    f"find them as {target.name!r}; save it as {self.path.name!r} in another "
                    "folder, or write a report with folder=False"
                )
            shutil.copytree(pictures, target.with_name(pictures.name), dirs_exist_ok=True)
        write_atomically(self.path.read_bytes(), target)
        return Report(target)

    def _pictures(self) -> Path:
        return self.path.with_name(f"{self.path.stem}_files")

    def _repr_html_(self) -> str:
        name = escape(str(self.path))
        if not self.path.is_file():
            return f"<p>The report <code>{name}</code> is gone.</p>"
        link = f'<p>Report: <a href="{name}" target="_blank">{name}</a></p>'
        if self._pictures().is_dir() or self.path.stat().st_size > _LARGEST_IN_A_CELL:
            return link
        page = escape(self.path.read_text(encoding="utf-8"))
        return (
            f'{link}<iframe title="Report" srcdoc="{page}" sandbox="allow-scripts allow-downloads" '
            'style="width:100%;height:42em;border:1px solid #8886"></iframe>'
        )
