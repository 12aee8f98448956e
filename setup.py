"""What the metadata in setup.cfg cannot say: URLs, of one address in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def project_urls(repository: str) -> dict[str, str]:
    """Links that a package index shows beside the page."""
    files = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md"}
    pages = {name: f"{repository}/blob/main/{path}" for name, path in files.items()}
    return {"Repository": repository, **pages}


def absolute(readme: str, repository: str) -> str:
    """README.md with links that lead somewhere from another site."""

    def replace(link: re.Match[str]) -> str:
        kind = "raw" if link[1] else "blob"
        return f"{link[1]}[{link[2]}]({repository}/{kind}/main/{link[3]})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)", replace, readme)


def metadata() -> dict[str, object]:
    """Nothing while the address is unknown: links then stay as they are in the repository."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = settings["tool"]["skanomaly"]["repository"].rstrip("/")
    if not repository:
        return {}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {
        "project_urls": project_urls(repository),
        "long_description": absolute(readme, repository),
    }


if __name__ == "__main__":
    setup(**metadata())
