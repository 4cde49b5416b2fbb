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
    "inputs_and_initial_weights",
    "modes_of_learning",
    "momentum_in_a_ravine",
    "rates_in_a_ravine",
    "rprop_against_gradient_descent",
    "through_time",
    "units_and_shapes",
    "where_learning_ends",
    "why_a_hidden_layer",
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
    stored = nbformat.read(path, as_version=4)
    fresh = BUILD.notebook(BUILD.sources()[path])
    assert [c.source for c in stored.cells] == [c.source for c in fresh.cells], (
        f"run python examples/build.py {path.stem}"
    )
    code = [c for c in stored.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code) and any(c.outputs for c in code)


@pytest.mark.parametrize("path", sorted(BUILD.sources()), ids=lambda path: path.stem)
def test_a_picture_is_small_and_says_no_time(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert "execution" not in cell.metadata
        for output in cell.get("outputs", []):
            for kind, data in output.get("data", {}).items():
                assert len(data) <= 140_000 or not kind.startswith("image"), "100 kB, in base64"


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
def test_a_notebook_runs_and_shows_its_figures():
    book = BUILD.executed(BUILD.notebook(SCRIPT))
    (output,) = book.cells[-1].outputs
    assert "image/png" in output.data
    again = nbformat.reads(BUILD.written(book), as_version=4)
    assert BUILD.differences(again, book) == []
    again.cells[-1].outputs = []
    again.cells[1].source = "two = 1"
    assert BUILD.differences(again, book) == ["cell 1 has another source", "cell 3 prints other words"]
    with pytest.raises(Exception, match="name 'undefined' is not defined"):
        BUILD.executed(BUILD.notebook(SCRIPT.replace("one = 1", "one = undefined")))


@pytest.mark.parametrize("name", IN_CELLS)
def test_a_script_keeps_its_pictures_where_it_is_told(name):
    source = (EXAMPLES / f"{name}.py").read_text()
    assert f'else "runs/{name}")' in source
    kept = re.findall(r'^(?:    )?keep\(.*"(\w+)"\)$', source, re.M)
    assert len(kept) == len(set(kept)) >= 2
