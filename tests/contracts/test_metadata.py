"""URLs and links of the package, all of one address, once it is in pyproject.toml."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import skanomaly_vit

ROOT = Path(skanomaly_vit.__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="the package is not run from a checkout"
)

REPOSITORY = "https://host.example/owner/skanomaly-vit"


@pytest.fixture(scope="module")
def build():
    return runpy.run_path(str(ROOT / "setup.py"))


def test_links_of_the_readme_can_be_made_absolute(build):
    readme = (ROOT / "README.md").read_text()
    text = build["absolute"](readme, REPOSITORY)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) == len(re.findall(r"\]\(([^)\s]+)\)", readme))
    assert [link for link in links if not re.match("https?://|#", link)] == []
    assert "![Six solar cells" in text
    assert f"({REPOSITORY}/raw/main/docs/_static/hero.png)" in text
    own = re.findall(rf"{REPOSITORY}/(?:raw|blob)/main/([^)#\s]+)", text)
    assert all((ROOT / path).exists() for path in own)


def test_urls_lead_to_files(build):
    urls = build["project_urls"](REPOSITORY)
    assert list(urls) == ["Repository", "Documentation", "Changelog"]
    for url in list(urls.values())[1:]:
        assert (ROOT / url.removeprefix(f"{REPOSITORY}/blob/main/")).exists()


def test_an_unknown_address_leaves_the_metadata_alone(build):
    assert build["metadata"]() == {}
