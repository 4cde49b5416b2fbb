"""The house stands as it was drawn: imports point downward, in no circle, and JAX's unstable side has one door."""

from __future__ import annotations

import pytest

from .architecture import FLOORS, ORDER, circles, floors, sources, table, violations


def test_the_house_stands():
    assert violations(sources()) == []


PLANTED = {
    "upward": ("remat/plan.py", "from ..control_flow import scan", "remat/plan.py:1 imports control_flow/scan.py"),
    "upward in a function": (
        "rules/shape.py",
        "def f():\n    from ..autodiff.tape import Tape",
        "rules/shape.py:2 imports autodiff/tape.py, which is above it",
    ),
    "upward for the type checker alone": (
        "jaxpr/values.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..cotangents import Zero",
        "jaxpr/values.py:3 imports cotangents/__init__.py, which is above it",
    ),
    "upward by the package's name": (
        "jaxpr/values.py",
        "import funcbp.learn.ops.losses",
        "jaxpr/values.py:1 imports learn/ops/losses.py",
    ),
    "upward by a string": (
        "credit/surrogate.py",
        "import importlib\nimportlib.import_module('funcbp.learn.ops')",
        "credit/surrogate.py:2 imports learn/ops/__init__.py",
    ),
    "from the top": ("learn/train/fit.py", "from ... import grad", "learn/train/fit.py:1 imports __init__.py"),
    "a circle of files": (
        "cotangents/zero.py",
        "from .products import Factored",
        "cotangents/products.py, cotangents/zero.py",
    ),
    "a circle of rooms": (
        "per_example/pairs.py",
        "from ..curvature import gauss_newton",
        "These rooms import each other in a circle: curvature, per_example.",
    ),
    "an unstable import": ("learn/ops/losses.py", "import jax._src.core as core", "losses.py:1 imports jax._src.core"),
    "an unstable import of a name": (
        "rules/shape.py",
        "from jax.extend import core",
        "shape.py:1 imports jax.extend.core",
    ),
    "one floor too many": ("per_example/pairs.py", "from ..control_flow import scan", f"and {FLOORS} are the most"),
    "a room that nobody knows": ("shed/rake.py", "", "shed/ is no room of the house"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name):
    file, text, message = PLANTED[name]
    files = sources()
    found = violations(files | {file: f"{text}\n{files.get(file, '')}"})
    assert any(message in sentence for sentence in found), found


def test_a_floor_is_one_above_the_highest_below():
    assert floors({"roof": {"attic", "cellar"}, "attic": {"cellar"}, "cellar": set()}) == {
        "cellar": 1,
        "attic": 2,
        "roof": 3,
    }


def test_circles_are_all_that_lead_back():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"f"}}
    assert circles(graph) == [["a", "b", "c"], ["f"]]


def test_the_table_has_a_line_for_each_room():
    lines = table(sources()).splitlines()
    assert {line.split()[1] for line in lines[2:-1]} == {room for row in ORDER for room in row}
    assert lines[2].split()[1] == "funcbp"
