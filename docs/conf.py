"""How the site is made: `python -m pip install -e ".[docs]" && python -m sphinx -W docs docs/_build`.

The pages of the API are written here from what each package exports, the gallery from the notebooks of `examples/`, so
that neither can be out of step.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from api_pages import NAMESPACES, write_pages  # noqa: E402

import funcbp  # noqa: E402

project, author, copyright = "funcbp", "the authors of funcbp", "2026"
version = release = funcbp.__version__
html_title = f"funcbp {version}"
html_theme = "furo"
html_static_path: list[str] = []
html_extra_path = ["extra"]
templates_path: list[str] = []
html_theme_options = {"footer_icons": []}
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "jupyter_execute"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are stored with what they printed
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
default_role = "code"  # what a docstring has in backticks
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
suppress_warnings = ["mystnb.unknown_mime_type"]


def write_gallery() -> None:
    """Copy the notebooks to where the site reads them, and list them."""
    gallery = HERE / "gallery"
    shutil.rmtree(gallery, ignore_errors=True)
    gallery.mkdir()
    names = []
    for notebook in sorted((HERE.parent / "examples").glob("*.ipynb")):
        shutil.copy(notebook, gallery)
        names.append(notebook.stem)
    entries = "\n".join(names)
    (gallery / "index.md").write_text(
        "# Gallery\n\nEach is a notebook made of the script of its name in `examples/`, with what it printed.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    )


def keep_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let |x| in a docstring be an absolute value, where reStructuredText would look for a substitution."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...", "|")):
            lines[i] = re.sub(r"(`[^`]*`)|[|]", lambda m: m[1] or r"\|", line)


def lead_back(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let "[docs]" beside a source lead to where that name is explained: viewcode takes one namespace for a file."""
    if not page.startswith("_modules/funcbp/"):
        return
    objects = app.env.get_domain("py").objects
    spaces = sorted((where for where, _ in NAMESPACES.values()), key=len, reverse=True)

    def right(link: re.Match[str]) -> str:
        name = next(link[1].removeprefix(f"{s}.") for s in spaces if link[1].startswith(f"{s}."))
        known = (f"{s}.{name}" for s in reversed(spaces) if f"{s}.{name}" in objects)
        target = next(known, None)
        uri = "" if target is None else app.builder.get_relative_uri(page, objects[target].docname)
        return link[0] if target is None else f'<a class="viewcode-back" href="{uri}#{target}">'

    context["body"] = re.sub(r'<a class="viewcode-back" href="[^"#]*#([^"]*)">', right, context["body"])


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_bars, priority=1)
    app.connect("html-page-context", lead_back)


(HERE / "extra").mkdir(exist_ok=True)
play = ["play", "worked-example", "--out", HERE / "extra" / "play.html"]
subprocess.run([sys.executable, "-m", "funcbp", *play], check=True, stdout=subprocess.DEVNULL)
write_gallery()
write_pages(HERE / "api")
