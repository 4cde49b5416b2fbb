"""What the documents show is what the code prints: the programs of each page, and every example in a docstring."""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import funcbp

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MADE = {"api", "gallery", "_build"}  # by the site
DOCUMENTS = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name not in MADE)]
blocks = lambda kind, document: re.findall(rf"```{kind}\n(.*?)```", document.read_text(), re.DOTALL)
# Each page is one program, which is pasted from top to bottom, and one output.
PROGRAMS = [
    pytest.param("\n".join(programs), "".join(blocks("text", document)), id=document.stem)
    for document in DOCUMENTS
    if document.stem != "contributing"  # its recipes have tests of their own
    if (programs := blocks("python", document))
]
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in Path(funcbp.__file__).parent.rglob("*.py")
    if p.stem not in ("__main__", "plugin")
)
# a fresh process: the tests' own settings (float64, strict promotion) are not a reader's, but for cheap compiling, on
# which no printed digit may depend
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "Agg",
}

DOCTESTS = """
import doctest, importlib, sys
tried = failed = 0
for name in sys.argv[1:]:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    tried, failed = tried + result.attempted, failed + result.failed
print(f"{tried} tried, {failed} failed")
sys.exit(failed > 0 or tried < 20)
"""


def run(source, *args, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-c", source, *args], capture_output=True, text=True, cwd=cwd, env=PLAIN, timeout=600
    )


@pytest.mark.slow
@pytest.mark.parametrize(("program", "printed"), PROGRAMS)
def test_a_page_pasted_into_an_empty_folder_prints_what_it_says(program, printed, tmp_path):
    result = run(program, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not printed or result.stdout == printed


def test_the_documents_have_programs_and_commands():
    assert len(PROGRAMS) >= 18
    assert len(re.findall(r"^python -m pip install .*&& python -m (?:pytest|funcbp train digits)$", README, re.M)) == 2
    assert [d.name for d in DOCUMENTS if "@@" in d.read_text()] == []
    assert len(README.splitlines()) <= 180


def test_the_readme_shows_the_backward_pass_as_it_is():
    (shown,) = re.findall(r"```python\n(def backward_pass.*?)```", README, re.DOTALL)
    source = (ROOT / "funcbp" / "autodiff/backward_pass.py").read_text()
    unannotated = re.sub(r"def backward_pass\([^)]*\) -> .*:", "def backward_pass(state, tape, saved, ct_out):", source)
    assert shown.strip() in unannotated


@pytest.mark.slow
@pytest.mark.long
def test_docstring_examples():
    result = run(DOCTESTS, *MODULES)
    assert result.returncode == 0, result.stdout + result.stderr


SECTIONS_OF_DOCSTRINGS = ["Args", "Attributes", "Returns", "Yields", "Raises", "Example", "References"]


def layout_faults(source):
    """Yield what departs from the one layout: sections in another order, by other names, or on their title's line."""
    nodes = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
    for text in filter(None, map(ast.get_docstring, nodes)):
        found = re.findall(r"^([A-Z]\w+):$", text, re.M)
        if found != [s for s in SECTIONS_OF_DOCSTRINGS if s in found]:
            yield found
        yield from re.findall(rf"^(?:Sources?|{'|'.join(SECTIONS_OF_DOCSTRINGS)}): .*", text, re.M)


def test_docstrings_have_one_layout():
    files = (ROOT / "funcbp").rglob("*.py")
    faults = {p.name: found for p in files if (found := list(layout_faults(p.read_text())))}
    assert faults == {}


def test_another_layout_is_found():
    assert list(layout_faults('"""One.\n\nSource: somebody."""')) == ["Source: somebody."]
    assert list(layout_faults('"""One.\n\nRaises:\n    a: b.\n\nArgs:\n    c: d.\n"""')) == [["Raises", "Args"]]
    assert list(layout_faults('"""One.\n\nArgs:\n    c: d.\n\nReferences:\n    E.\n"""')) == []


# --- what the documents name ------------------------------------------------------------------------------------------

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.relative_to(ROOT).as_posix())
FILES = {p.as_posix() for p in (f.relative_to(ROOT) for f in ROOT.rglob("*")) if not p.parts[0].startswith(".")}


def paths_named(text):
    """(what links lead to, paths and names of files in backticks)."""
    text = re.sub(r"```(?:python|sh|text|bibtex).*?```", "", text, flags=re.DOTALL)
    links = {target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target}
    quoted = re.findall(
        r"`(?:python )?((?:funcbp|tests|docs|examples|benchmarks)/[\w/.]*|[\w/]+\.(?:py|md|ipynb))`", text
    )
    return links - {""}, set(quoted) | set(re.findall(r"[\w/]+\.py(?=\"\])", text))  # those in a picture's boxes, too


def names_used(text):
    """The dotted names that begin with the package, in programs and in backticks."""
    return {name.rstrip(".") for name in re.findall(r"(?<![\w./\-\"])(?:bp|funcbp)\.([a-zA-Z_][\w.]*)", text)}


def in_gallery(target):
    """Whether a link leads to a page that the site makes of a notebook."""
    *_, folder, name = ("", *target.split("/"))
    return folder == "gallery" and (name == "index.md" or (ROOT / "examples" / f"{name}.ipynb").exists())


@documents
def test_a_path_in_a_document_exists(document):
    links, quoted = paths_named(document.read_text())
    lost = [target for target in links if not (document.parent / target).exists() and not in_gallery(target)]
    lost += [q for q in quoted if not any(f == q.rstrip("/") or f.endswith(f"/{q.rstrip('/')}") for f in FILES)]
    assert lost == []


@documents
def test_a_name_in_a_document_exists(document):
    def exists(name):
        try:
            pkgutil.resolve_name(f"funcbp.{name}")
        except (ImportError, AttributeError):
            return False
        return True

    assert [name for name in names_used(document.read_text()) if not exists(name)] == []


def test_lost_paths_and_names_are_found():
    links, quoted = paths_named('See [it](funcbp/gone.py), `lost.py`, `tests/away/` and a["box<br>rules/none.py"].')
    assert (links, quoted) == ({"funcbp/gone.py"}, {"lost.py", "tests/away/", "rules/none.py"})
    assert names_used("`bp.absent(x)`, `Backward(x=funcbp.rule)`, funcbp.remat.Policy. /funcbp.py") == {
        "absent",
        "rule",
        "remat.Policy",
    }


def test_a_number_in_a_decision_was_measured():
    number = r"(?<![\d.])\d+\.\d+(?![\d.]*\d)"
    measured = set(re.findall(number, (ROOT / "benchmarks" / "RESULTS.md").read_text()))
    for document in (ROOT / "docs" / "decisions").glob("*.md"):
        assert set(re.findall(number, document.read_text())) <= measured, document


def test_the_life_of_an_entry_has_the_right_gradient():
    text = (ROOT / "docs" / "architecture.md").read_text()
    (printed,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert f"{2 * 2.7182818284:.6f}" == f"{float(re.search(r'Array.([0-9.]+)', printed)[1]):.6f}"  # (1 + x) eˣ at 1
