"""What pictures are drawn on."""

import importlib

import numpy as np
import pytest

from funcbp import plot

from .figures import records


def test_axes_that_are_given_are_drawn_on():
    axes = plot.new_axes(columns=2)
    assert plot.learning_curves(records(3), axes=axes) is axes[0].figure
    ax = plot.new_axes()
    assert plot.weights(np.eye(3), ax=ax) is plot.predictions([1, 2], [1, 2], ax) is ax.figure


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r'not installed: pip install "funcbp\[plots\]"'):
        plot.weights(np.eye(2))
