"""How the site is built: `make docs`, or without running the examples `make docs GALLERY=0`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import skanomaly_vit

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "skanomaly-vit"
author = "The skanomaly-vit developers"
copyright = author
release = version = skanomaly_vit.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "public_names",  # of docs/_ext, like the next two
    "repository_links",
    "live_report",
]
exclude_patterns = ["_build", "**/README.md", "**/GALLERY_HEADER.rst"]
templates_path = ["_templates"]

smartquotes = False  # docstrings quote what is code
toc_object_entries_show_parents = "hide"
# A link that leads nowhere is an error, in pages and in docstrings.
nitpicky = True
# Of other packages there is no list of names here: building needs no network.
nitpick_ignore_regex = [("py:.*", r"(joblib|matplotlib|numpy|pandas|PIL|sklearn|timm|torch)\..*")]

# Pages are Markdown that reads well in a repository browser too. Headings get the anchors that
# such a browser gives them.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
# Where a name can be had from two modules, it is described as one of the package.
autosummary_context = {"of_package": skanomaly_vit.__all__}
autodoc_preserve_defaults = True  # 2**30 says more than 1073741824
autodoc_typehints = "none"  # types are described in docstrings, with shapes
autodoc_default_options = {"members": True, "inherited-members": True}
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
# What stands between single backticks in a docstring; see _ext/public_names.py.
default_role = "py:obj"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "plot_gallery": os.environ.get("GALLERY", "1") == "1",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("skanomaly_vit",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "capture_repr": (),  # what is printed is shown, not what the last line happens to give
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 1,
    "within_subsection_order": "example_order.TeachingOrder",
}

# Copied without the prompts, and without what a command prints.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

linkcheck_timeout = 15
linkcheck_workers = 4

html_theme = "pydata_sphinx_theme"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"tutorial": []}  # it has no pages below it
html_logo = html_favicon = "_static/logo.svg"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
