"""The initialisers' bounds, variances and fans."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcbp import nets

KERNELS = [(300, 200), (5, 5, 20, 60)]


@pytest.mark.parametrize("shape", KERNELS, ids=str)
@pytest.mark.parametrize(
    ("initializer", "variance"),
    [
        (nets.xavier_uniform, lambda n_in, n_out: 2 / (n_in + n_out)),
        (nets.xavier_normal, lambda n_in, n_out: 2 / (n_in + n_out)),
        (nets.he_uniform, lambda n_in, n_out: 2 / n_in),
        (nets.he_normal, lambda n_in, n_out: 2 / n_in),
        (nets.lecun_uniform, lambda n_in, n_out: 1 / n_in),
        (nets.lecun_normal, lambda n_in, n_out: 1 / n_in),
    ],
)
def test_variance(initializer, variance, shape):
    weights = initializer(jax.random.key(0), shape)
    window = math.prod(shape[:-2])
    expected = variance(window * shape[-2], window * shape[-1])
    assert weights.shape == shape and weights.dtype == jnp.float32
    assert float(jnp.var(weights)) == pytest.approx(expected, rel=0.03)
    assert abs(float(jnp.mean(weights))) < 5 * math.sqrt(expected / weights.size)


def test_xavier_uniform_fills_its_interval():
    bound = math.sqrt(6 / 500)
    weights = nets.xavier_uniform(jax.random.key(0), (300, 200), jnp.float64)
    assert weights.dtype == jnp.float64
    assert bound * 0.999 < float(jnp.max(jnp.abs(weights))) <= bound


def test_uniform_fills_its_interval():
    weights = nets.uniform(-0.3, 0.1)(jax.random.key(0), (200, 200))
    assert -0.3 <= float(jnp.min(weights)) < -0.299 and 0.099 < float(jnp.max(weights)) <= 0.1
    with pytest.raises(ValueError, match="low < high, and got low=1 and high=1"):
        nets.uniform(1, 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
def test_narrow_dtypes(dtype):
    assert nets.he_normal(jax.random.key(0), (3, 2), dtype).dtype == dtype
    assert nets.he_uniform(jax.random.key(0), (3, 2), dtype).dtype == dtype


def test_same_key_same_weights():
    draws = [nets.he_normal(jax.random.key(k), (3, 2)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.any(draws[0] == draws[2])


def test_kernels_of_size_zero_and_vectors():
    assert nets.xavier_uniform(jax.random.key(0), (0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match=r"has the shape \(in, out\)"):
        nets.fans((3,))
