"""Which tests run: `python -m pytest` leaves out what is marked `slow`, `python -m pytest --all` runs every test, and
`python -m pytest --rest` those that the first leaves out.

Of a slow test with `once=`, a quick run takes the first row, and those with which a value of one of these parameters
comes up for the first time.
"""

import functools
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests too")
    parser.addoption("--rest", action="store_true", help="run the tests that a run without options leaves out")


@pytest.hookimpl(tryfirst=True)  # before a plugin changes the order
def pytest_collection_modifyitems(config, items):
    """Begin with the long ones; leave out the slow tests, unless all are asked for, or one is asked for by name."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    if config.getoption("--all") or any("::" in arg for arg in config.args):
        return
    seen = set()
    chosen = [item for item in items if is_quick(item, seen) != config.getoption("--rest")]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def is_quick(item, seen):
    """Whether a quick run takes a test; `seen` are the values that the tests before it had."""
    tables = [slow.kwargs.get("once") for slow in item.iter_markers("slow")]
    if not tables or None in tables:
        return not tables
    values = {(item.function, path, value_at(path, item.callspec)) for once in tables for path in once}
    new = {item.function, *values} - seen
    seen |= new
    return bool(new)


def value_at(path, callspec):
    """The value of a parameter, or of an attribute of it, as in `row.primitive`; what may have no hash by identity."""
    name, *attributes = path.split(".")
    value = functools.reduce(getattr, attributes, callspec.params[name])
    return value if isinstance(value, str | int) else id(value)


@pytest.fixture
def quick_tests(request):
    """The tests of a quick run; skips where those that were collected are not all of them."""
    config = request.config
    chosen = config.option.keyword or config.option.markexpr
    if chosen or [Path(arg).resolve() for arg in config.args] != [Path(config.rootpath, "tests")]:
        pytest.skip("This is said of all the quick tests, and only some tests were asked for.")
    seen = set()
    return [item for item in request.session.items if is_quick(item, seen)]


def pytest_terminal_summary(terminalreporter, config):
    if not (config.getoption("--all") or config.getoption("--rest")):
        terminalreporter.write_line("The quick tests. Every test: python -m pytest --all")
