"""The examples: every notebook is what its script makes of it, and runs in a kernel of its own."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
IN_CELLS = [
    "autoencoder_on_digits",
    "error_surface",
    "forward_or_backward",
    "gauss_newton",
    "modes_of_learning",
    "momentum_in_a_ravine",
    "rprop_against_gradient_descent",
]


def load_build():
    spec = importlib.util.spec_from_file_location("build", EXAMPLES / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = load_build()


def test_the_scripts_in_cells_are_known():
    assert {path.stem for path in BUILD.sources()} >= set(IN_CELLS)


@pytest.mark.parametrize("path", sorted(BUILD.sources()), ids=lambda path: path.stem)
def test_every_notebook_is_in_step_with_its_script(path):
    assert path.read_text() == BUILD.written(BUILD.sources()[path]), "run `python examples/build.py`"
    book = nbformat.reads(path.read_text(), as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")


SCRIPT = '''"""A title.

And what it is about.
"""

# %%
from matplotlib.figure import Figure

one = 1

# %% [markdown]
# Words, with `code`.
#
# And more of them.


# %%
def two():
    return one + 1


figure = Figure(figsize=(1, 1))
figure.subplots()
figure if two() == 2 else "wrong"
'''


def test_cells_become_cells():
    book = BUILD.notebook(SCRIPT)
    assert [cell.cell_type for cell in book.cells] == ["markdown", "code", "markdown", "code"]
    title, first, words, second = (cell.source for cell in book.cells)
    assert title == "# A title\n\nAnd what it is about."
    assert first == "%matplotlib inline\nfrom matplotlib.figure import Figure\n\none = 1"
    assert words == "Words, with `code`.\n\nAnd more of them."
    assert second.startswith("def two():") and second.endswith('"wrong"')
    with pytest.raises(ValueError, match="begins with a docstring"):
        BUILD.notebook("# %%\n1")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the machinery that talks to the kernel
def test_a_notebook_runs_and_shows_its_figures(tmp_path):
    path = tmp_path / "book.ipynb"
    path.write_text(BUILD.written(SCRIPT))
    (output,) = BUILD.execute(path).cells[-1].outputs
    assert "image/png" in output.data
    path.write_text(BUILD.written(SCRIPT.replace("one = 1", "one = undefined")))
    with pytest.raises(Exception, match="name 'undefined' is not defined"):
        BUILD.execute(path)


@pytest.mark.parametrize("name", IN_CELLS)
def test_a_script_keeps_its_pictures_where_it_is_told(name):
    source = (EXAMPLES / f"{name}.py").read_text()
    assert f'else "runs/{name}")' in source
    kept = re.findall(r'^(?:    )?keep\(.*"(\w+)"\)$', source, re.M)
    assert len(kept) == len(set(kept)) >= 2
