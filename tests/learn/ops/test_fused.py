"""Fused operations against their naive forms: values and derivatives of both orders in float64, and what is alive."""

import functools

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
    ("t", "s", "heads", "block", "options", "mask"),
    [
        (7, 5, (4, 2), 2, {"is_causal": True}, (2, 1, 7, 5)),
        (6, 6, (2, 2), 4, {"scale": 0.3}, None),
        (5, 8, (2, 1), 3, {}, (2, 2, 1, 8)),
        (9, 9, (1, 1), 2, {"is_causal": True}, None),
        (5, 5, (2, 2), 64, {"is_causal": True}, (5, 1)),
    ],
    ids=["grouped, causal, mask", "scale", "lengths that differ", "strips", "one block"],
)
def test_attention(t, s, heads, block, options, mask):
    q, k, v = normal(0, 2, t, heads[0], 4), normal(1, 2, s, heads[1], 4), normal(2, 2, s, heads[1], 3)
    seen = None if mask is None else jax.random.bernoulli(jax.random.key(3), 0.6, mask).at[..., 0, :].set(False)
    naive_mask = None if mask is None else seen.reshape((1,) * (4 - seen.ndim) + seen.shape)
    assert_same(
        functools.partial(ops.attention, mask=seen, block=block, **options),
        functools.partial(naive_attention, mask=naive_mask, **options),
        (q, k, v),
        second=t < 8,
    )


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
@pytest.mark.parametrize(("classes", "chunk"), [(7, 3), (8, 4), (5, 64)])
def test_cross_entropy_of_logits(classes, chunk):
    labels = jax.random.randint(jax.random.key(3), (2, 3), 0, classes)
    args = normal(0, 2, 3, 4), normal(1, 4, classes), normal(2, classes)
    ours = lambda x, w, b: ops.cross_entropy_of_logits(x, w, labels, b, chunk=chunk)
    assert_same(ours, lambda x, w, b: naive_cross_entropy(x, w, labels, b), args)


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
