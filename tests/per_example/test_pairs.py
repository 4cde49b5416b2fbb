"""Each way a weight can be used, and what its gradients are made of."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import funcbp as bp

from .problems import N, W, assert_close, everything, normal, preferring, transposed


def tied(w, x):
    return jnp.sum(jnp.tanh(x @ w) @ w.T)


def used_as_it_is_and_in_a_product(w, x):
    return jnp.sum(jnp.tanh(x @ w)) + jnp.sum(w**2)


def used_twice_in_ways_that_do_not_meet(w, x):
    return jnp.sum(jnp.tanh(x @ w)) + jnp.sum(jnp.sin(x @ w.reshape(2, 8)[:, :4].T.reshape(4, 2)))


def sliced(w, x):
    return jnp.sum(jnp.tanh(x @ w[:, 1:3]) ** 2)


def scaled(w, x):
    return jnp.sum(jnp.tanh(x @ (w * jnp.exp(w))))


def sum_of_products(w, x):
    return jnp.sum(jnp.tanh(x @ w)) + jnp.sum(jnp.sin(2 * x @ w))


def heads(w, x):
    return jnp.sum(jnp.einsum("pi,ihk->hpk", x, w.reshape(4, 2, 2)) ** 3)


def batched(w, x):
    return jnp.sum(jnp.tanh(jnp.einsum("pi,pij->pj", x[:, :2], jnp.stack([w[:2], w[2:], w[1:3]]))))


def loop(w, x):
    return jnp.sum(lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h @ w.T), x[0], x)[0] ** 2)


def loop_within_a_loop(w, x):
    inner = lambda h, w: (jnp.tanh(w.reshape(2, 2) @ h.reshape(2, 2)).reshape(4), None)
    return jnp.sum(lax.scan(lambda h, x: (lax.scan(inner, h + x, w)[0], None), x[0], x)[0] ** 2)


def branch(w, x):
    return lax.cond(x[0, 0] > 0, lambda: jnp.sum(jnp.tanh(x @ w)), lambda: jnp.sum(x @ w.T) ** 2)


def compiled_and_computed_again(w, x):
    return jnp.sum(jax.checkpoint(jax.jit(lambda w, x: jnp.tanh(x @ w) @ w))(w, x) ** 2)


def mapped(w, x):
    return jnp.sum(jnp.tanh(jax.vmap(lambda x: w @ x)(x)) ** 2)


@jax.custom_vjp
def own(w, x):
    return x @ w


own.defvjp(lambda w, x: (x @ w, (w, x)), lambda res, ct: (0.5 * (res[1].T @ ct), ct @ res[0].T))


def user_rule(w, x):
    """Half the true gradient: the user's rule is honoured."""
    return jnp.sum(own(w, jnp.tanh(own(w, x))) ** 2)


def layers_in_a_loop(w, x):
    return jnp.sum(lax.scan(lambda h, x: (bp.ops.tanh(bp.ops.dense(h, w) + x), None), x[0], x)[0] ** 2)


def layer_norm(w, x):
    x = x - jnp.mean(x, -1, keepdims=True)
    return jnp.sum(jnp.tanh(x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * w[:1] + w[1:2]))


def group_norm(w, x):
    x = x.reshape(3, 2, 2) - jnp.mean(x.reshape(3, 2, 2), (0, 2), keepdims=True)
    x = (x * lax.rsqrt(jnp.mean(x**2, (0, 2), keepdims=True) + 1e-5)).reshape(3, 4)
    return jnp.sum(jnp.tanh(x * w[:1] + w[1:2]) @ w)


WAYS = {
    tied: "factors",
    used_as_it_is_and_in_a_product: "no product",
    used_twice_in_ways_that_do_not_meet: "do not meet",
    transposed: "factors",
    sliced: "factors",
    scaled: "array",
    sum_of_products: "factors",
    heads: "factors",
    batched: None,
    loop: "factors",
    loop_within_a_loop: "factors",
    branch: "array",
    compiled_and_computed_again: "factors",
    mapped: "factors",
    layers_in_a_loop: "factors",
    user_rule: None,
    layer_norm: "array",
    group_norm: None,
}


@pytest.mark.parametrize("loss", WAYS, ids=lambda f: f.__name__)
def test_ways_of_using_a_weight(loss):
    x = normal(11, N, 3, 4)
    assert_close(*everything(loss, W, x))
    if WAYS[loss]:
        with preferring("factors"):
            assert WAYS[loss] in bp.per_example.methods(loss)(W, x)[""]


CONVOLUTIONS = {
    "plain": ((2, 3, 3, 2), dict(window_strides=(1, 1), padding="SAME")),
    "strided": ((2, 3, 3, 2), dict(window_strides=(2, 1), padding=((1, 0), (2, -1)))),
    "dilated": ((2, 2, 3, 2), dict(window_strides=(1, 1), padding="VALID", rhs_dilation=(2, 1))),
    "transposed": ((2, 2, 3, 2), dict(window_strides=(1, 2), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2))),
    "in groups": ((3, 2, 2, 2), dict(window_strides=(1, 1), padding="SAME", feature_group_count=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    shape, how = CONVOLUTIONS[name]
    groups = how.get("feature_group_count", 1)
    w = normal(12, *shape[:2], 4 // groups, shape[3])

    def loss(w, x):
        run = lambda x: lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **how)
        return jnp.sum(jnp.tanh(run(x))) + jnp.sum(jnp.sin(run(x[:, ::-1])))

    assert_close(*everything(loss, w, normal(13, N, 2, 5, 6, 4), by=("factors", "products", "direct")))


def convolved(w, x):
    z = lax.conv_general_dilated(x[None], w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(jnp.tanh(z))


def test_a_convolution_goes_the_way_that_costs_less():
    """Patches are many bytes for few operations where there are few units; but a direct way of few channels is slow."""
    method = lambda size, inputs, units, kernel=3, dtype=jnp.float32: bp.per_example.methods(convolved)(
        jax.ShapeDtypeStruct((kernel, kernel, inputs, units), dtype),
        jax.ShapeDtypeStruct((8, size, size, inputs), dtype),
    )[""]
    assert method(32, 16, 16, 9) == method(16, 16, 16) == "direct"
    assert method(28, 1, 6, 5) == method(32, 3, 8) == "products"  # few channels
    assert method(32, 3, 32) == method(16, 32, 64) == "products"  # many units
    assert method(16, 64, 64, 1) == method(16, 64, 16, 1) == "products"  # no more in patches than in the image
    assert method(2, 256, 256) == "factors"
    assert method(32, 16, 16, 9, jnp.float64) == "products"


@pytest.mark.slow
def test_a_direct_convolution_cuts_no_patches():
    """Norms and clipping make the kernels' gradients without them; gradients that are handed out come from patches."""
    w, x = normal(12, 5, 5, 2, 3), normal(13, N, 8, 8, 2)
    with preferring("direct"):
        counts = []
        for f in (bp.per_example.clipped_grad(convolved, 1.0), bp.per_example.grads(convolved)):
            compiled = jax.jit(f).lower(w, x).compile()
            counts.append(compiled.as_text().count("convolution("))
        assert counts == [2, 1]  # forward, and backward in groups of examples
        rows = jax.vmap(jax.grad(convolved), (None, 0))(w, x)
        assert_close(bp.per_example.grads(convolved)(w, x), rows)


@pytest.mark.parametrize("how", ["rows", "columns", "in a loop", "tied"])
def test_lookups_of_the_same_row(how):
    tokens = jnp.array([[0, 2, 2], [1, 1, 1], [3, 0, 3]])

    def loss(w, tokens):
        if how == "rows":
            return jnp.sum(jnp.tanh(w[tokens]) ** 2)
        if how == "columns":
            return jnp.sum(jnp.tanh(w[:, tokens]) ** 3)
        if how == "in a loop":
            return jnp.sum(lax.scan(lambda h, t: (jnp.tanh(h + w[t]), None), jnp.ones(4), tokens)[0])
        return jnp.sum(jnp.tanh(w[tokens] @ w.T) ** 2)

    assert_close(*everything(loss, W, tokens))
    with preferring("factors"):
        assert bp.per_example.methods(loss)(W, tokens)[""] == "factors"


def test_a_row_that_does_not_exist_has_no_gradient():
    """Though what stands in its place has a delta, 2 (0 + 1)."""
    loss = lambda w, tokens: jnp.sum((w.at[tokens].get(mode="fill", fill_value=0) + 1) ** 2)
    tokens = jnp.array([[0, 4], [9, 9], [3, -5]])
    assert_close(*everything(loss, W, tokens))
    rows = [jnp.zeros((4, 4)).at[i].set(2 * (W[i] + 1)) for i in (0, 3)]  # by hand; -5 does not exist either
    assert_close(bp.per_example.grads(loss)(W, tokens), jnp.stack([rows[0], jnp.zeros((4, 4)), rows[1]]))
    with preferring("factors"):
        assert bp.per_example.methods(loss)(W, tokens)[""] == "factors"
