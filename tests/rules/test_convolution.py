"""In which order the convolutions of the way back have their axes."""

from __future__ import annotations

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.3)
convolve = lambda x, w, numbers, **how: lax.conv_general_dilated(
    x, w, (1,) * (x.ndim - 2), "SAME", dimension_numbers=numbers, **how
)

# the operands, the names of the axes, and what else there is to say of the convolution
KINDS = {
    "channels last": ((2, 5, 4, 3), (3, 2, 3, 3), ("NHWC", "HWIO", "NHWC"), {}),
    "channels first": ((2, 3, 5, 4), (3, 3, 3, 2), ("NCHW", "OIHW", "NCHW"), {}),
    "one axis, dilated": ((2, 6, 3), (2, 3, 3), ("NHC", "HIO", "NHC"), {"rhs_dilation": (2,)}),
    "three axes": ((2, 3, 4, 2, 3), (2, 3, 1, 3, 3), ("NDHWC", "DHWIO", "NDHWC"), {}),
    "groups": ((2, 5, 4, 4), (3, 2, 2, 4), ("NHWC", "HWIO", "NHWC"), {"feature_group_count": 2}),
}


def over(place, layer):
    """A layer that is gone through three times, in another kind of program."""

    def loss(w, x):
        match place:
            case "scan":
                x = lax.scan(lambda h, v: (layer(v, h), None), x, jnp.stack([w, w, w]))[0]
            case "fori":
                x = lax.fori_loop(0, 3, lambda i, h: layer(w, h), x)
            case "cond":
                for _ in range(3):
                    x = lax.cond(x.sum() < 1e9, layer, lambda v, h: h, w, x)
            case _:
                for _ in range(3):
                    x = jax.jit(layer)(w, x)
        return jnp.sum(jnp.sin(x))

    return loss


@pytest.mark.parametrize("place", ["scan", "fori", "cond", "region"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_compiled_apart_convolves_in_the_order_of_xlas_library(kind, place):
    """In other orders XLA convolves number by number there: what is outside of loops and branches it turns itself."""
    x_shape, w_shape, numbers, how = KINDS[kind]
    loss = over(place, lambda w, h: jnp.tanh(convolve(h, w, numbers, **how)) + h)
    w, x = normal(*w_shape), normal(*x_shape)
    backward = bp.Backward(residuals="inputs", outside_loops=place == "region")
    compiled = jax.jit(backward.grad(loss, (0, 1))).lower(w, x).compile()
    orders = re.findall(r" convolution\(.*dim_labels=(\S+?),", compiled.as_text())
    space = "".join(map(str, range(x.ndim - 2)))
    assert len(orders) >= 3
    if "feature_group_count" not in how:  # XLA makes something else of the kernel's gradient in groups
        assert set(orders) == {f"b{space}f_{space}io->b{space}f"}
    got, step = compiled(w, x), (1e-5 * normal(*w_shape), 1e-5 * normal(*x_shape))
    change = loss(w + step[0], x + step[1]) - loss(w - step[0], x - step[1])
    np.testing.assert_allclose(sum(map(jnp.vdot, got, step)), change / 2, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(w, x), got[0], rtol=1e-11, atol=1e-12)


def test_on_another_device_than_a_cpu_nothing_is_turned(monkeypatch):
    x_shape, w_shape, numbers, _ = KINDS["channels first"]
    loss = lambda w, x: jnp.sum(convolve(x, w, numbers) ** 2)
    count = lambda: [e.primitive.name for e in jax.make_jaxpr(bp.grad(loss))(normal(*w_shape), normal(*x_shape)).eqns]
    assert count().count("transpose") == 3
    monkeypatch.setattr("funcbp.rules.convolution.device_here", lambda: SimpleNamespace(platform="gpu"))
    assert count().count("transpose") == 0
