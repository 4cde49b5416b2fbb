"""Per-example quantities against `vmap(jax.grad)`, in float64: on models, and on leaves of all kinds."""

import importlib

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import funcbp as bp

from ..models.zoo import FAMILIES
from .problems import N, W, assert_close, everything, flat, key, normal, problem, transposed

MODELS = {
    "lenet-plain": ["products", "factors"],
    "lstm-plain": ["factors"],
    "transformer-plain": ["factors"],
    "resnet-plain": ["products"],
    "lenet-linen": [],
    "transformer-eqx": [],
    "lstm-hk": [],
}


@pytest.fixture
def libraries():
    """JAX's usual promotion, which the libraries' layers rely on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models(name, libraries):
    architecture, family = name.split("-")
    pytest.importorskip(FAMILIES[family])
    model = getattr(importlib.import_module(f"..models.zoo.{family}", __package__), architecture)()
    loss = lambda params, example: model.loss(params, *(a[None] for a in example))
    batch = model.problem.data(1)
    assert_close(*everything(loss, model.params, batch))
    methods = bp.per_example.methods(loss)(model.params, batch).values()
    assert set(MODELS[name]) <= set(methods)
    assert not any(":" in method for method in methods)  # nothing had to be made for want of a better one


def test_our_own_networks_keep_their_factors():
    """The layers' pairs are carried by custom_vjp: their backward rules are opened."""
    net = bp.nets.mlp([3, 4, 2], activation=bp.ops.tanh)
    params = net.init(key(0), jnp.zeros(3))
    loss = lambda params, example: bp.ops.squared_error(net.apply(params, example[0]), example[1])
    batch = normal(1, N, 3), normal(2, N, 2)
    assert_close(*everything(loss, params, batch))
    methods = bp.per_example.methods(loss)(params, batch)
    assert methods == {
        "dense_0/bias": "array",
        "dense_0/kernel": "factors",
        "dense_1/bias": "array",
        "dense_1/kernel": "factors",
    }


def test_leaves_without_gradient():
    """Frozen, unused, empty and absent leaves; a batch of one."""
    params = {"w": W, "frozen": W, "unused": jnp.ones(2), "empty": jnp.ones((0, 4)), "none": None}

    def loss(p, x):
        return jnp.sum(jnp.tanh(x @ p["w"]) @ lax.stop_gradient(p["frozen"])) + jnp.sum(p["empty"] @ x.T)

    batch = normal(14, 1, 3, 4)
    assert_close(*everything(loss, params, batch))
    norms = bp.per_example.norms(loss, per_leaf=True)(params, batch)
    assert norms["frozen"] == norms["unused"] == norms["empty"] == 0 and norms["none"] is None


def test_bfloat16_adds_up_in_float32():
    w, x = W.astype(jnp.bfloat16), normal(11, N, 3, 4).astype(jnp.bfloat16)
    rows = flat(jax.vmap(jax.grad(transposed), (None, 0))(w, x)).astype(jnp.float32)
    expected = jnp.linalg.norm(rows, axis=1)
    norms, gradient = jax.jit(bp.per_example.norms(transposed, with_grad=True))(w, x)
    assert norms.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    assert_close(norms, expected, 2**-7)
    assert_close(gradient.astype(jnp.float32), jnp.mean(rows, 0).reshape(4, 4), 2**-5)


def test_the_size_of_the_program_does_not_grow_with_the_batch():
    loss, params, _, _ = problem()
    sizes = []
    for n in (4, 64):
        batch = jax.ShapeDtypeStruct((n, 3), jnp.float64), jax.ShapeDtypeStruct((n, 2), jnp.float64)
        sizes.append(len(jax.make_jaxpr(bp.per_example.clipped_grad(loss, 1.0))(params, batch).eqns))
    assert sizes[0] == sizes[1]


def test_refusals():
    x = jnp.ones((2, 3))
    with pytest.raises(TypeError, match=r"must return one number, the loss of one example .* returned shape \[3\]"):
        bp.per_example.norms(lambda w, x: w * x)(jnp.array(1.0), x)
    with pytest.raises(TypeError, match=r"must return one number"):
        bp.per_example.norms(lambda w, x: (w, x))(jnp.array(1.0), x)
    with pytest.raises(TypeError, match=r"must be real floating-point arrays, and this one is int64. What is not"):
        bp.per_example.norms(lambda w, x: jnp.sum(w * x))(jnp.array(1), x)
    with pytest.raises(ValueError, match=r"one leading axis, of examples; here are 0 \[2, 3\], 1 \[3\]"):
        bp.per_example.norms(lambda w, x: jnp.sum(w * x[0]))(jnp.array(1.0), (x, jnp.ones(3)))
    with pytest.raises(ValueError, match="at least two"):
        bp.per_example.noise_scale(lambda w, x: jnp.sum(w * x))(jnp.array(1.0), x[:1])
