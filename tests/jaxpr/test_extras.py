"""Without a package that comes with an extra, whatever needs it names the extra."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import data, plot, train
from funcbp.jaxpr import extras

ROOT = Path(__file__).parents[2]
NEEDS = {
    "a trace's table": ("pandas", lambda folder: bp.trace(jnp.sin)(1.0).to_pandas(), "to_pandas needs pandas"),
    "a table of errors": ("pandas", lambda folder: bp.precision(jnp.sin)(1.0).to_pandas(), "to_pandas needs pandas"),
    "a table to learn from": ("pandas", lambda folder: data.read_table(folder / "a.csv"), "Tables are read by pandas"),
    "a data set": ("sklearn", lambda folder: data.load("digits"), "digits comes with scikit-learn"),
    "OpenML": ("sklearn", lambda folder: data.read_openml("iris"), "OpenML is read by scikit-learn"),
    "a picture": ("matplotlib", lambda folder: plot.weights(np.eye(2)), "Pictures are drawn by matplotlib"),
    "a progress bar": ("tqdm", lambda folder: train.records.tqdm(), "The progress bar needs tqdm"),
    "orbax": ("orbax", train.OrbaxCheckpoint, "This kind of checkpoint needs orbax-checkpoint"),
}


@pytest.mark.parametrize("what", NEEDS)
def test_without_a_package_the_extra_is_named(what, monkeypatch, tmp_path):
    package, use, message = NEEDS[what]
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError) as raised:
        use(tmp_path)
    extra = extras.EXTRAS[package]
    assert str(raised.value).endswith(f'{message}, which is not installed: pip install "funcbp[{extra}]".')


def test_every_package_comes_with_its_extra_and_has_a_row():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in extras.EXTRAS.items():
        name = extras.NAMES.get(package, package)
        assert any(line.startswith(f"{name}>=") for line in declared[extra]), package
    assert {package for package, *_ in NEEDS.values()} == set(extras.EXTRAS)


def test_a_package_that_cannot_be_imported_says_why_itself(monkeypatch, tmp_path):
    (tmp_path / "tqdm.py").write_text("import something_that_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="something_that_it_needs"):
        train.records.tqdm()
