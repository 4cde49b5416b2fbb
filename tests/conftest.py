"""Tests run in float64 where they do not say otherwise, with JAX's strictest promotion, and warnings are errors.

`python -m pytest` leaves out what is marked `slow`, and `python -m pytest --all` runs every test. Of a slow test with
`once=`, a quick run takes those rows with which a value of one of these parameters comes up for the first time.
"""

import functools
import gc
import itertools

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # most of a test's time is compilation


gc.freeze()  # what the libraries made when they were imported stays
gc.disable()  # most of the time of a long run went into searching what JAX keeps for garbage, again and again
_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def small_heap():
    """Now and then, what JAX has traced and compiled is dropped, and garbage collected."""
    yield
    if next(_tests) % 150 == 0:
        jax.clear_caches()
        gc.collect()


# --- which tests are quick --------------------------------------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests too")


@pytest.hookimpl(tryfirst=True)  # before a plugin changes the order
def pytest_collection_modifyitems(config, items):
    """Leave out the slow tests, unless all are asked for, or one is asked for by name."""
    if config.getoption("--all") or any("::" in arg for arg in config.args):
        return
    seen = set()
    quick = [item for item in items if is_quick(item, seen)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(quick)])
    items[:] = quick


def is_quick(item, seen):
    """Whether a quick run takes a test; `seen` are the values that the tests before it had."""
    params = getattr(item, "callspec", None)
    for slow in item.iter_markers("slow"):
        new = {(item.function, path, value_at(path, params)) for path in slow.kwargs.get("once", ())} - seen
        seen |= new
        if not new:
            return False
    return True


def value_at(path, callspec):
    """The value of a parameter, or of an attribute of it, as in `row.primitive`; what may have no hash by identity."""
    name, *attributes = path.split(".")
    value = functools.reduce(getattr, attributes, callspec.params[name])
    return value if isinstance(value, str | int) else id(value)


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--all"):
        terminalreporter.write_line("The quick tests. Every test: python -m pytest --all")


# --- what a row of a table is called ----------------------------------------------------------------------------------


def pytest_make_parametrize_id(config, val, argname):
    """Name a parameter by what it is; the number that pytest would give it says nothing."""
    if val is None or isinstance(val, str | bool | int | float | complex):
        return None
    if isinstance(val, np.ndarray | jax.Array):
        return f"{val.dtype.name}{list(val.shape)}"
    if isinstance(val, list | tuple | dict):
        return " ".join(str(x) for x in val if isinstance(x, str | int | float))
    name = getattr(val, "__name__", getattr(val, "name", ""))
    return "" if name == "<lambda>" else str(name)
