"""What Python and the host have a part in: branches on values are followed, callbacks, prints and devices are said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

f32 = jnp.float32


def branching(x):
    """x sin x where x > 0, by Python's if; and a product that grows by Python's while."""
    y = x * jnp.sin(x) if x > 0 else x**2
    while y < 2:
        y = y * jnp.float32(1.5)
    return bp.name(y, "y")


def test_the_shadow_goes_the_way_that_python_took():
    x, times = f32(0.7), 4  # 0.7 sin 0.7 = 0.451 and 0.451 * 1.5**4 = 2.28
    found = bp.precision(branching)(x)
    slope = 1.5**times * (np.sin(0.7) + 0.7 * np.cos(0.7))
    assert found.value == branching(x) and [r.primitive for r in found].count("sin") == 1
    exact = np.float64(x) * np.sin(np.float64(x)) * 1.5**times
    assert found.value_error == pytest.approx(abs(np.float64(found.value) - exact) / exact, rel=1e-6)
    assert bp.precision(branching).errors(x)["y"].value == pytest.approx(found.value_error * 2**23, rel=1e-5)
    np.testing.assert_allclose(bp.trace(branching)(x)["x"].cotangent, slope, rtol=1e-6)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(bp.precision(branching).errors)(x)


def test_find_nan_goes_there_too():
    root = lambda x: jnp.sqrt(x - x) if x > 0 else x
    found = bp.find_nan(root)(f32(1))
    assert (found.operation, found.backward, found.trap) == ("sqrt", True, "sqrt at 0")
    assert not bp.find_nan(root)(f32(-1))


def printing(x):
    def step(c, _):
        jax.debug.callback(lambda c: SEEN.append(float(c)), c)
        return bp.name(jnp.sin(c), "s") * x, None

    return lax.scan(step, x, None, 2)[0]


SEEN: list[float] = []


def test_what_prints_is_run_once_and_is_no_equation():
    SEEN.clear()
    found = bp.precision(printing)(f32(0.5))
    jax.effects_barrier()
    assert len(SEEN) == 2 and not any(r.opaque for r in found)
    SEEN.clear()
    errors = jax.jit(bp.precision(printing).errors)(f32(0.5))["s"]
    jax.effects_barrier()
    assert len(SEEN) == 2 and errors.value.shape == (2,)


def called(x):
    double = jax.pure_callback(lambda v: 2 * v, jax.ShapeDtypeStruct(x.shape, x.dtype), lax.stop_gradient(x))
    return jnp.sum(bp.name(double * x, "y"))


def mapped(x):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    of_part = lambda x: lax.psum(jnp.sum(jnp.sin(x)), "i")
    return jax.shard_map(of_part, mesh=mesh, in_specs=jax.P("i"), out_specs=jax.P())(bp.name(x, "y"))


@pytest.mark.parametrize(
    "f, why", [(called, "it calls back into Python"), (mapped, "it runs on several devices")], ids=["call", "devices"]
)
def test_what_has_no_float64_beside_it_is_said(f, why):
    x = f32([0.5, 1.5])
    found = bp.precision(f)(x)
    assert {r.opaque for r in found} == {"", why} and f"({why}): behind it errors are counted anew" in str(found)
    with pytest.raises(TypeError, match=rf"at .*test_following.py:\d+.* cannot be run in float64: {why}"):
        bp.precision(f).errors(x)


def test_an_if_beside_a_shard_map_is_refused():
    with pytest.raises(NotImplementedError, match="a shard_map in it"):
        bp.precision(lambda x: mapped(x) if x[0] > 0 else x[0])(f32([0.5, 1.5]))
