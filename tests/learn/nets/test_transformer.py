"""The transformer against a plain one, position by position, in numpy; its gradients against JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import nets

V, D, T = 11, 8, 5
KINDS = {
    "grouped, swiglu": {"heads": 4, "key_heads": 2, "hidden": 6},
    "gelu": {"heads": 2, "mlp": "gelu", "hidden": 6},
    "written out": {"heads": 2, "hidden": 6, "scanned": False},
}


def setting(layers=2, **options):
    net = nets.transformer(V, D, layers, **options)
    tokens = jax.random.randint(jax.random.key(0), (2, T), 0, V)
    params = jax.tree.map(lambda p: p.astype(float), jax.jit(net.init)(jax.random.key(1), tokens))
    rng = np.random.default_rng(0)
    return net, jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape), params), tokens


def plain(params, tokens, heads, key_heads=None, mlp="swiglu", **_):
    """One sequence in numpy, a position and a head at a time."""
    norm = lambda x, scale: x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * scale
    size = D // heads

    def turned(x, t):
        z = (x[: size // 2] + 1j * x[size // 2 :]) * np.exp(1j * t * 10_000.0 ** (-2 * np.arange(size // 2) / size))
        return np.concatenate([z.real, z.imag])

    params = jax.tree.map(np.asarray, params)
    embedding = params["embedding"]["kernel"]
    x = np.sqrt(D) * embedding[tokens]
    for i in range(len(params["blocks"]["out"]["kernel"])):
        p = {each: next(iter(layer.values()))[i] for each, layer in params["blocks"].items()}
        y = norm(x, p["attention_norm"])
        q, k, v = (np.split(y @ p[each], p[each].shape[1] // size, -1) for each in ("query", "key", "value"))
        out = np.zeros_like(x)
        for t in range(len(tokens)):
            for head in range(heads):
                group = head * len(k) // heads
                scores = [turned(q[head][t], t) @ turned(k[group][s], s) / np.sqrt(size) for s in range(t + 1)]
                weights = np.exp(scores) / np.sum(np.exp(scores))
                out[t, head * size : (head + 1) * size] = weights @ v[group][: t + 1]
        x = x + out @ p["out"]
        y = norm(x, p["mlp_norm"])
        up = y @ p["up"]
        if mlp == "gelu":
            y = up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3))) / 2
        else:
            gate = y @ p["gate"]
            y = gate / (1 + np.exp(-gate)) * up
        x = x + y @ p["down"]
    return norm(x, params["norm"]["scale"]) @ embedding.T


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_value_and_gradient(options):
    net, params, tokens = setting(**options)

    def loss(params):
        logits = net.apply(params, tokens)
        return jnp.sum(jnp.sin(logits)), logits

    (_, logits), ours = jax.jit(bp.value_and_grad(loss, has_aux=True))(params)
    for row, sequence in zip(logits, np.asarray(tokens), strict=True):
        np.testing.assert_allclose(row, plain(params, sequence, **options), rtol=1e-10, atol=1e-12)
    theirs = jax.jit(jax.grad(loss, has_aux=True))(params)[0]
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_bfloat16_blocks_with_float32_masters():
    _, params, tokens = setting(heads=2)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)

    def loss(params, dtype):
        logits = nets.transformer(V, D, 2, 2, dtype=dtype).apply(params, tokens)
        return jnp.sum(jnp.sin(logits)), logits

    both = [jax.jit(bp.value_and_grad(lambda p, d=d: loss(p, d), has_aux=True))(params) for d in (jnp.bfloat16, None)]
    ((_, narrow), grads), ((_, wide), true) = both
    assert narrow.dtype == jnp.float32 and 1e-4 < np.max(np.abs(narrow - wide)) < 0.1
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(true), strict=True):
        assert a.dtype == jnp.float32 and np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)


def test_names_of_its_values():
    net, params, tokens = setting(heads=2)
    found = jax.jit(bp.cotangents(lambda p: jnp.sum(jnp.sin(net.apply(p, tokens))), reduce=jnp.linalg.norm))(params)[2]
    inside = ("attention_input", "attention_skip", "attention", "mlp_input", "mlp_skip", "mlp", "block")
    of_all = {"embedding": (), **dict.fromkeys(inside, (2,)), "norm": (), "logits": ()}
    assert {name: found[name].shape for name in found} == of_all


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"width": 10, "heads": 4}, "even multiple of the heads"),
        ({"width": 6, "heads": 2}, "even multiple"),
        ({"key_heads": 3}, "divisor of heads"),
        ({"mlp": "relu"}, "'swiglu' or 'gelu'"),
        ({"layers": 0}, "positive whole numbers"),
    ],
)
def test_sizes_that_do_not_fit(sizes, says):
    with pytest.raises(ValueError, match=says):
        nets.transformer(V, **sizes)


def test_no_tokens():
    net, params, _ = setting(heads=2)
    with pytest.raises(ValueError, match="whole numbers"):
        net.apply(params, jnp.ones((2, 3)))
