"""Whose line an equation was written at: the user's, with that of the library beside it."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.jaxpr import sources

HERE = Path(__file__)
X = jnp.ones((2, 3))
KEY = jax.random.key(0)


def linen():
    from flax import linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, h, _):
            return nn.tanh(nn.Dense(3)(h)), None  # layer

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            blocks = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            return nn.LayerNorm()(blocks()(x, None)[0])  # layer

    x = X.astype(jnp.float32)
    return lambda p: Model().apply(p, x), Model().init(KEY, x), "flax"


def nnx():
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self):
            self.inner = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.inner(x)  # layer

    structure, params = nnx.split(Model())
    return lambda p: nnx.merge(structure, p)(X.astype(jnp.float32)), params, "flax"


def equinox():
    import equinox as eqx

    model = eqx.nn.Linear(3, 3, key=KEY)
    return lambda m: eqx.filter_vmap(m)(X), model, "equinox"  # layer


def haiku():
    import haiku as hk

    model = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(3)(hk.LayerNorm(-1, True, True)(x))))  # layer
    return lambda p: model.apply(p, X), model.init(KEY, X), "haiku"


@pytest.mark.slow
@pytest.mark.parametrize("library", [equinox, linen, nnx, haiku])
def test_what_a_library_computes_is_at_the_line_that_calls_it(library):
    f, params, name = library()
    t = bp.trace(lambda p: jnp.sum(f(p) ** 2))(params)
    text, inside = HERE.read_text().splitlines(), [r for r in t if r.library]
    assert all(r.line.startswith(f"{HERE}:") for r in t)
    assert all("# layer" in text[r.number - 1] and f"/{name}/" in r.library for r in inside)
    assert set(t.at(operation="dot_general")) <= set(inside)
    assert [r.library for r in t if r.primitive == "reduce_sum"][-1] == ""


def installed(folder, source):
    """A module of this source that lies where libraries do."""
    path = folder / "site-packages" / "somelib.py"
    path.parent.mkdir()
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("somelib", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_a_library_compiles_is_at_the_line_of_each_call_and_not_of_the_first(tmp_path):
    somelib = installed(tmp_path, "import jax, jax.numpy as jnp\ninner = jax.jit(lambda x: jnp.sin(x) * 2)\n")
    somelib.inner(X[0])
    first = lambda x: somelib.inner(x)
    second = lambda x: jnp.sum(lax.map(lambda a: somelib.inner(a), x))  # wanted
    jax.make_jaxpr(first)(X[0])
    t = bp.trace(second)(X)
    assert "# wanted" in HERE.read_text().splitlines()[t.at(operation="sin").rows[0].number - 1]


@pytest.fixture
def said():
    before = dict(sources._SAID)
    yield
    sources._SAID.clear()
    sources._SAID.update(before)
    sources.is_library.cache_clear()
    sources._frames.cache_clear()


def test_what_counts_as_a_library_can_be_said(tmp_path, monkeypatch, said):
    assert jx.is_library(json.__file__) and jx.is_library(jax.__file__) and not jx.is_library(__file__)
    somelib = installed(tmp_path, "import jax.numpy as jnp\ndef inner(x):\n    return jnp.sin(x)\n")
    monkeypatch.setitem(sys.modules, "somelib", somelib)
    row = lambda: bp.trace(lambda x: somelib.inner(x))(1.0).rows[0]
    assert "test_sources.py:" in row().line and "somelib.py:3:" in row().library
    bp.inspection.count_as_library("somelib", False)
    assert "somelib.py:3:" in row().line and row().library == ""
    bp.inspection.count_as_library(str(HERE.parent))
    assert "somelib.py:3:" in row().line
    bp.inspection.count_as_library(somelib)
    # all are libraries: the innermost; but for what runs the tests in several processes, which came in as a string
    assert "somelib.py:3:" in (row().library if row().line.startswith("<string>") else row().line)
    with pytest.raises(ValueError, match="'nothing' is no module that was imported"):
        bp.inspection.count_as_library("nothing")
