"""The documentation: links lead somewhere, names exist, commands and code are well-formed."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skanomaly_vit
from skanomaly_vit.cli import main

ROOT = Path(skanomaly_vit.__file__).parents[1]
DOCS = ROOT / "docs"

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the package is not run from a checkout")

SITE = sorted([*DOCS.glob("*.md"), *DOCS.glob("[a-z]*/*.md")])
HUBS = ["index", "how_to/index", "explanation/index", "reference/index"]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "benchmarks/README.md",
    *SITE,
]
EXAMPLES = sorted(ROOT.glob("examples/plot_*.py"))
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.M | re.S)


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as repository browsers and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in plain}


def blocks(path: Path, language: str) -> list[str]:
    return [code for name, code in FENCE.findall(path.read_text()) if name == language]


def in_toctree(page: Path) -> list[str]:
    """Entries as paths from the folder of the page, without suffix."""
    lines = "".join(TOCTREE.findall(page.read_text())).splitlines()
    entries = [line for line in lines if line and not line.startswith(":")]
    return [re.sub(r".*<(.*)>", r"\1", entry) for entry in entries]


def docname(path: Path) -> str:
    """As Sphinx names a page: from docs/, without suffix."""
    return path.relative_to(DOCS).with_suffix("").as_posix()


def public_modules() -> dict[str, list[str]]:
    """Module -> what it exports that is not exported by the package itself."""
    modules = {"skanomaly_vit": [n for n in skanomaly_vit.__all__ if not n.startswith("_")]}
    for room in pkgutil.iter_modules(skanomaly_vit.__path__):
        if not room.name.startswith("_") and room.name != "cli":
            exported = getattr(importlib.import_module(f"skanomaly_vit.{room.name}"), "__all__", [])
            own = [name for name in exported if name not in skanomaly_vit.__all__]
            if own:
                modules[f"skanomaly_vit.{room.name}"] = own
    return modules


# --- links


@named(PAGES)
def test_links_between_files_lead_somewhere(path):
    broken = []
    for target, anchor in LINK.findall(prose(path)):
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(f"{target}#{anchor}" if anchor else target)
    assert broken == []


def test_pages_that_docstrings_and_programs_name_exist():
    sources = [
        path for room in ("skanomaly_vit", "examples", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    ]  # fmt: skip
    named_pages = {
        page for path in sources for page in re.findall(r"\bdocs/[\w/]+\.md\b", path.read_text())
    }
    assert [page for page in sorted(named_pages) if not (ROOT / page).exists()] == []


def test_every_page_is_in_one_table_of_contents():
    pages = {docname(path) for path in SITE} - {"index"}
    listed = [docname(path.parent / entry) for path in SITE for entry in in_toctree(path)]
    assert sorted(listed) == sorted({*pages, "auto_examples/index"})


@pytest.mark.parametrize("hub", HUBS)
def test_what_a_page_lists_for_the_site_it_links_to_for_other_readers(hub):
    page = DOCS / f"{hub}.md"
    linked = {(page.parent / target).resolve() for target, _ in LINK.findall(prose(page))}
    listed = [page.parent / f"{entry}.md" for entry in in_toctree(page)]
    assert [path for path in listed if shown(path) not in linked] == []


def shown(page: Path) -> Path:
    """What a reader of the repository has in place of a page of the site alone."""
    if page == DOCS / "auto_examples/index.md":
        return ROOT / "examples"
    found = re.match(r"```\{include\} (\S+)\n", page.read_text())
    return (page.parent / found[1]).resolve() if found else page


# --- names


def test_the_reference_has_each_public_name_under_its_module():
    sections = re.split(r"^## ", (DOCS / "reference/api.md").read_text(), flags=re.M)[1:]
    listed = {}
    for section in sections:
        module, _, body = section.partition("\n")
        cells = re.findall(r"^\| (`.*?) \|", body, re.M)
        listed[module] = sorted(name for cell in cells for name in re.findall(r"`(\w+)`", cell))
    assert {m: n for m, n in listed.items() if n} == {
        module: sorted(names) for module, names in public_modules().items()
    }


def test_the_site_describes_each_public_module():
    text = (DOCS / "reference/api.md").read_text()
    (listing,) = re.findall(r"autosummary::\n.*?\n\n(.*?)^```", text, re.M | re.S)
    assert listing.split() == sorted(public_modules())


# --- code


@named(PAGES)
def test_python_code_compiles(path):
    for code in blocks(path, "python"):
        compile(code, path.name, "exec")


@named(PAGES)
def test_commands_take_the_options_that_they_are_given(path):
    for code in blocks(path, "sh") + blocks(path, "console"):
        for line in re.findall(rf"\bskanomaly ((?:{'|'.join(main.commands)})\b[^|>#;\n]*)", code):
            name, *arguments = line.split()
            command = main.commands[name]
            if arguments and arguments[0] in getattr(command, "commands", {}):
                command = command.commands[arguments[0]]
            known = {option for parameter in command.params for option in parameter.opts}
            given = {argument for argument in arguments if re.match("--?[a-z]", argument)}
            assert given <= known, line


# --- examples


@named(EXAMPLES)
def test_examples_say_what_they_show_and_end_in_a_picture(path):
    code = path.read_text()
    docstring = ast.get_docstring(ast.parse(code))
    rule, title, under, _, story = docstring.split("\n", 4)
    assert set(rule) == set(under) == {"="}
    assert len(rule) == len(under) >= len(title)
    first = story.split("\n\n")[0]
    assert len(first) > 150, "the first paragraph says too little to whom it may concern"
    assert ".savefig(" in code


def test_tests_that_pages_name_exist():
    known = {
        path.name: set(re.findall(r"^def (test_\w+)", path.read_text(), re.M))
        for path in (ROOT / "tests").rglob("test_*.py")
    }
    missing = [
        f"{page.name}: {file}::{name}"
        for page in SITE
        for file, name in re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", page.read_text())
        if file not in known or (name and name not in known[file])
    ]
    assert missing == []


def test_the_page_about_reproducibility_says_what_verify_measured():
    script, results = ROOT / "benchmarks/verify.py", ROOT / "benchmarks/results/verify.csv"
    done = subprocess.run(
        [sys.executable, str(script), "--table", "--output", str(results)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert len(done.stdout.splitlines()) > 2
    assert done.stdout in (DOCS / "explanation/reproducibility.md").read_text()
