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
from funcbp import jaxpr as jx
from funcbp.rules.forms import written_for_here

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
    assert set(orders) == {f"b{space}f_{space}io->b{space}f"}
    got, step = compiled(w, x), (1e-5 * normal(*w_shape), 1e-5 * normal(*x_shape))
    change = loss(w + step[0], x + step[1]) - loss(w - step[0], x - step[1])
    np.testing.assert_allclose(sum(map(jnp.vdot, got, step)), change / 2, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(w, x), got[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("place", ["scan", "cond", "region"])
def test_a_convolution_whose_result_is_float64_keeps_that_in_a_body(place):
    """Numpy takes None, by which no dtype is asked for, for float64: the result was that of float32."""
    numbers, half = ("NCH", "OIH", "NCH"), jnp.float32
    layer = lambda w, h, **how: jnp.tanh(convolve(h, w, numbers, **how) * jnp.float64(0.9)).astype(h.dtype) + h
    w, x = normal(3, 3, 2), normal(2, 3, 6)
    backward = bp.Backward(residuals="inputs", outside_loops=place == "region")
    loss = over(place, lambda w, h: layer(w, h, preferred_element_type=np.float64))
    got = backward.grad(loss, (0, 1))(w.astype(half), x.astype(half))
    assert {g.dtype for g in got} == {np.dtype(half)}
    loss, step = over(place, layer), (1e-5 * normal(*w.shape), 1e-5 * normal(*x.shape))
    change = loss(w + step[0], x + step[1]) - loss(w - step[0], x - step[1])
    np.testing.assert_allclose(sum(map(np.vdot, got, step)), change / 2, rtol=1e-5)


def test_on_another_device_than_a_cpu_nothing_is_turned(monkeypatch):
    x_shape, w_shape, numbers, _ = KINDS["channels first"]
    loss = lambda w, x: jnp.sum(convolve(x, w, numbers) ** 2)
    count = lambda: [e.primitive.name for e in jax.make_jaxpr(bp.grad(loss))(normal(*w_shape), normal(*x_shape)).eqns]
    assert count().count("transpose") == 3
    monkeypatch.setattr("funcbp.rules.forms.device_here", lambda: SimpleNamespace(platform="gpu"))
    assert count().count("transpose") == 0


NHWC = ("NHWC", "HWIO", "NHWC")
WRITTEN = {
    "one tap": ((2, 5, 4, 3), (1, 1, 3, 2), dict(padding="SAME"), []),
    "one tap, channels first": (
        (2, 3, 5, 4),
        (2, 3, 1, 1),
        dict(padding="SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")),
        [],
    ),
    "one tap, strides, margins, holes": (
        (2, 5, 4, 3),
        (1, 1, 3, 2),
        dict(window_strides=(2, 3), padding=[(1, 2), (0, -1)], lhs_dilation=(1, 2), rhs_dilation=(2, 2)),
        [],
    ),
    "one position": ((2, 5, 4, 3), (5, 4, 3, 2), dict(padding="VALID"), ["x"]),
    "depthwise": ((2, 5, 4, 3), (3, 2, 1, 3), dict(padding="SAME", feature_group_count=3), []),
    "depthwise, two of each": ((2, 5, 4, 3), (3, 2, 1, 6), dict(padding="SAME", feature_group_count=3), []),
    "depthwise in time, strides and holes": (
        (2, 9, 3),
        (3, 1, 3),
        dict(window_strides=(2,), padding=[(3, 1)], rhs_dilation=(2,), feature_group_count=3),
        [],
    ),
    "groups": ((2, 5, 4, 4), (3, 2, 2, 6), dict(padding="SAME", feature_group_count=2), []),
    "groups of a large kernel": ((1, 9, 9, 4), (5, 5, 2, 4), dict(padding="SAME", feature_group_count=2), ["w"]),
    "groups of a larger one": ((1, 9, 9, 4), (9, 9, 2, 4), dict(padding="SAME", feature_group_count=2), ["x", "w"]),
    "groups of examples": ((4, 5, 4, 3), (3, 2, 3, 4), dict(padding="SAME", batch_group_count=2), []),
    "transposed": ((2, 4, 3, 3), (3, 2, 3, 2), dict(padding=[(1, 2), (0, 1)], lhs_dilation=(2, 3)), ["x", "w"]),
    "transposed, cut": ((2, 4, 3, 3), (2, 2, 3, 2), dict(padding=[(-1, 1), (1, -1)], lhs_dilation=(3, 2)), ["x", "w"]),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_convolution_without_an_equal_in_xlas_library_is_written_as_contractions(name):
    """Against finite differences of the plain one; what is left of convolutions is at most the two of the library."""
    x_shape, w_shape, how, left = WRITTEN[name]
    how = dict(dict(window_strides=(1,) * (len(x_shape) - 2), dimension_numbers=NHWC), **how)
    if len(x_shape) == 3:
        how["dimension_numbers"] = ("NHC", "HIO", "NHC")
    f = lambda x, w: lax.conv_general_dilated(x, w, **how)
    x, w = normal(*x_shape), normal(*w_shape)
    ct = normal(*f(x, w).shape)
    back = jax.jit(lambda ct: bp.vjp(f, x, w)[1](ct))
    for got, step in zip(back(ct), (normal(*x_shape), normal(*w_shape)), strict=True):
        change = f(x + step, w) - f(x, w) if step.shape == x.shape else f(x, w + step) - f(x, w)  # it is bilinear
        np.testing.assert_allclose(jnp.vdot(got, step), jnp.vdot(ct, change), rtol=1e-9)
    names = [e.primitive.name for e in jax.make_jaxpr(lambda ct: bp.vjp(f, x, w)[1](ct))(ct).eqns]
    assert names.count("conv_general_dilated") == len(left) + 1  # and the forward pass


@pytest.mark.parametrize(("sizes", "strides", "holes"), [((8, 6), 2, 1), ((4, 3), 1, 2)])
def test_a_kernel_of_one_tap_is_contracted_at_the_fewer_places(sizes, strides, holes):
    """Those of what it is laid on, where that has holes, and those of the result, where it strides over some."""
    x, w, numbers = normal(2, *sizes, 3), normal(1, 1, 3, 5), NHWC
    layer = lambda x, w: lax.conv_general_dilated(
        x, w, (strides, strides), ((0, 0), (0, 0)), (holes, holes), dimension_numbers=numbers
    )
    loss = lambda x, w: lax.scan(lambda c, s: (c + jnp.sum(jnp.sin(layer(s * x, w))), None), 0.0, jnp.ones(3))[0]
    results = re.findall(r"f64\[([\d,]+)\] = dot_general", str(jax.make_jaxpr(bp.grad(loss, (0, 1)))(x, w)))
    assert set(results) == {"2,4,3,5", "2,4,3,3", "3,5"}  # forward, back to x, and back to w
    step = 1e-5 * normal(*x.shape), 1e-5 * normal(*w.shape)
    change = loss(x + step[0], w + step[1]) - loss(x - step[0], w - step[1])
    np.testing.assert_allclose(sum(map(jnp.vdot, bp.grad(loss, (0, 1))(x, w), step)), change / 2, rtol=1e-6)


def test_the_gradient_of_a_kernel_on_something_with_holes_has_them_in_the_kernel():
    """A kernel as large as an image over an image with holes is gone through number by number."""
    f = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), ((1, 2), (2, 0)), (2, 2), dimension_numbers=NHWC)
    x, w = normal(2, 4, 3, 3), normal(3, 2, 3, 2)
    back = jax.make_jaxpr(bp.grad(lambda w: (f(x, w) ** 2).sum()))(w)
    *_, last = [e for e in back.eqns if e.primitive.name == "conv_general_dilated"]
    assert (last.params["lhs_dilation"], last.params["rhs_dilation"]) == ((1, 1), (2, 2))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_narrow_is_added_up_in_float32(dtype):
    """49 taps of bfloat16 added one by one would have an error of a hundredth."""
    f = lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4, preferred_element_type=None
    )
    x, w, ct = (jnp.abs(normal(*s)).astype(dtype) for s in ((1, 9, 9, 4), (7, 7, 1, 4), (1, 9, 9, 4)))
    got = bp.vjp(lambda x: f(x, w), x)[1](ct)[0]
    wide = bp.vjp(lambda x: f(x, w.astype("float32")), x.astype("float32"))[1](ct.astype("float32"))[0]
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype("float32"), wide, rtol=float(jnp.finfo(dtype).eps))


def test_a_program_whose_convolutions_stay_as_they_are_is_not_traced_again():
    traced = lambda kind: jx.trace(
        lambda x, w: [convolve(x, w, KINDS[kind][2])], [jax.typeof(normal(*s)) for s in KINDS[kind][:2]]
    )
    last, first = traced("channels last"), traced("channels first")
    assert written_for_here(last) is last
    assert [e.primitive.name for e in written_for_here(first).eqns].count("transpose") == 3
