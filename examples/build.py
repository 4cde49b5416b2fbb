"""Make the notebooks out of the scripts: `python examples/build.py`, with `--execute` also to run each of them.

A script that has a notebook is written in cells: `# %%` begins a cell of code, `# %% [markdown]` one of text in
comments, and the docstring is the first cell. The notebook has the same cells and no outputs, so there is one text.
"""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).parent
MARK = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def notebook(source: str) -> Any:
    """The notebook of a script."""
    docstring = ast.get_docstring(ast.parse(source))
    if docstring is None:
        raise ValueError("A script that is to be a notebook begins with a docstring, its first cell.")
    title, _, rest = docstring.partition("\n")
    pieces = MARK.split(source)[1:]
    cells = [nbformat.v4.new_markdown_cell(f"# {title.rstrip('.')}\n{rest}")]
    for kind, text in zip(pieces[::2], pieces[1::2], strict=True):
        if kind:
            cells.append(nbformat.v4.new_markdown_cell(re.sub("^# ?", "", text, flags=re.MULTILINE).strip()))
        else:
            first = all(cell.cell_type == "markdown" for cell in cells)
            cells.append(nbformat.v4.new_code_cell(("%matplotlib inline\n" if first else "") + text.strip()))
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"
    language = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return nbformat.v4.new_notebook(cells=cells, metadata={**language, "language_info": {"name": "python"}})


def written(source: str) -> str:
    """The notebook of a script, as it is in its file."""
    book = notebook(source)
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


def sources() -> dict[Path, str]:
    """The scripts that are written in cells, by the path of their notebook."""
    texts = {path: path.read_text() for path in sorted(FOLDER.rglob("*.py"))}
    return {path.with_suffix(".ipynb"): text for path, text in texts.items() if re.search("^# %%$", text, re.M)}


def execute(path: Path) -> Any:
    """The notebook after a run in a fresh kernel; an error in a cell is raised."""
    import nbclient

    book = nbformat.read(path, as_version=4)
    return nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(FOLDER.parent)}}).execute()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the notebooks out of the scripts.")
    parser.add_argument("--execute", action="store_true", help="run each notebook, and fail if a cell fails")
    options = parser.parse_args()
    for path, source in sources().items():
        path.write_text(written(source))
        print(path.name)
        if options.execute:
            execute(path)


if __name__ == "__main__":
    main()
