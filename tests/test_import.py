"""`import funcbp` is light: the engine comes with it, and the rest when a name of it is first used."""

import ast
import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import funcbp as bp

ROOT = Path(__file__).parent.parent
MOST_MODULES = 120
LATER = ("optax", "scipy", "matplotlib", "sklearn", "tqdm", "funcbp.learn", "funcbp.inspection", "funcbp.testing")


def fresh(source):
    """What a new process prints as JSON."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{source}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def loaded(statement):
    """The modules that a statement adds to those of JAX."""
    return fresh(
        f"import jax\nbefore = set(sys.modules)\n{statement}\nprint(json.dumps([*sys.modules.keys() - before]))"
    )


def of(names, modules):
    return [m for m in modules if any(m == name or m.startswith(f"{name}.") for name in names)]


def test_the_import_adds_few_modules():
    modules = loaded("import funcbp")
    assert "funcbp.autodiff.transformations" in modules
    assert len(modules) <= MOST_MODULES, sorted(modules)
    assert of(LATER, modules) == []


def test_a_gradient_needs_no_more_than_the_engine():
    modules = loaded("import funcbp, jax.numpy as jnp\nfuncbp.grad(lambda x: jnp.sin(x) ** 2)(1.0)")
    assert of(LATER, modules) == []


def test_the_rest_comes_when_it_is_used():
    steps = {
        "import funcbp": "funcbp",
        "funcbp.grad(lambda x: jax.lax.fori_loop(0, 3, lambda i, c: jax.numpy.sin(c), x))(1.0)": "scipy.sparse",
        "funcbp.cotangents": "funcbp.inspection",
        "from funcbp import ops": "funcbp.learn.ops",
        "funcbp.fit": "optax",
        "from funcbp import *": "funcbp.learn.reproduce",
    }
    came = fresh(
        f"import jax\ncame = []\nfor step in {list(steps)}:\n before = set(sys.modules)\n exec(step)\n"
        " came.append([*sys.modules.keys() - before])\nprint(json.dumps(came))"
    )
    for (step, module), modules in zip(steps.items(), came, strict=True):
        assert module in modules, step
    assert of(["matplotlib", "sklearn", "tqdm"], [m for modules in came for m in modules]) == []


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("command", ["check", "reproduce", "train", "coverage"])
def test_the_command_draws_and_reads_nothing_before_it_is_told(command):
    quietly = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):"
    modules = loaded(f"{quietly}\n from funcbp.cli import main\n main(['{command}', '--help'])")
    heavy = ("scipy", "matplotlib", "sklearn", "tqdm", *(("optax", "funcbp.learn") if command == "check" else ()))
    light = ("funcbp.learn", "funcbp.learn.request")  # the error of a request that cannot be met
    assert of(heavy, [m for m in modules if m not in light]) == []


def test_the_plugin_loads_nothing():
    modules = fresh(
        "import pytest\nbefore = set(sys.modules)\nimport _funcbp_pytest\n"
        "print(json.dumps([*sys.modules.keys() - before]))"
    )
    assert of(["jax", "numpy", "funcbp"], modules) == []


# --- names ------------------------------------------------------------------------------------------------------------


def is_dunder(name):
    return name.startswith("__") and name.endswith("__")


def test_dir_shows_the_public_names():
    shown = "sorted(n for n in dir(funcbp) if not (n.startswith('__') and n.endswith('__')))"
    before, after = fresh(
        f"import funcbp\nbefore = {shown}\nfrom funcbp import *\nimport funcbp.cli\n"
        f"print(json.dumps([before, {shown}]))"
    )
    assert before == after == sorted(bp.__all__)
    assert {"__all__", "__doc__", "__version__"} <= set(dir(bp))


@pytest.mark.parametrize("name", bp.__all__)
def test_each_public_name_is_there(name):
    value = getattr(bp, name)
    assert value is getattr(bp, name)
    home = value.__name__ if hasattr(value, "__path__") else value.__module__
    assert home.startswith("funcbp.")


def test_those_who_read_the_source_see_each_name_where_it_comes_from():
    """Type checkers and editors read the imports that are never run: they must say what the table says."""
    tree = ast.parse(Path(bp.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    said = {}
    for node in block.body:
        for alias in node.names:
            here = importlib.import_module("." * node.level + (node.module or ""), "funcbp")
            said[alias.name] = getattr(here, alias.name)
    assert said.keys() == bp.LAZY.keys()
    assert all(getattr(bp, name) is value for name, value in said.items())
    eager = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert set(bp.__all__) == said.keys() | {n for n in eager if n in bp.__all__}
    assert not said.keys() & eager


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="module 'funcbp' has no attribute 'gradient'"):
        bp.gradient  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'gradient' from 'funcbp'"):
        from funcbp import gradient  # noqa: F401


@pytest.mark.slow(once=[])
@pytest.mark.parametrize(
    "statements",
    [
        "import funcbp.cotangents.zero",
        "import funcbp\nfuncbp.cotangents\nimport funcbp.cotangents.zero",
        "from funcbp.cotangents import Zero\nfrom funcbp import cotangents\nassert callable(cotangents)",
        "import funcbp, importlib\nimportlib.reload(funcbp)\nfuncbp.cotangents\nimportlib.reload(funcbp)",
    ],
)
def test_a_function_and_a_package_of_one_name(statements):
    assert fresh(f"{statements}\nprint(json.dumps(sys.modules['funcbp'].cotangents.__module__))") == (
        "funcbp.inspection.named"
    )
    assert importlib.import_module("funcbp.cotangents").Zero is sys.modules["funcbp.cotangents"].Zero


def test_what_comes_later_is_pickled_by_name():
    for value in (bp.fit, bp.nets.mlp, bp.check, bp.train.stopping.target_error):
        assert pickle.loads(pickle.dumps(value)) is value
