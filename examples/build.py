"""Make the notebooks out of the scripts, with what they print: `python examples/build.py [NAME ...]`.

A script that has a notebook is written in cells: `# %%` begins a cell of code, `# %% [markdown]` one of text in
comments, and the docstring is the first cell. The notebook has the same cells, so there is one text, and beside each
what it printed and drew when it was run last. `--check` runs each again and compares: the same cells, the same words
printed, and as many pictures. Numbers may differ, in their last digits, from one machine to another.
"""

from __future__ import annotations

import argparse
import ast
import base64
import io
import re
from concurrent.futures import ThreadPoolExecutor
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


def written(book: Any) -> str:
    """A notebook as it is in its file."""
    nbformat.validate(book)
    return re.sub(r"/\w+/ipykernel_\d+/", "", nbformat.writes(book)) + "\n"  # where a cell was while it ran


def outputs_of(cell: Any) -> list[str]:
    """What a cell printed, without its numbers, and what kinds of picture it drew."""
    text = lambda output: output.get("text") or output["data"].get("text/plain", "")
    kinds = [sorted(k for k in output.get("data", {}) if k.startswith("image")) for output in cell.get("outputs", [])]
    words = [re.sub(r"[-+−\d.,eE()%\s]+|nan|inf|0x[0-9a-f]+", " ", text(o)) for o in cell.get("outputs", [])]
    return [f"{k} {w}" if not k else f"{k}" for k, w in zip(kinds, words, strict=True)]


def differences(stored: Any, fresh: Any) -> list[str]:
    """In which cells two notebooks differ in their source or in what came out."""
    if len(stored.cells) != len(fresh.cells):
        return [f"{len(stored.cells)} cells are stored, and there are {len(fresh.cells)}"]
    pairs = list(zip(stored.cells, fresh.cells, strict=True))
    found = [f"cell {i} has another source" for i, (a, b) in enumerate(pairs) if a.source != b.source]
    return found + [f"cell {i} prints other words" for i, (a, b) in enumerate(pairs) if outputs_of(a) != outputs_of(b)]


def sources() -> dict[Path, str]:
    """The scripts that are written in cells, by the path of their notebook."""
    texts = {path: path.read_text() for path in sorted(FOLDER.rglob("*.py"))}
    return {path.with_suffix(".ipynb"): text for path, text in texts.items() if re.search("^# %%$", text, re.M)}


def executed(book: Any) -> Any:
    """The notebook after a run in a fresh kernel, without times and progress bars; an error in a cell is raised."""
    import nbclient

    client = nbclient.NotebookClient(
        book,
        timeout=600,
        resources={"metadata": {"path": str(FOLDER.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    for cell in book.cells:
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for data in (o["data"] for o in cell.outputs if "image/png" in o.get("data", {})):
                data["image/png"] = smaller(data["image/png"])
    book.metadata["language_info"] = {"name": "python"}
    return book


def smaller(png: str) -> str:
    """A picture in fewer colours and at most 1000 pixels wide, both in base64: one to look at, and to store."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((1000, 2000))
    buffer = io.BytesIO()
    few = picture.quantize(64, Image.Quantize.FASTOCTREE)  # the default joins the colours of thin lines
    few.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the notebooks out of the scripts, with what they print.")
    parser.add_argument("names", nargs="*", help="which; all if none is given")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where what is stored is out of step")
    options = parser.parse_args()
    chosen = {path: text for path, text in sources().items() if not options.names or path.stem in options.names}
    failures = []
    with ThreadPoolExecutor(2) as pool:  # each is a process of its own, and for most of its time on one core
        books = pool.map(lambda text: nbformat.reads(written(executed(notebook(text))), as_version=4), chosen.values())
        for path, fresh in zip(chosen, books, strict=True):
            print(path.name, flush=True)
            if options.check:
                stored = nbformat.read(path, as_version=4)
                failures += [f"{path.name}: {what}" for what in differences(stored, fresh)]
            else:
                path.write_text(written(fresh))
    if failures:
        raise SystemExit("\n".join([*failures, "Make them again: python examples/build.py NAME"]))


if __name__ == "__main__":
    main()
