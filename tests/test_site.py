"""The site: every public name has a page, and says what it is, what it takes and how it is used."""

import importlib
import inspect
from pathlib import Path

import funcbp as bp

DOCS = Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location("api_pages", DOCS / "api_pages.py")
PAGES = importlib.util.module_from_spec(spec)
spec.loader.exec_module(PAGES)
NAMES = {
    f"{title}.{name}": value
    for title, (where, _) in PAGES.NAMESPACES.items()
    for name, value in PAGES.exports(importlib.import_module(where)).items()
}
# those whose example is that of what they are used in
WITHOUT_EXAMPLE = {f"bp.rules.{n}" for n in ("INPUTS", "NOTHING", "OUTPUT", "TYPES", "def_control", "def_named")}
WITHOUT_EXAMPLE |= {"bp.remat.read_for"}
CONTRACT = {f"bp.rules.{n}" for n in ("INPUTS", "NOTHING", "OUTPUT", "TYPES")}  # one signature, that of `contract.py`


def test_every_namespace_has_a_page():
    spaces = {n for n in bp.__all__ if inspect.ismodule(getattr(bp, n))}
    assert spaces <= {title.removeprefix("bp.") for title in PAGES.NAMESPACES}


def test_every_public_name_is_on_its_page():
    for title, (where, purpose) in PAGES.NAMESPACES.items():
        text = PAGES.page(title, where, purpose)
        lost = [n for n in PAGES.exports(importlib.import_module(where)) if f":: {where}.{n}\n" not in text]
        assert lost == [], title


def lacks(name):
    """What the docstring of a public name should have and has not."""
    value, text = NAMES[name], inspect.getdoc(NAMES[name])
    if not text:
        return ["a docstring"]
    if not inspect.isroutine(value):
        return []
    signature, own = inspect.signature(value), name not in CONTRACT
    returns = signature.return_annotation not in (None, "None") and own
    says = {"Args:": bool(signature.parameters) and own, "Returns:": returns, ">>>": name not in WITHOUT_EXAMPLE}
    text = text.replace("Arguments as", "Args:").replace("Yields:", "Returns:")
    return [what for what, needed in says.items() if needed and what not in text]


def test_every_page_says_what_a_thing_takes_and_how_it_is_used():
    found = {n: lacks(n) for n, x in NAMES.items() if inspect.isroutine(x) or inspect.isclass(x)}
    assert {n: what for n, what in found.items() if what} == {}
    assert set(NAMES) >= WITHOUT_EXAMPLE
