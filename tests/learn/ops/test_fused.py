"""Fused operations against their naive forms: values and derivatives of both orders in float64, and what is alive."""

import functools
import math

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import ops


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def assert_same(ours, naive, args, second=True):
    """Value, gradient by funcbp and by JAX, forward mode, and the gradient of a function of the gradient."""
    at = tuple(range(len(args)))
    weights = normal(9, *jax.eval_shape(naive, *args).shape)
    ours, naive = (lambda *a, f=f: jnp.sum(weights * f(*a)) for f in (ours, naive))
    twice = lambda f, grad: grad(lambda *a: sum(jnp.sum(jnp.sin(g)) for g in grad(f, at)(*a)), at)

    def results(f, api):
        first = api.value_and_grad(f, at)(*args)
        return (first, twice(f, api.grad)(*args)) if second else (first,)

    want = jax.jit(lambda: results(naive, jax))()
    for got in jax.jit(lambda: [results(ours, bp), results(ours, jax)])():
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    tangents = tuple(normal(20 + i, *a.shape) for i, a in enumerate(args))
    _, along = jax.jit(lambda: jax.jvp(ours, args, tangents))()
    slope = sum(jnp.vdot(g, t) for g, t in zip(want[0][1], tangents, strict=True))
    np.testing.assert_allclose(along, slope, rtol=1e-9)


def largest(f, *args):
    """How many numbers the largest array has of this program and those inside it."""
    todo, most = [jax.make_jaxpr(f)(*args).jaxpr], 0
    while todo:
        program = todo.pop()
        program = getattr(program, "jaxpr", program)
        for eqn in program.eqns:
            most = max([most, *(v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))])
            todo += jex.jaxprs_in_params(eqn.params)
    return most


# --- attention --------------------------------------------------------------------------------------------------------


def naive_attention(query, key, value, mask=None, is_causal=False, scale=None):
    groups = query.shape[-2] // key.shape[-2]
    key, value = (jnp.repeat(x, groups, -2) for x in (key, value))
    z = jnp.einsum("btnd,bsnd->bnts", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    sees = np.tri(*z.shape[2:], dtype=bool)[None, None] if is_causal else np.ones((1, 1, 1, 1), bool)
    sees = sees if mask is None else sees & mask
    p = jnp.where(sees, jnp.exp(z), 0)
    total = jnp.sum(p, -1, keepdims=True)
    return jnp.einsum("bnts,bsnd->btnd", p / jnp.where(total == 0, 1, total), value)


@pytest.mark.slow(once=[])
@pytest.mark.parametrize(
    ("t", "s", "heads", "block", "options", "mask", "second"),
    [
        (5, 4, (4, 2), 2, {"is_causal": True}, (2, 1, 5, 4), False),
        (3, 4, (2, 1), 2, {"scale": 0.3}, (2, 2, 1, 4), True),
        (9, 9, (1, 1), 2, {"is_causal": True}, None, False),
        (5, 5, (2, 2), 64, {"is_causal": True}, (5, 1), True),
    ],
    ids=["grouped, causal, mask", "lengths that differ", "strips", "one block"],
)
def test_attention(t, s, heads, block, options, mask, second):
    q, k, v = normal(0, 2, t, heads[0], 4), normal(1, 2, s, heads[1], 4), normal(2, 2, s, heads[1], 3)
    seen = None if mask is None else jax.random.bernoulli(jax.random.key(3), 0.6, mask).at[..., 0, :].set(False)
    naive_mask = None if mask is None else seen.reshape((1,) * (4 - seen.ndim) + seen.shape)
    assert_same(
        functools.partial(ops.attention, mask=seen, block=block, **options),
        functools.partial(naive_attention, mask=naive_mask, **options),
        (q, k, v),
        second,
    )


@pytest.mark.parametrize("block", [1, 2, 5])
def test_attention_sees_through_the_same_mask_in_blocks_of_any_size(block):
    q, k, v = normal(0, 5, 2, 1), normal(1, 5, 1, 1), normal(2, 5, 1, 2)
    for shape in ((5, 5), (5, 1), (1, 5), (2, 1, 5)):
        mask = jax.random.bernoulli(jax.random.key(3), 0.5, shape)
        want = naive_attention(q[None], k[None], v[None], mask.reshape((1,) * (4 - mask.ndim) + shape))[0]
        np.testing.assert_allclose(ops.attention(q, k, v, mask, block=block), want, atol=1e-12)


def test_attention_never_has_an_array_of_queries_by_keys():
    q = k = v = jnp.ones((64, 1, 2))
    f = lambda *x: jnp.sum(ops.attention(*x, is_causal=True, block=8))
    for grad in (bp.grad, jax.grad):
        assert largest(grad(f, (0, 1, 2)), q, k, v) == 64 * 2
        assert largest(grad(f, (0, 1, 2)), q[:8], k[:8], v[:8]) == 8 * 8  # a block


def test_attention_of_narrow_numbers_is_summed_in_float32():
    q, k, v = (normal(i, 1, 40, 1, 8).astype(jnp.bfloat16) for i in range(3))
    loss = lambda f: lambda *x: jnp.sum(jnp.sin(f(*x).astype(jnp.float64)))
    want = jax.jit(jax.grad(loss(naive_attention), (0, 1, 2)))(*(x.astype(jnp.float64) for x in (q, k, v)))
    got = jax.jit(bp.grad(loss(functools.partial(ops.attention, block=5)), (0, 1, 2)))(q, k, v)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()
        assert error < jnp.finfo(jnp.bfloat16).eps


# --- cross-entropy of logits ------------------------------------------------------------------------------------------


def naive_cross_entropy(x, w, labels, bias):
    log_p = jax.nn.log_softmax(x @ w + bias.reshape(1, 1, -1), -1)
    return -jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]


@pytest.mark.slow(once=[])
@pytest.mark.parametrize(("classes", "chunk", "second"), [(7, 3, False), (8, 4, True), (5, 64, False)])
def test_cross_entropy_of_logits(classes, chunk, second):
    labels = jax.random.randint(jax.random.key(3), (2, 3), 0, classes)
    args = normal(0, 2, 3, 4), normal(1, 4, classes), normal(2, classes)
    ours = lambda x, w, b: ops.cross_entropy_of_logits(x, w, labels, b, chunk=chunk)
    assert_same(ours, lambda x, w, b: naive_cross_entropy(x, w, labels, b), args, second)


def test_cross_entropy_of_logits_is_exact_in_its_tails_and_alive_in_chunks():
    logits, labels = jnp.array([[0.0, 200.0, -300.0, 0.0]]), jnp.array([1, 0, 4])
    x = jnp.ones((3, 1))
    (first, second, third), pullback = bp.vjp(lambda x: ops.cross_entropy_of_logits(x, logits, labels, chunk=2), x)
    assert float(first) == pytest.approx(2 * math.exp(-200)) and float(second) == 200 and np.isnan(third)
    assert float(pullback(jnp.array([1.0, 0.0, 0.0]))[0][0, 0]) == pytest.approx(-400 * math.exp(-200))
    x, w, labels = jnp.ones((8, 2)), jnp.ones((2, 32)), jnp.zeros(8, jnp.int32)
    f = lambda x, w: jnp.sum(ops.cross_entropy_of_logits(x, w, labels, chunk=4))
    for grad in (bp.grad, jax.grad):
        assert largest(grad(f, (0, 1)), x, w) == w.size


# --- normalisations ---------------------------------------------------------------------------------------------------


def naive_norm(x, scale=None, bias=None, *, axes=-1, centered=True, epsilon=1e-6):
    x = x - jnp.mean(x, axes, keepdims=True) if centered else x
    y = x / jnp.sqrt(jnp.mean(x**2, axes, keepdims=True) + epsilon)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def naive_group_norm(x, scale, bias):
    y = naive_norm(x.reshape(2, 5, 3, 2), axes=(1, 3)).reshape(2, 5, 6)
    return y * scale.reshape(1, 1, 6) + bias.reshape(1, 1, 6)


@pytest.mark.slow(once=[])
@pytest.mark.parametrize(
    ("ours", "naive", "shapes"),
    [
        (ops.rms_norm, functools.partial(naive_norm, centered=False), [(6,), (6,)]),
        (ops.layer_norm, naive_norm, [(6,), (6,), (6,)]),
        (ops.layer_norm, naive_norm, [(3, 6)]),
        (lambda x, s, b: ops.group_norm(x, 3, s, b), naive_group_norm, [(2, 5, 6), (6,), (6,)]),
    ],
    ids=["rms", "layer", "layer without parameters", "group"],
)
def test_norms(ours, naive, shapes):
    assert_same(ours, naive, tuple(normal(i, *s) for i, s in enumerate(shapes)))


# --- rotary positions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(interleaved):
    x, place = normal(0, 2, 3, 2, 4), jnp.array([5, 0, 2])
    got = ops.rotary(x, place, base=100.0, interleaved=interleaved)
    angle = np.asarray(place)[:, None, None] / 100.0 ** (np.arange(2) / 2)
    x = np.asarray(x)
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :2], x[..., 2:])
    turned = (a + 1j * b) * np.exp(1j * angle)
    want = np.stack([turned.real, turned.imag], -1 if interleaved else -2).reshape(x.shape)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    y, pullback = bp.vjp(lambda x: ops.rotary(x, place, interleaved=interleaved), x)
    np.testing.assert_allclose(pullback(y)[0], x, rtol=1e-12)  # turned back


# --- recurrent cells --------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def naive_lstm(x, h, c, w, u, bias):
    i, f, g, o = jnp.split(x @ w + h @ u + bias.reshape(1, -1), 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return jnp.concatenate([sigmoid(o) * jnp.tanh(c), c])


def naive_gru(x, h, w, u, bias, recurrent_bias):
    a, b = jnp.split(x @ w + bias.reshape(1, -1), 3, -1), jnp.split(h @ u + recurrent_bias.reshape(1, -1), 3, -1)
    r, z = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
    return (1 - z) * jnp.tanh(a[2] + r * b[2]) + z * h


CELLS = {
    "lstm": (
        lambda x, h, c, *weights: jnp.concatenate(ops.lstm_cell(x, (h, c), *weights)),
        naive_lstm,
        [(3, 2), (3, 4), (3, 4), (2, 16), (4, 16), (16,)],
    ),
    "gru": (ops.gru_cell, naive_gru, [(3, 2), (3, 4), (2, 12), (4, 12), (12,), (12,)]),
}


@pytest.mark.parametrize(("ours", "naive", "shapes"), CELLS.values(), ids=CELLS)
def test_cells(ours, naive, shapes):
    assert_same(ours, naive, tuple(normal(i, *s) for i, s in enumerate(shapes)))


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [jax.random.key(1), jax.random.PRNGKey(1)], ids=["typed", "raw"])
def test_dropout_draws_its_mask_again(key):
    x = normal(0, 400)
    y, pullback = bp.vjp(lambda x: ops.dropout(key, x, 0.25), x)
    left = np.asarray(y) != 0
    assert 0.65 < left.mean() < 0.85
    np.testing.assert_allclose(y, np.where(left, x / 0.75, 0))
    ct = normal(2, 400)
    np.testing.assert_allclose(pullback(ct)[0], np.where(left, ct / 0.75, 0))
    assert max(a.size for a in jax.tree.leaves(pullback)) <= 2  # the key
    np.testing.assert_allclose(jax.grad(lambda x: jnp.vdot(ct, ops.dropout(key, x, 0.25)))(x), pullback(ct)[0])


def test_dropout_without_a_rate_is_nothing():
    assert ops.dropout(jax.random.key(0), x := jnp.ones(3), 0) is x


# --- what is refused --------------------------------------------------------------------------------------------------

X, W, Q = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones((5, 4, 2))
REFUSED = {
    "heads": (lambda: ops.attention(Q, Q[:, :3], Q[:, :3]), ValueError, "or a multiple, and got 4 and 3"),
    "units": (
        lambda: ops.attention(Q, Q[..., :1], Q),
        ValueError,
        r"a query and a key of as many units, .* key \(5, 4, 1\)",
    ),
    "axes": (lambda: ops.attention(Q[0], Q, Q), ValueError, r"needs a query of shape \(batch, T, N, D\)"),
    "mask's type": (lambda: ops.attention(Q, Q, Q, jnp.ones((5, 5))), TypeError, "mask of booleans"),
    "mask's shape": (lambda: ops.attention(Q, Q, Q, jnp.ones((5, 4), bool)), ValueError, r"broadcasts to \(4, 5, 5\)"),
    "types": (lambda: ops.attention(Q, Q, Q.astype(jnp.float32)), TypeError, "one floating dtype"),
    "block": (lambda: ops.attention(Q, Q, Q, block=0), ValueError, "block of at least 1"),
    "labels' shape": (lambda: ops.cross_entropy_of_logits(X, W, jnp.array(0)), ValueError, r"labels of shape \(2,\)"),
    "labels' type": (lambda: ops.cross_entropy_of_logits(X, W, jnp.ones(2)), TypeError, "needs integer labels"),
    "inputs": (
        lambda: ops.cross_entropy_of_logits(W, W, jnp.array([0])),
        ValueError,
        r"inputs of shape \(batch\.\.\., in\)",
    ),
    "scale": (lambda: ops.layer_norm(X, jnp.ones(2)), ValueError, r"layer_norm needs a scale of shape \(3,\)"),
    "groups": (lambda: ops.group_norm(X, 2), ValueError, "multiple of its groups, and got 3 and 2"),
    "odd units": (lambda: ops.rotary(jnp.ones((2, 1, 3))), ValueError, "with D even"),
    "positions": (lambda: ops.rotary(Q, jnp.arange(4)), ValueError, r"positions of shape \(5,\)"),
    "lstm": (lambda: ops.lstm_cell(X, (X, X), W, W), ValueError, "kernels to 4 units"),
    "gru": (lambda: ops.gru_cell(X, X, W, W), ValueError, "kernels to 3 units"),
    "rate": (lambda: ops.dropout(jax.random.key(0), X, 1.0), ValueError, "rate of at least 0 and less than 1"),
}


@pytest.mark.parametrize(("call", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()
