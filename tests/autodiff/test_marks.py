"""The feedback mark: deltas through b, gradients to w, against backward passes written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

DRAW = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(DRAW.standard_normal(shape))
W, B, X = normal(3, 4, 4), normal(3, 4, 4), normal(5, 4)
close = lambda got, want: jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), got, want)


def layer(x, w):
    return jnp.tanh(x @ w)


def in_scan(x, w):
    return lax.scan(lambda x, w: (layer(x, w), None), x, w)[0]


def in_scan_of_regions(x, w):
    return lax.scan(jax.checkpoint(lambda x, w: (layer(x, w), None)), x, w)[0]


def in_python(x, w):
    for i in range(3):
        x = layer(x, w[i])
    return x


def in_fori(x, w):
    return lax.fori_loop(0, 3, lambda i, x: layer(x, w[i]), x)


def in_branches(x, w):
    for i in range(3):
        x = lax.cond(i >= 0, layer, lambda x, w: x, x, w[i])
    return x


def in_calls(x, w):
    for i in range(3):
        x = jax.jit(lambda x, w: jnp.tanh(jnp.einsum("ij,jk->ik", x, w)))(x, w[i])
    return x


def moved_about(x, w):
    """Scaled, masked, transposed, reshaped, cut, joined and converted on the way: the weights they were, after all."""
    w = jnp.swapaxes(jnp.where(jnp.ones(w.shape, bool), 2 * w, 0), 1, 2) / 2
    w = jnp.concatenate([w[:1], w[1:].reshape(2, 16).reshape(2, 4, 4)])
    w = jnp.flip(jnp.flip(w.astype(jnp.float64), 0), 0)
    return in_scan(x, jnp.swapaxes(-(-1 * w), 1, 2))


def in_custom_vjp(x, w):
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w.T)), lambda res, ct: (ct @ res[1], res[0].T @ ct))
    for i in range(3):
        x = jnp.tanh(product(x, w[i]))
    return x


def in_custom_jvp(x, w):
    @jax.custom_jvp
    def product(x, w):
        return x @ w

    product.defjvp(lambda p, t: (p[0] @ p[1], t[0] @ p[1] + p[0] @ t[1]))
    for i in range(3):
        x = jnp.tanh(product(x, w[i]))
    return x


NETWORKS = [
    in_scan, in_scan_of_regions, in_python, in_fori, in_branches, in_calls, moved_about, in_custom_vjp, in_custom_jvp
]  # fmt: skip


def loss_of(network):
    return lambda w, b, x: jnp.sum(network(x, bp.feedback(w, b)) ** 2)


def by_hand(w, b, x):
    """Lillicrap's equations: the deltas go through b."""
    h = [x]
    for i in range(3):
        h.append(np.tanh(h[-1] @ w[i]))
    delta, grads = 2 * h[-1], []
    for i in reversed(range(3)):
        delta = delta * (1 - h[i + 1] ** 2)
        grads.append(h[i].T @ delta)
        delta = delta @ b[i].T
    return np.stack(grads[::-1]), delta


@pytest.mark.parametrize("network", NETWORKS, ids=lambda f: f.__name__)
def test_deltas_go_through_b_and_gradients_to_w(network):
    w_bar, x_bar = by_hand(*map(np.asarray, (W, B, X)))
    grads = bp.grad(loss_of(network), argnums=(0, 1, 2))
    close(grads(W, B, X), (w_bar, np.zeros_like(B), x_bar))
    if network in (in_scan, moved_about):
        close(jax.jit(grads)(W, B, X), (w_bar, np.zeros_like(B), x_bar))


@pytest.mark.parametrize("network", [in_scan, in_calls, moved_about], ids=lambda f: f.__name__)
def test_frozen_weights_pass_deltas_on_through_b_too(network):
    close(bp.grad(loss_of(network), argnums=2)(W, B, X), by_hand(*map(np.asarray, (W, B, X)))[1])


def test_for_jax_it_is_the_identity():
    f = loss_of(in_python)
    plain = lambda w, x: jnp.sum(in_python(x, w) ** 2)
    close(jax.jit(f)(W, B, X), plain(W, X))
    close(jax.grad(f)(W, B, X), jax.grad(plain)(W, X))
    close(jax.jvp(lambda w: bp.feedback(w, B), (W,), (B,))[1], B)
    close(jax.vmap(bp.feedback, in_axes=(0, None))(W, B[0]), W)
    tangent = jax.jvp(lambda w: bp.grad(f)(w, B, X), (W,), (B,))[1]
    step = 1e-6
    close(jnp.round(tangent, 4), jnp.round((bp.grad(f)(W + step * B, B, X) - bp.grad(f)(W - step * B, B, X)) / 2e-6, 4))


def test_examples_may_be_mapped_over():
    w_bar, _ = by_hand(*map(np.asarray, (W, B, X)))
    each = jax.vmap(bp.grad(loss_of(in_scan)), in_axes=(None, None, 0))(W, B, X[:, None])
    close(each.sum(0), w_bar)


def test_convolution():
    dims = ("NHWC", "HWIO", "NHWC")
    x, w, v, b = normal(2, 5, 5, 2), normal(3, 3, 2, 3), normal(3, 3, 3, 2), normal(3, 3, 3, 2)
    conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims)
    got = bp.grad(lambda w, v: jnp.sum(conv(jnp.tanh(conv(x, w)), bp.feedback(v, b)) ** 2), (0, 1))(w, v)
    h, first = jax.vjp(lambda w: jnp.tanh(conv(x, w)), w)
    y, to_v = jax.vjp(lambda v: conv(h, v), v)
    _, through_b = jax.vjp(lambda h: conv(h, b), h)
    close(got, (*first(*through_b(2 * y)), *to_v(2 * y)))


def test_an_embedding_tied_to_the_read_out():
    table, weight, ids = normal(7, 4), normal(7, 4), jnp.array([1, 3, 3])

    def loss(table):
        table = bp.feedback(table, weight)
        return jnp.sum((table[ids] @ table.T) ** 2)

    h = table[ids]
    delta = 2 * h @ table.T
    close(bp.grad(loss)(table), (delta.T @ h).at[ids].add(delta @ weight))


def test_a_penalty_on_marked_weights_is_that_of_the_weights():
    w, b = W[0], B[0]
    penalty = lambda w: jnp.sum(w**2) + jnp.vdot(w, w) + jnp.sum(w * w)
    close(bp.grad(lambda w: penalty(bp.feedback(w, b)))(w), 6 * w)


def test_a_token_joined_to_activations_is_one():
    token, w, b, x = normal(1, 4), normal(4, 4), normal(4, 4), normal(2, 4)

    def loss(params):
        params = bp.feedback(params, {"token": token, "in": b, "out": b})
        h = jnp.concatenate([params["token"], x @ params["in"]])
        return jnp.sum(h @ params["out"])

    got = bp.grad(loss)({"token": token, "in": w, "out": w})
    delta = jnp.ones((3, 4)) @ b.T
    close(got["token"], delta[:1])
    close(got["in"], x.T @ delta[1:])


@pytest.mark.slow
def test_unedited_models_of_other_libraries():
    linen, eqx = pytest.importorskip("flax.linen"), pytest.importorskip("equinox")
    x = normal(2, 6, 8)

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.MultiHeadDotProductAttention(2, param_dtype=jnp.float64)(x)
            return linen.Dense(3, param_dtype=jnp.float64)(linen.relu(linen.Dense(8, param_dtype=jnp.float64)(x)))

    params = Block().init(jax.random.key(0), x)
    check_model(lambda p, x: jnp.sum(Block().apply(p, x) ** 2), params, x)
    keys = jax.random.split(jax.random.key(0))
    attend = eqx.nn.MultiheadAttention(2, 8, dtype=jnp.float64, key=keys[0])
    arrays, rest = eqx.partition((attend, eqx.nn.MLP(8, 3, 8, 1, dtype=jnp.float64, key=keys[1])), eqx.is_array)

    def loss(arrays, x):
        attend, mlp = eqx.combine(arrays, rest)
        return jnp.sum(jax.vmap(jax.vmap(mlp))(jax.vmap(attend)(x, x, x)) ** 2)

    check_model(loss, arrays, x)


def check_model(loss, params, x):
    """With b = w nothing changes; with another b, all that lies below the last layer's delta does."""
    grads = bp.grad(loss)(params, x)
    marked = bp.grad(lambda p, b, x: loss(bp.feedback(p, b), x))
    close(marked(params, params, x), grads)
    weights = bp.credit.feedback_weights(jax.random.key(1), params)
    other = marked(params, weights, x)
    pairs = zip(*map(jax.tree.leaves, (grads, other)), strict=True)
    changed = [not np.allclose(a, b) for a, b in pairs if a.ndim >= 2 and abs(a).max() > 1e-9]
    assert sum(changed) == len(changed) - 1  # all weights but those of the last layer


W3, B3, ORDER = jnp.arange(9.0).reshape(3, 3), jnp.arange(9.0, 18.0).reshape(3, 3), jnp.array([2, 0, 1])
CHANGED = {
    "some rows put to zero": lambda w: w.at[0].set(0.0),
    "a block scaled": lambda w: w.at[:, 1:].multiply(2.0),
    "put together from its rows": lambda w: jnp.zeros_like(w).at[:2].set(w[:2]),
    "one row in the place of another": lambda w: lax.dynamic_update_slice(w, w[:1], (1, 0)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_mark_follows_what_is_written(name):
    change, x = CHANGED[name], jnp.array([[1.0, 2.0, 3.0]])
    x_bar = bp.grad(lambda x, w: jnp.sum(x @ change(bp.feedback(w, B3))))(x, W3)
    np.testing.assert_allclose(x_bar, jnp.sum(change(B3), 1)[None])


@pytest.mark.parametrize("f", [
    lambda x, w: x @ jnp.take(w, ORDER, axis=0),
    lambda x, w: x @ (2.0 * w[:, ORDER].T),
    lambda x, w: x @ w.at[0].set(x[0]),
    lambda x, w: jax.jit(lambda w: x @ w[ORDER])(w),
    lambda x, w: x @ lax.sort(w, dimension=0),
    lambda x, w: x[:, :2] @ (2.0 * lax.top_k(w.T, 2)[0]).T,
], ids=["take", "an index array, moved and scaled", "written over by activations", "in a call",
        "sorted", "top_k"])  # fmt: skip
def test_a_lost_mark_is_refused_where_it_would_count(f):
    with pytest.raises(ValueError, match=r"of an operand of `dot_general` at .*test_marks.py:.* was lost in `\w+` at "):
        bp.grad(lambda x, w: jnp.sum(f(x, bp.feedback(w, B3))), (0, 1))(jnp.ones((1, 3)), W3)


def test_the_order_of_what_is_marked_is_no_weight():
    x = jnp.array([1.0, 2.0, 4.0])
    f = lambda x, w: jnp.sum(x * jnp.argsort(bp.feedback(w, w)).astype(x.dtype))
    np.testing.assert_array_equal(bp.grad(f)(x, -x), [2.0, 1.0, 0.0])


def test_a_mark_that_leaves_a_branch_is_refused():
    f = lambda x, w: jnp.sum(x @ lax.cond(x[0, 0] > 0, lambda w: w.T, lambda w: 2 * w, bp.feedback(w, B3)))
    with pytest.raises(ValueError, match=r"comes out of the `cond` at .*test_marks.py"):
        bp.grad(f, (0, 1))(jnp.ones((1, 3)), W3)
    with pytest.raises(ValueError, match=r"was lost in `cond` at .*test_marks.py"):  # the weight is frozen
        bp.grad(f)(jnp.ones((1, 3)), W3)


@pytest.mark.parametrize("around", [jax.jit, lambda f: lambda w: lax.cond(w[0, 0] < 9, f, lambda w: w, w)])
def test_a_mark_of_frozen_weights_that_leaves_a_call_or_a_branch_is_refused(around):
    marked = around(lambda w: bp.feedback(w, B3))
    with pytest.raises(ValueError, match=r"comes out of the `(jit|pjit|cond)` at .*test_marks.py"):
        bp.grad(lambda x, w: jnp.sum(x @ marked(w)))(jnp.ones((1, 3)), W3)
    used = around(lambda w: jnp.ones((3, 3)) @ bp.feedback(w, B3))
    got = bp.grad(lambda x, w: jnp.sum(x @ used(w)))(jnp.ones((1, 3)), W3)
    np.testing.assert_allclose(got, np.full((1, 3), np.sum(W3)), rtol=1e-6)


def test_activations_of_an_embedding_are_used_by_marked_weights():
    f = lambda e, w, i: jnp.sum((2.0 * bp.feedback(e, B3)[i] + 1.0) @ bp.feedback(w, B3))
    e_bar = bp.grad(f)(W3, W3, jnp.array([0, 0, 2]))
    np.testing.assert_allclose(e_bar, np.outer([4.0, 0.0, 2.0], jnp.sum(B3, 1)))


def test_wrong_shapes_and_structures_are_errors():
    with pytest.raises(ValueError, match=r"feedback at layer/kernel has shape \(2, 3\), and the value it stands for"):
        bp.feedback({"layer": {"kernel": jnp.ones((3, 2))}}, {"layer": {"kernel": jnp.ones((2, 3))}})
    with pytest.raises(ValueError, match=r"that has a, and they have b"):
        bp.feedback({"a": jnp.ones(2)}, {"b": jnp.ones(2)})


def test_a_name_is_the_identity():
    close(bp.grad(lambda x: jnp.sum(bp.name(x, "x") ** 2))(X), 2 * X)
