"""Every model under every way of running it: our gradients against JAX's, leaf by leaf."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp

from ..interpret import interpreted
from .zoo import ARCHITECTURES, FAMILIES

# The largest difference allowed, relative to the leaf's largest element. Measured: 14 ulps, in both precisions.
TOLERANCE = {"float64": 1e-12, "float32": 32 * np.finfo(np.float32).eps}
MODELS = [(family, architecture) for family in FAMILIES for architecture in ARCHITECTURES]
IDS = [f"{architecture}-{family}" for family, architecture in MODELS]
PLAIN = [("plain", architecture) for architecture in ARCHITECTURES]


@functools.cache
def build(family, architecture, precision):
    """A model; `precision` is that of the surrounding context."""
    pytest.importorskip(FAMILIES[family])
    zoo = importlib.import_module(f".zoo.{family}", __package__)
    return getattr(zoo, architecture)()


@pytest.fixture
def model(family, architecture, precision, promotion):
    return build(family, architecture, precision)


# --- the ways of running: the same with funcbp and with JAX -----------------------------------------------------------


def both(run):
    """`run(api, ...)` with funcbp and with JAX."""
    return lambda *args: (run(bp, *args), run(jax, *args))


def compiled(run):
    """Both in one compiled program."""
    return jax.jit(both(run))


def traced(run):
    """Both in one program, whose operations are run one by one: the same equations, and nothing is compiled."""
    return functools.partial(interpreted, both(run))


def batches(model):
    """Three batches, stacked."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *(model.problem.data(seed) for seed in (1, 2, 3)))


def eager(model):
    """Ours called plainly, one operation at a time."""
    args = (model.params, *model.problem.data(1))
    return bp.value_and_grad(model.loss)(*args), interpreted(jax.value_and_grad(model.loss), *args)


def jit(model):
    return compiled(lambda api, *args: api.value_and_grad(model.loss)(*args))(model.params, *model.problem.data(1))


def pullback(model):
    """`vjp` with respect to the parameters and real inputs; forward and backward are two compiled functions."""
    x, _ = model.problem.data(1)
    f, primals = model.apply, (model.params, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        f, primals = lambda params: model.apply(params, x), (model.params,)
    (out, ours), (expected_out, theirs) = compiled(lambda api, *primals: api.vjp(f, *primals))(*primals)
    ct = jax.random.normal(jax.random.key(2), out.shape)
    cts, expected_cts = jax.jit(lambda ours, theirs, ct: (ours(ct), theirs(ct)))(ours, theirs, ct)
    return (out, cts), (expected_out, expected_cts)


def vmap(model):
    """One gradient for each of three batches."""
    gradients = lambda api, *args: jax.vmap(api.value_and_grad(model.loss), (None, 0, 0))(*args)
    return traced(gradients)(model.params, *batches(model))


def vmap_params(model):
    """One gradient for each of two sets of parameters."""
    two = jax.tree.map(lambda p: jnp.stack([p, p * p.dtype.type(0.5)]), model.params)
    gradients = lambda api, *args: jax.vmap(api.value_and_grad(model.loss), (0, None, None))(*args)
    return compiled(gradients)(two, *model.problem.data(1))


def scan(model):
    """Three steps of gradient descent in one loop: the values, the gradients, and where they lead."""

    def train(api, params, batches):
        def step(params, batch):
            value, grads = api.value_and_grad(model.loss)(params, *batch)
            return jax.tree.map(lambda p, g: p - p.dtype.type(0.01) * g, params, grads), (value, grads)

        return jax.lax.scan(step, params, batches)

    return traced(train)(model.params, batches(model))


# each in one precision: what depends on it (the rules' constants, casts) is in every way of running the same model
WAYS = [(eager, "float64"), (jit, "float32"), (vmap, "float64"), (scan, "float64")]
MORE_WAYS = [(jit, "float64"), (pullback, "float64"), (vmap_params, "float32")]
IN_PRECISION = dict(argnames=("way", "precision"), indirect=["precision"])
name_of = lambda x: getattr(x, "__name__", x)


# --- the comparison ---------------------------------------------------------------------------------------------------


def largest(x):
    return np.max(np.abs(x), initial=0)


def assert_equal(ours, theirs, precision):
    """Same trees, shapes and dtypes, and each leaf as close as its precision allows.

    A leaf whose gradient is zero but for rounding (the key bias of an attention layer, a bias before a normalisation)
    has no scale of its own, and is held against the rounding of the largest leaf.
    """
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert jax.tree.map(jax.typeof, ours) == jax.tree.map(jax.typeof, theirs)
    ours, theirs = (jax.tree.leaves_with_path(jax.tree.map(np.asarray, t)) for t in (ours, theirs))
    rounding = 16 * np.finfo(precision).eps * max(largest(x) for _, x in theirs)
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        assert a.dtype == precision
        assert np.all(np.isfinite(b))
        bound = max(TOLERANCE[precision] * largest(b), 0 if largest(b) > rounding else 2 * rounding)
        error = largest(a - b)
        assert error <= bound, f"{jax.tree_util.keystr(path)}: {error:.2e} > {bound:.2e}"


@pytest.mark.slow(once=["family", "way"])
@pytest.mark.parametrize(argvalues=WAYS, ids=name_of, **IN_PRECISION)
@pytest.mark.parametrize(("family", "architecture"), MODELS, ids=IDS)
def test_equals_jax(model, way, precision):
    assert_equal(*way(model), precision)


@pytest.mark.slow
@pytest.mark.parametrize(argvalues=MORE_WAYS, ids=name_of, **IN_PRECISION)
@pytest.mark.parametrize(("family", "architecture"), PLAIN, ids=ARCHITECTURES)
def test_equals_jax_in_more_ways(model, way, precision):
    assert_equal(*way(model), precision)
