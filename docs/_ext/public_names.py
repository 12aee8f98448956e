"""Links from names to the reference: in pages, in docstrings, in the tables of api.md.

Markdown pages write public names as `code`, which a repository browser shows as such; on the site
each is a link. Docstrings write parameters and names alike between single backticks: what is a
public name becomes a link, a parameter stays as it is, and what looks like a name but is none is
an error of the build.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import skanomaly_vit

_API_PAGE = "reference/api"


def public_modules() -> list[str]:
    """The package, and those of its modules that export more than the package does."""
    found = [module.name for module in pkgutil.iter_modules(skanomaly_vit.__path__)]
    names = [f"skanomaly_vit.{n}" for n in found if not n.startswith("_") and n != "cli"]
    at_top = set(skanomaly_vit.__all__)
    exported = {name: set(getattr(import_module(name), "__all__", ())) for name in names}
    return ["skanomaly_vit", *(name for name in names if exported[name] - at_top)]


def public_names() -> dict[str, str]:
    """Short or full name, also of a method -> full name; the shortest full one for a short one."""
    full = {}
    for module in public_modules():
        full[module] = module
        for name in import_module(module).__all__:
            if not name.startswith("_"):
                full.setdefault(name, f"{module}.{name}")
                full[f"{module}.{name}"] = full[name]
                thing = getattr(import_module(module), name)
                for method in _own_members(thing):
                    full.setdefault(f"{name}.{method}", f"{full[name]}.{method}")
    return full


def _own_members(thing: Any) -> set[str]:
    """Public members of a class that it has from this package."""
    classes = thing.__mro__ if inspect.isclass(thing) else ()
    ours = [each for each in classes if each.__module__.startswith("skanomaly_vit")]
    return {name for each in ours for name in vars(each) if not name.startswith("_")}


class LinkNames(SphinxTransform):
    """Public names in the `code` of Markdown pages become links."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Replace them."""
        page = self.env.docname
        if self.env.doc2path(page).suffix != ".md":
            return
        for literal in list(self.document.findall(nodes.literal)):
            target = self.app.public_names.get(literal.astext())  # type: ignore[attr-defined]
            if target and _is_meant(literal, page) and not _is_linked(literal):
                where = {"refdomain": "py", "reftype": "obj", "reftarget": target}
                link = pending_xref("", **where, refexplicit=True, refwarn=True)
                literal.replace_self(link)
                link += literal


def _is_meant(literal: nodes.literal, page: str) -> bool:
    # A plain word, such as `report`, is also a command or a parameter.
    return page == _API_PAGE or bool(re.search(r"[A-Z._]", literal.astext()))


def _is_linked(node: nodes.Node) -> bool:
    while node.parent is not None:
        node = node.parent
        if isinstance(node, nodes.reference | nodes.title | pending_xref):
            return True
    return False


def resolve(app: Sphinx, env: Any, node: pending_xref, contnode: nodes.Node) -> Any:
    """Find a public name by its short form; leave a parameter alone."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    full = app.public_names.get(target)  # type: ignore[attr-defined]
    if full and full != target:
        node["reftarget"] = full
        domain = env.get_domain("py")
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, contnode)
    looks_like_a_name = re.fullmatch(r"[A-Z]+[a-z]\w*(\.\w+)*|skanomaly_vit[\w.]*", target)
    return contnode if node["reftype"] == "obj" and not looks_like_a_name else None


def skip_foreign(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> Any:
    """Leave out what a class inherits from other packages."""
    thing = thing.fget if isinstance(thing, property) else thing
    module = getattr(thing, "__module__", None)
    return True if what == "class" and module and not module.startswith("skanomaly_vit") else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.public_names = public_names()  # type: ignore[attr-defined]
    app.add_transform(LinkNames)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-skip-member", skip_foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
