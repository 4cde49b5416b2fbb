"""What suites that nobody here wrote have found: one right value for each kind of fault."""

from __future__ import annotations

import dataclasses
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P, export, lax
from jax._src import core, dtypes
from jax._src.lax import eval_jaxpr
from jax.experimental import scheduling_groups
from jax.sharding import AbstractMesh, AxisType, use_abstract_mesh

import funcbp as bp

X = np.array([0.5, -1.0, 2.0])


@pytest.mark.parametrize("behind", [(False, True), (True, False), (False, False), True], ids=str)
def test_operands_of_a_region_kept_from_the_compilers_eyes(behind):
    """`jax.checkpoint(prevent_cse=)` says it of each operand; constants and cotangents come beside them."""
    layer = jax.checkpoint(lambda w, x: jnp.sin(x @ w + jnp.arange(3.0)), prevent_cse=behind)
    loss = lambda w, x: jnp.sum(layer(w, layer(w, x)) ** 2)
    w = np.outer(X, X) / 3
    barriers = lambda f: re.findall(r"optimization_barrier ([^:]*):", jax.jit(f).lower(w, X).as_text())
    counts = [[b.count("%") for b in barriers(t.grad(loss, (0, 1)))] for t in (bp, jax)]
    assert counts[0] == counts[1]
    for f in loss, lambda w, x: jnp.sum(bp.grad(loss, 1)(w, x) ** 2):
        np.testing.assert_allclose(bp.grad(f)(w, X), jax.grad(f)(w, X), rtol=1e-12)
    marked = bp.grad(lambda x: jnp.sum(layer(bp.feedback(jnp.asarray(w), 2 * w), x)))(jnp.asarray(X))
    np.testing.assert_allclose(marked, np.cos(X @ w + np.arange(3.0)) @ (2 * w).T, rtol=1e-12)


def test_booleans_that_are_python_objects():
    f = lambda p: lax.cond(p, lambda: 1.0, lambda: 2.0)
    value, ct = bp.value_and_grad(f, allow_int=True)(True)
    assert (value, ct.dtype, ct.shape) == (1.0, jax.dtypes.float0, ())
    assert bp.vjp(lambda p, x: jnp.where(p, x**2, x), True, 3.0)[1](1.0)[1] == 6.0


def test_numbers_put_back_into_a_pullback():
    @jax.jit
    def forward():
        out, pullback = bp.vjp(lambda x, y: x * y, 2.0, 3.0)
        pullback.args_res = [None, None]
        return out, pullback

    @jax.jit
    def back(pullback):
        pullback.args_res = [2.0, 3.0]
        return pullback(1.0)

    out, pullback = forward()
    assert (out, back(pullback)) == (6.0, (3.0, 2.0))


def test_a_product_of_a_real_and_a_complex_matrix_gives_no_warning():
    y = X + 1j * X[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = bp.grad(lambda x: lax.dot(x, y).real)(jnp.asarray(X))
    np.testing.assert_allclose(got, y.real)
    assert got.dtype == X.dtype


def test_a_program_run_by_the_primitive_that_runs_one():
    program = jax.make_jaxpr(lambda x: [x**3])(X)
    name = "call_jaxpr" if hasattr(eval_jaxpr, "remat") else "jaxpr"
    cubes = lambda x: jnp.sum(eval_jaxpr.eval_jaxpr_p.bind(x, **{name: program})[0])
    for f in cubes, jax.jit(cubes):
        np.testing.assert_allclose(bp.grad(f)(X), 3 * X**2)


def test_cotangents_of_integers_whose_number_is_left_open():
    f = lambda i, x: bp.vjp(lambda i, x: (2 * i, x**2), i, x)
    back = lambda i, x, ct: f(i, x)[1]((np.int32(0) * i, ct))
    n = export.symbolic_shape("n")
    types = [jax.ShapeDtypeStruct(n, d) for d in (np.int32, np.float32, np.float32)]
    program = export.export(jax.jit(back))(*types)
    x, i = X.astype(np.float32), np.arange(3, dtype=np.int32)
    of_i, of_x = program.call(i, x, x)
    assert of_i.dtype == jax.dtypes.float0 and of_i.shape == (3,)
    np.testing.assert_allclose(of_x, 2 * x**2)


def test_a_weight_that_knows_of_no_mesh():
    """Its cotangent is a product over a divided axis, and is the same on all devices."""
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    x = jax.ShapeDtypeStruct((32, 8), np.float64, sharding=jax.NamedSharding(mesh, P("data")))
    with use_abstract_mesh(mesh):
        (ours,), (theirs,) = (
            jax.make_jaxpr(t.grad(lambda w, x: jnp.sum(lax.dot(x, w))))(np.ones((8, 4)), x).out_avals for t in (bp, jax)
        )
    assert ours == theirs


def largest_dtype():
    """A dtype of numbers of which two cotangents give the larger one: how 8-bit libraries keep their scales."""

    class Rules:
        allow_conversion = True
        tangent_dtype = staticmethod(lambda dtype: dtype)
        physical_element_aval = staticmethod(lambda dtype: core.ShapedArray((), np.float32))
        replicate_trailing_dims = staticmethod(lambda ctx, x, aval: x)
        logical_sharding = staticmethod(lambda aval, sharding: sharding)
        physical_sharding = staticmethod(lambda aval, sharding: sharding)
        zero = staticmethod(lambda dtype: lax.convert_element_type(np.float32(0), dtype))
        add = staticmethod(lambda dtype, x, y: lax.convert_element_type(jnp.maximum(*map(number, (x, y))), dtype))

    @dataclasses.dataclass(frozen=True)
    class Largest(dtypes.ExtendedDType):
        name = "largest"
        type = jax.dtypes.extended
        _rules = Rules

    number = lambda x: lax.convert_element_type(x, np.float32)
    return Largest()


def test_a_dtype_whose_author_says_what_a_sum_is():
    dtype = largest_dtype()

    @jax.custom_vjp
    def keep(x, scale):
        return x

    keep.defvjp(lambda x, scale: (x, x), lambda x, ct: (ct, lax.convert_element_type(jnp.abs(x), dtype)))

    def f(x, scale):
        scale = lax.convert_element_type(scale, dtype)
        x = keep(keep(x, scale) * np.float32(0.5), scale)
        return lax.scan(lambda c, _: (keep(c, scale) * np.float32(3), None), x, None, length=2)[0]

    for t in jax, bp:  # outside of programs arrays of a dtype of one's own take more than these rules
        assert jax.jit(t.grad(f, (0, 1)))(np.float32(-2), np.float32(0)) == (4.5, 3.0)  # the values: -2, -1, -1, -3


def explicit(spec):
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    return mesh, jax.ShapeDtypeStruct((8,), np.float64, sharding=jax.NamedSharding(mesh, spec))


@pytest.mark.parametrize("spec", [P(), P("data"), P(reduced={"data"})], ids=str)
def test_cotangents_over_an_explicit_mesh_have_the_types_that_theirs_have(spec):
    """Also the one that a gradient begins with; of what is reduced, the parts of the devices are summed."""
    mesh, x = explicit(spec)
    divided = explicit(P("data"))[1]
    scattered = lambda x: lax.broadcast_in_dim(x, (2, 8), (1,), out_sharding=P("data", None))
    fs = [lambda x, y: jnp.sum(x), lambda x, y: jnp.sum(x * 2.0)]
    fs += [lambda x, y: jnp.sum(lax.cond(y.sum() > 0, lambda: x, lambda: jnp.zeros_like(x)))]
    fs += [lambda x, y: jnp.sum(x + y)] if spec == P() else [lambda x, y: jnp.sum(scattered(x))] if spec.reduced else []
    with use_abstract_mesh(mesh):
        for f in fs:
            ours, theirs = (jax.make_jaxpr(t.grad(f, (0, 1)))(x, divided).out_avals for t in (bp, jax))
            assert ours == theirs


def test_units_of_a_jacobian_inside_a_map():
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
    f = lambda t: jax.shard_map(t.jacrev(jnp.sin), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    ours, theirs = (jax.make_jaxpr(f(t))(np.ones(8)).out_avals for t in (bp, jax))
    assert ours == theirs
    mesh, x = explicit(P("data"))
    f = lambda t: t.jacrev(lambda x: 2 * jnp.sin(x))
    with use_abstract_mesh(mesh):
        ours, theirs = (jax.make_jaxpr(f(t))(x).out_avals for t in (bp, jax))
    assert [(t.shape, t.dtype) for t in ours] == [(t.shape, t.dtype) for t in theirs]


def test_a_call_that_tells_the_compiler_of_itself():
    """`jax.experimental.scheduling_groups`, in loops and regions too."""
    f = scheduling_groups.scheduling_group(name="a")(lambda x: jnp.sin(x) * x)
    once = np.cos(X) * X + np.sin(X)
    for g in f, jax.jit(f), jax.checkpoint(f), lambda x: lax.scan(lambda c, _: (f(c), None), x, None, length=1)[0]:
        np.testing.assert_allclose(bp.vjp(g, X)[1](np.ones(3))[0], once, rtol=1e-12)


def test_a_forward_rule_that_is_an_object():
    """Or one that closes over a number which has a name that JAX's checks use."""

    class Forward:
        def __call__(self, x):
            return x**2, x

    num_errs = 1
    for forward in Forward(), lambda x: (x ** (1 + num_errs), x):
        f = jax.custom_vjp(lambda x: x**2)
        f.defvjp(forward, lambda x, ct: (3 * x * ct,))
        for g in f, jax.jit(f):
            assert bp.grad(g)(2.0) == 6.0


def test_a_map_closes_over_what_it_does_not_use():
    """Its zero cotangent has the type that it has outside of the map."""
    x = jnp.arange(4.0)
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,))

    @jax.jit
    def f(w, x):
        w = lax.with_sharding_constraint(w, jax.NamedSharding(mesh, P()))
        both = lambda x: bp.value_and_grad(lambda w, x: jnp.sum(x**2))(w, x)
        return jax.shard_map(both, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False)(x)

    value, ct = f(jax.device_put(x, jax.NamedSharding(mesh, P())), x)
    assert value == 14.0 and not ct.any() and ct.shape == (4,)


def test_the_message_about_while_loops_has_what_people_look_for():
    f = lambda x: lax.while_loop(lambda y: y < 3, jnp.exp, x)
    with pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work for lax\.while_loop"):
        bp.grad(f)(0.1)


def test_64_bits_that_are_switched_on_inside():
    """Its rules run with 64 bits, though the caller has none: what they write would be cut to 32."""

    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (square(x), x), lambda x, ct: (2 * x * ct,))

    def body(c, _):
        with jax.enable_x64(True):
            d = jnp.exp(jnp.asarray(c, jnp.float64))
            d = square(d) + lax.cond(d > 1, lambda d: d * jnp.linspace(0, 2, 3)[1:2].sum(), lambda d: d, d)
        return lax.convert_element_type(jnp.sin(d), c.dtype), d

    x, one, eps = np.float32(-1), jnp.ones(()), 1e-6
    with jax.enable_x64(False):
        f = lambda x: lax.reduce_sum(lax.scan(body, x, None, length=2)[1], (0,))
        (ct,), jacobian = bp.vjp(f, x)[1](one), jax.jit(bp.jacrev(f))(x)
        assert ct.dtype == jacobian.dtype == np.float32
        assert bp.grad(lambda x: lax.convert_element_type(f(x), np.float32))(x) == ct == jacobian

    def by_hand(x):
        d = np.exp(x) + np.exp(x) ** 2
        return d + np.exp(np.sin(d)) + np.exp(np.sin(d)) ** 2

    np.testing.assert_allclose(ct, (by_hand(-1 + eps) - by_hand(-1 - eps)) / (2 * eps), rtol=1e-5)


def test_zeros_among_cotangents_over_an_explicit_mesh():
    """What is the same on all devices because it was summed has cotangents that were not, zeros among them."""
    mesh, x = explicit(P(reduced={"data"}))
    fs = [lambda x: x[jnp.array([1, 1, 3])], lambda x: jnp.max(x, axis=0), lambda x: jnp.split(x, 2)[0]]
    fs += [lambda x: jnp.ones(3)]
    with use_abstract_mesh(mesh):
        for f in filter(runs_on(x), fs):
            (ct,) = jax.make_jaxpr(gradient_of_sum(f))(x).out_avals
            assert ct.sharding.spec.unreduced == {"data"} and not ct.sharding.spec.reduced


def gradient_of_sum(f):
    return bp.grad(lambda x: jnp.sum(f(x)))


def runs_on(x):
    """Whether this JAX runs a function of such an argument; 0.10.2 has not all of them."""

    def runs(f):
        try:
            return jax.eval_shape(f, x) is not None
        except (ValueError, jax.errors.JAXTypeError):
            return False

    return runs


def test_sorting_and_unstacking_what_is_divided():
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    x = jax.ShapeDtypeStruct((4, 3), np.float64, sharding=jax.NamedSharding(mesh, P("data", None)))
    with use_abstract_mesh(mesh):
        for f in lambda x: jnp.sort(x, axis=1)[:, 0], lambda x: sum(jnp.unstack(x, axis=1)[1:]):
            (ct,) = jax.make_jaxpr(gradient_of_sum(f))(x).out_avals
            assert (ct.shape, ct.sharding) == (x.shape, x.sharding)


@pytest.mark.parametrize(
    "within", [lambda f: f, jax.jit, lambda f: jax.jit(lambda x: jax.jit(f)(x) + 1)], ids=["plain", "jit", "twice"]
)
def test_the_operation_that_makes_a_nan_is_named(within):
    """By the error that `jax.debug_nans` has, also where it is compiled."""
    f = within(lambda x: jnp.sqrt(x) * x)
    with jax.debug_nans(True):
        assert bp.grad(f)(4.0) == 3.0
        for bad in -1.0, 0.0:  # the value, and only its derivative
            with pytest.raises(FloatingPointError, match=r"invalid value \((nan|inf)\) encountered in (sqrt|mul)"):
                bp.grad(f)(bad)


@pytest.mark.parametrize("within", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_a_maximum_that_begins_from_minus_infinity_is_no_fault(within):
    """What is saved may be infinite where `jax.debug_infs` is on; what comes out may not."""
    x = np.array([1.0, 3.0, 2.0])
    largest = lambda x: lax.scan(lambda c, x: (lax.max(c, x), None), np.float64(-np.inf), x)[0]
    with jax.debug_infs(True):
        for f in within(largest), within(lambda x: jnp.max(x, initial=-np.inf)):
            np.testing.assert_array_equal(bp.grad(f)(x), [0.0, 1.0, 0.0])
            with pytest.raises(FloatingPointError, match="inf"):
                bp.grad(f)(x - np.inf)


def test_a_rule_that_returns_another_dtype_than_its_primal_has():
    """It is handed on, summed as its author says, to the rule that makes a number of it."""
    dtype = largest_dtype()
    scale, number = jax.custom_vjp(lambda x: x), jax.custom_vjp(lambda x: x)
    scale.defvjp(lambda x: (x, None), lambda _, ct: (lax.convert_element_type(ct, dtype),))
    number.defvjp(lambda x: (x, None), lambda _, ct: (lax.convert_element_type(ct, np.float32),))

    @jax.jit
    def f(x):
        x = number(x)
        return scale(x) + np.float32(2) * scale(x)

    for t in jax, bp:
        assert t.grad(f)(np.float32(3)) == 2.0  # the larger of 1 and 2
