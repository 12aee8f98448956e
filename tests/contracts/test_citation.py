"""CITATION.cff cites the version that is installed, under the name and licence of setup.cfg."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

import skanomaly_vit

ROOT = Path(skanomaly_vit.__file__).parents[1]
CITATION = ROOT / "CITATION.cff"

pytestmark = pytest.mark.skipif(
    not CITATION.exists(), reason="the package is not run from a checkout"
)


@pytest.fixture(scope="module")
def cited():
    """Keys at the top of the file, which say what the software is."""
    return dict(re.findall(r"^([\w-]+): (\S.*)$", CITATION.read_text(), re.M))


def test_the_version_is_that_of_the_package(cited):
    assert cited["version"] == skanomaly_vit.__version__


def test_title_and_licence_are_those_of_setup_cfg(cited):
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    assert cited["title"] == metadata["metadata"]["name"]
    # The program's own licence is the first; the others are those of the embedded weights.
    assert cited["license"] == metadata["metadata"]["license_expression"].split(" AND ")[0]
