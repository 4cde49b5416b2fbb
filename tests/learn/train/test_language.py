"""The language model's loss, batches, samples, and where its parameters live."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

import funcbp as bp
from funcbp import data, nets
from funcbp.learn.train import language

V = 11
COUNTS_ON = nets.Net(None, lambda params, x: 1e3 * jax.nn.one_hot((x + 1) % V, V, dtype=float))


def test_loss_and_bits_per_byte():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    net = nets.Net(None, lambda params, x: jnp.broadcast_to(logits, (*x.shape, 3)))
    windows = np.array([[0, 0, 1], [2, 1, 2]])  # told are 0 1, 1 2, by 1, 2, 2 and 2 bits
    loss = language.language(net)(None, windows)
    assert loss == pytest.approx(7 / 4 * np.log(2))
    tokens = data.Tokens("bpe", (b"a", b"bc", b"def"))
    assert language.bits_per_byte(loss, windows, tokens) == pytest.approx(7 / (1 + 2 + 2 + 3))


def test_batches_and_what_is_held_out():
    text = np.arange(100)
    first, second = itertools.islice(language.batches(text, 4, 3, seed=5), 2)
    again = next(language.batches(text, 4, 3, seed=5))
    assert first.shape == (3, 5) and np.array_equal(first, again) and not np.array_equal(first, second)
    np.testing.assert_array_equal(np.diff(first), 1)
    kept = language.held_out(text, 9, 4)
    np.testing.assert_array_equal(kept[:, 0], [0, 30, 60, 90])
    assert len(language.held_out(text, 9, 400)) == 10
    with pytest.raises(data.DataError, match="A window has 100 tokens and one more to tell"):
        language.held_out(text, 100, 1)


@pytest.mark.parametrize("context", [3, 50])
def test_samples_go_on_from_the_prompt(context):
    sample = language.sampler(COUNTS_ON, np.array([5, 6, 7]), 9, context, seed=0)
    np.testing.assert_array_equal(jax.jit(sample)(None, None), np.arange(8, 17) % V)


@pytest.mark.slow
def test_other_ways_to_go_backward():
    """By direct feedback alignment each block hears e B through the norm after it: the part across its own output."""
    net, tokens = nets.transformer(V, 8, 2, 2, hidden=6), jnp.arange(6)[None]
    params = jax.jit(net.init)(jax.random.key(0), tokens)
    loss = language.language(net)
    kinds = [language.other_backward(scheme, jax.random.key(1), params) for scheme in language.CREDIT]
    _, true, _ = jax.jit(bp.cotangents(loss, names=("block",)))(params, tokens)
    for backward in kinds:
        _, other, found = jax.jit(bp.cotangents(loss, names=("block",), backward=backward))(params, tokens)
        assert not np.allclose(other["blocks"]["up"]["kernel"], true["blocks"]["up"]["kernel"])
        assert np.all(np.isfinite(other["embedding"]["kernel"]))
    embedding = params["embedding"]["kernel"]
    told = jax.random.normal(jax.random.key(1), embedding.shape, embedding.dtype)
    error = jax.nn.softmax(net.apply(params, tokens[:, :-1])) - jax.nn.one_hot(tokens[:, 1:], V, dtype=told.dtype)
    for i in range(2):
        first = {**params, "blocks": jax.tree.map(lambda p, i=i: p[: i + 1], params["blocks"])}
        logits = nets.transformer(V, 8, i + 1, 2, hidden=6).apply(first, tokens[:, :-1])
        normed, heard = logits @ jnp.linalg.pinv(embedding.T), error @ told
        across = heard - normed * jnp.mean(heard * normed, -1, keepdims=True)
        unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
        np.testing.assert_allclose(unit(found["block"][i]), unit(across), atol=1e-3)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("blocks/query/kernel", (2, 8, 4), P(None, "fsdp", "tensor")),
        ("blocks/down/kernel", (2, 12, 8), P(None, "tensor", "fsdp")),
        ("embedding/kernel", (11, 8), P(None, "fsdp")),
        ("blocks/mlp_norm/scale", (3, 8), P(None, "fsdp")),
        ("norm/scale", (7,), P(None)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layout(path, shape, spec):
    assert language.transformer_layout(path, shape, {"data": 2, "fsdp": 4, "tensor": 2}) == spec
