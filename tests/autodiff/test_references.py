"""Mutable references: what is written and read is differentiated, wherever the reference goes.

Each program is a function of a vector; its gradient is compared with central differences of its value, and its Hessian
with central differences of its gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

X = np.array([0.3, 0.7, -0.2, 1.1])
PROGRAMS = {}


def program(f):
    PROGRAMS[f.__name__] = f
    return f


def differences(f, x, h=1e-5):
    moved = lambda s: [np.asarray(f(x + s * h * e)) for e in np.eye(len(x))]
    return np.stack([(a - b) / (2 * h) for a, b in zip(moved(1), moved(-1), strict=True)], -1)


@program
def indexed(x):
    r, i = jax.new_ref(jnp.zeros((3, 4))), jnp.argmax(x)
    r[0], r[1, 2] = x, x[0] ** 2
    r[2, 1:3] = x[:2] * x[1]
    r[:, 0] += r[:, i] * x[3]
    r[jnp.array([0, 2]), jnp.array([1, 1])] *= x[2:]
    old = jax.ref.swap(r, (1, slice(0, 2)), x[1:3] * 3)
    jax.ref.addupdate(r, (2, i), old[0])
    return jnp.sum(jnp.sin(jax.freeze(r)) * np.arange(12.0).reshape(3, 4))


@program
def python_loop(x):
    r = jax.new_ref(0.0)
    for k in range(4):
        if k != 2:
            r[...] += jnp.sin(x[k]) * r[...] + x[k]
    return r[...] * r[...]


@program
def on_devices(x):
    """One made in a `shard_map`, and one that is handed to it."""

    def f(r, x):
        inner = jax.new_ref(x)
        inner[...] = jnp.sin(inner[...]) * r[...]
        r[...] += inner[...] * x
        return inner[...]

    r, mesh = jax.new_ref(x**2), jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    y = jax.shard_map(f, mesh=mesh, in_specs=(jax.P("i"), jax.P("i")), out_specs=jax.P("i"))(r, x)
    return jnp.sum(y * r[...])


@program
def overwritten(x):
    r = jax.new_ref(x)
    y = r[0] ** 2
    r[...] = jnp.ones(4)
    return y * jnp.sum(r[...]) + r[1]


@program
def scanned(x):
    r, rows = jax.new_ref(x), jax.new_ref(jnp.outer(x, x))

    def body(c, row):
        row[...] *= c
        r[0] = jnp.sin(r[0]) + c * row[1]
        local = jax.new_ref(c)
        local[...] *= r[1]
        return local[...], row[0]

    c, ys = lax.scan(body, 2.0, rows, reverse=True)
    return c + ys[0] + jnp.sum(jnp.sin(rows[...])) * r[0]


@program
def loops_and_branches(x):
    r, n = jax.new_ref(x), jax.new_ref(0)
    lax.while_loop(lambda i: i < 2, lambda i: n.addupdate(2) or i + 1, 0)

    def step(i, c):
        def write():
            r[i] = jnp.sin(r[i - 1]) * c

        lax.cond(i > 1, write, lambda: None)
        return lax.switch(i - 1, [lambda: c * r[1], lambda: c + r[2], lambda: c])

    return lax.fori_loop(1, 4, step, x[3]) * jnp.sum(r[...] ** 2) * n[...].astype(x.dtype)


@program
def called(x):
    r, q = jax.new_ref(x), jax.new_ref(jnp.zeros(2))

    @jax.jit
    def call(a, s):
        a[...] = jnp.sin(a[...]) * s
        q[0] += a[0]
        return a[2]

    @jax.checkpoint
    def region(y):
        r[1] += jnp.sin(y)
        local = jax.new_ref(y)
        local[...] *= r[1]
        return jnp.sin(local[...]) * q[0]

    return call(r, 2.0) * call(r, x[0]) + region(x[1]) * region(x[2]) + r[1]


@program
def mapped(x):
    def f(v):
        r = jax.new_ref(jnp.sin(v))
        lax.fori_loop(0, 2, lambda i, _: r.__setitem__((), r[...] * v), None)
        return r[...]

    return jnp.sum(jax.vmap(f)(x) ** 2)


@jax.custom_vjp
def double(v):
    r = jax.new_ref(v)
    r[...] *= 2.0
    return jax.freeze(r)


def double_fwd(v):
    r = jax.new_ref(v)
    r[...] *= 2.0
    return r[...] * 1.0, r[...]


double.defvjp(double_fwd, lambda res, g: (2.0 * g,))


@program
def in_custom_functions(x):
    c, _ = lax.scan(lambda c, v: (jnp.sin(double(c) * v), None), x[0], x)
    r = jax.new_ref(x)
    r[...] = jax.nn.silu(r[...])
    return c * jax.checkpoint(double)(r[1]) + jax.jit(double)(x[2])


def test_a_loop_goes_on_by_what_its_body_writes():
    def f(x):
        n = jax.new_ref(0)
        lax.while_loop(lambda i: n[...] < 3, lambda i: n.addupdate(2) or i + 1, 0)
        return x ** n[...]

    assert bp.grad(f)(2.0) == 4 * 2.0**3


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("name", PROGRAMS)
def test_gradient_and_hessian(name):
    f = PROGRAMS[name]
    gradient = jax.jit(bp.grad(f))
    np.testing.assert_allclose(gradient(X), differences(jax.jit(f), X), rtol=1e-6, atol=1e-8)
    hessian = jax.jit(bp.jacrev(bp.grad(f)))(X)
    np.testing.assert_allclose(hessian, differences(gradient, X), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("called", lambda f: bp.grad(f)(X)),
        ("called", lambda f: bp.grad(jax.jit(f))(X)),
        ("called", lambda f: jax.jit(bp.Backward(residuals="inputs").grad(f))(X)),
        ("scanned", lambda f: jax.jit(bp.Backward(outside_loops=True).grad(f))(X)),
        ("scanned", lambda f: jax.jit(jax.vmap(bp.grad(f)))(np.stack([X, X]))[1]),
    ],
    ids=["eager", "inner jit", "inputs", "regions", "vmap"],
)
def test_same_in_every_way_of_running(name, gradient):
    f = PROGRAMS[name]
    np.testing.assert_allclose(gradient(f), jax.jit(bp.grad(f))(X), rtol=1e-10)


# --- references from outside ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_no_derivative_goes_through_a_reference_from_outside(wrap):
    r = jax.new_ref(0.0)

    def f(x):
        def body(c, _):
            r[...] += lax.stop_gradient(jnp.sin(x))
            return c * r[...], None

        return lax.scan(body, x, None, length=2)[0]

    # x (r + s) (r + 2 s), s = sin x held; the second run finds what the first one left
    s = np.sin(0.7)
    for start in (0.0, 2 * s):
        np.testing.assert_allclose(wrap(bp.grad(f))(0.7), (start + s) * (start + 2 * s), rtol=1e-12)
    np.testing.assert_allclose(r[...], 4 * s, rtol=1e-12)


def test_a_region_writes_once_and_reads_what_it_read():
    r = jax.new_ref(2.0)

    def f(x):
        def region(v):
            y = jnp.sin(v) * r[...]
            r[...] += 1.0
            return y

        y = jax.checkpoint(region)(x)
        r[...] *= 10.0
        return y

    np.testing.assert_allclose(bp.grad(f)(0.7), 2 * np.cos(0.7), rtol=1e-12)
    assert r[...] == 30.0


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_differentiated_value_does_not_leave_by_a_reference(wrap):
    r = jax.new_ref(0.0)
    with pytest.raises(ValueError, match="written into a mutable reference that was not made in"):
        bp.grad(wrap(lambda x: (r.__setitem__((), x), x)[1]))(0.7)
    with pytest.raises(ValueError, match="returned a mutable reference"):
        bp.grad(lambda x: (x, jax.new_ref(x)), has_aux=True)(0.7)


def test_a_reference_that_asks_for_no_gradient_takes_differentiated_values():
    r = jax.new_ref(1.0, kind="no_grad_no_remat")

    @jax.checkpoint
    def f(x):
        r[...] += x
        return x * r[...]

    np.testing.assert_allclose(bp.grad(f)(3.0), 4.0)
    assert r[...] == 4.0


# --- plumbing ---------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def stash(r, v):
    return v


def stash_bwd(r, g):
    r[...] += g
    return None, g


stash.defvjp(lambda r, v: (v, r), stash_bwd)
sin = np.sin(0.7), np.cos(0.7)
PLUMBED = {  # the function of a reference and x; what is added to the reference; the gradient
    "straight": (lambda r, x: jnp.sin(stash(r, jnp.sin(x))), np.cos(sin[0]), np.cos(sin[0]) * sin[1]),
    "scan": (
        lambda r, x: lax.scan(lambda c, _: (jnp.sin(stash(r, c)), None), x, None, length=2)[0],
        np.cos(sin[0]) + np.cos(sin[0]) * sin[1],
        np.cos(sin[0]) * sin[1],
    ),
    "cond": (
        lambda r, x: lax.cond(x > 0, lambda v: jnp.sin(stash(r, 2 * v)), jnp.cos, x),
        np.cos(1.4),
        2 * np.cos(1.4),
    ),
    "checkpoint": (
        lambda r, x: jax.checkpoint(lambda v: jnp.sin(stash(r, jnp.sin(v))))(x),
        np.cos(sin[0]),
        np.cos(sin[0]) * sin[1],
    ),
}


@pytest.mark.parametrize("wrap", ["eager", "inner jit", "jit"])
@pytest.mark.parametrize("name", PLUMBED)
def test_a_backward_rule_writes_into_a_reference(name, wrap):
    f, added, gradient = PLUMBED[name]
    inner, outer = (jax.jit if wrap == w else lambda f: f for w in ("inner jit", "jit"))
    r = jax.new_ref(1.0)
    np.testing.assert_allclose(outer(bp.grad(inner(f), 1))(r, 0.7), gradient, rtol=1e-12)
    np.testing.assert_allclose(r[...], 1.0 + added, rtol=1e-12)


@jax.custom_vjp
def first_times(r, v):
    return r[0] * v


first_times.defvjp(lambda r, v: (r[0] * v, (r[...], v)), lambda res, g: (g * res[1] * np.eye(4)[0] * 10, g * res[0][0]))


def test_a_custom_function_reads_a_reference():
    f = lambda x: (lambda r: first_times(r, x[1]) + jax.jit(first_times)(r, x[2]))(jax.new_ref(x))
    np.testing.assert_allclose(bp.grad(f)(X), [10 * (X[1] + X[2]), X[0], X[0], 0], rtol=1e-12)
    looped = lambda x: (lambda r: lax.fori_loop(0, 2, lambda i, c: first_times(r, c), x[1]))(jax.new_ref(x))
    np.testing.assert_allclose(bp.grad(looped)(X), [20 * X[0] * X[1], X[0] ** 2, 0, 0], rtol=1e-12)


# --- accumulation -----------------------------------------------------------------------------------------------------


def test_cotangents_are_added_into_references():
    weights, batches = X, np.arange(12.0).reshape(3, 4)

    @jax.jit
    def accumulate(weights):
        total = jax.new_ref(jnp.zeros(4))

        def step(_, x):
            loss, pullback = bp.vjp(lambda w, x, c: c * jnp.sum(jnp.sin(w * x)), weights, x, 2.0)
            found = pullback.with_refs(total, jax.ad.DontWant(), jax.ad.GradValue())(jnp.ones_like(loss))
            assert isinstance(found[0], jax.ad.GradRef) and isinstance(found[1], jax.ad.DidntWant)
            return None, found[2]

        _, values = lax.scan(step, None, batches)
        return total[...], values

    total, values = accumulate(weights)
    np.testing.assert_allclose(total, sum(2 * x * np.cos(weights * x) for x in batches), rtol=1e-12)
    np.testing.assert_allclose(values, np.sin(weights * batches).sum(1), rtol=1e-12)


def test_a_primal_may_be_a_reference():
    r, total = jax.new_ref(2.0), jax.new_ref(1.0)

    def f(r):
        y = r[...] ** 2
        r[...] = 3 * y
        return y + r[...]

    y, pullback = bp.vjp(f, r)
    assert (y, r[...]) == (16.0, 12.0)
    pullback.with_refs(total)(1.0)
    assert total[...] == 1.0 + 16.0
    with pytest.raises(ValueError, match=r"pullback\.with_refs"):
        pullback(1.0)
    with pytest.raises(ValueError, match="float64"):
        pullback.with_refs(jax.new_ref(jnp.zeros(2)))
    with pytest.raises(TypeError, match="with respect to a mutable reference"):
        bp.grad(f)(r)
    with pytest.raises(ValueError, match="passed twice"):
        bp.vjp(lambda a, b: a[...] * b[...], r, r)


# --- functions with a derivative of their own -------------------------------------------------------------------------


@jax.custom_vjp
def scaled(r, v):
    """r v, whose author says that it goes back as v̄ = 5 r ȳ; and r becomes 2 r."""
    y = r[...] * v
    r[...] *= 2
    return y


def scaled_fwd(r, v):
    was = r[...]
    return scaled(r, v), was


scaled.defvjp(scaled_fwd, lambda was, ct: (None, 5 * was * ct))


@jax.custom_jvp
def mixed(r, v):
    """r v, whose author says that it moves by 3 r v̇ + 11 ṙ v; and r becomes r + v, which he says moves by 7 v̇."""
    y = r[...] * v
    r[...] += v
    return y


@mixed.defjvp
def mixed_jvp(primals, tangents):
    (r, v), (dr, dv) = primals, tangents
    dy = 3 * r[...] * dv + 11 * dr[...] * v
    dr[...] = 7 * dv
    return mixed(r, v), dy


OWN = {  # the function; and by hand, for one call of it: value, derivative, what r is then, its derivative
    scaled: lambda r, dr, v, dv: (r * v, 5 * r * dv, 2 * r, dr),
    mixed: lambda r, dr, v, dv: (r * v, 3 * r * dv + 11 * dr * v, r + v, 7 * dv),
}
AROUND = {
    "plain": (1, lambda f: f),
    "jit": (1, jax.jit),
    "scan": (2, lambda f: lambda v: lax.scan(lambda c, _: (f(c), None), v, length=2)[0]),
    "loop": (2, lambda f: lambda v: lax.fori_loop(0, 2, lambda i, c: f(c), v)),
    "cond": (1, lambda f: lambda v: lax.cond(v > 0, f, jnp.sin, v)),
    "region": (1, jax.checkpoint),
}


@pytest.mark.slow(once=["own", "around"])
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("around", AROUND)
def test_a_function_with_its_own_derivative_reads_and_writes_references(own, around):
    """One made in the differentiated function, which holds a differentiated value."""
    times, wrap = AROUND[around]

    def f(v):
        r = jax.new_ref(v**2)
        return jnp.sin(wrap(lambda v: own(r, v))(v)) * r[...]

    x = 0.7
    r, dr, y, dy = x**2, 2 * x, x, 1.0
    for _ in range(times):
        y, dy, r, dr = OWN[own](r, dr, y, dy)
    np.testing.assert_allclose(bp.grad(f)(x), np.cos(y) * dy * r + np.sin(y) * dr, rtol=1e-12)


def test_one_from_outside_is_read_and_written_by_a_function_with_its_own_derivative():
    r = jax.new_ref(2.0)
    f = lambda v: lax.scan(lambda c, _: (jnp.sin(scaled(r, c)), None), v, length=2)[0]
    first = np.sin(2 * 0.7)
    want = np.cos(4 * first) * 5 * 4 * np.cos(2 * 0.7) * 5 * 2
    np.testing.assert_allclose(jax.jit(bp.grad(f))(0.7), want, rtol=1e-12)
    assert r[...] == 8


# --- references that an operation hands its own program ---------------------------------------------------------------


def doubling(x_ref, y_ref):
    y_ref[...] = 2 * x_ref[...]


def kernel(x):
    pl = pytest.importorskip("jax.experimental.pallas")
    return pl.pallas_call(doubling, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


def updated(x):
    pl = pytest.importorskip("jax.experimental.pallas")
    return pl.run_state(lambda ref: doubling(ref, ref))(x)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["eager", "jit", "checkpoint"])
@pytest.mark.parametrize("f, name", [(kernel, "pallas_call"), (updated, "run_state")])
def test_a_kernel_is_refused_by_its_name_and_runs_on_what_is_not_differentiated(f, name, wrap):
    x = np.arange(3.0)
    with pytest.raises(bp.MissingRuleError, match=f"no derivative for `{name}`"):
        bp.grad(lambda x: jnp.sum(wrap(f)(x)))(x)
    np.testing.assert_array_equal(bp.grad(lambda y: jnp.sum(wrap(lambda y: y * f(x))(y)))(np.ones(3)), 2 * x)

    def among_references(y):
        held = jax.new_ref(y)
        held[...] *= f(x)
        return jnp.sum(held[...] * y)

    np.testing.assert_array_equal(bp.grad(wrap(among_references))(np.ones(3)), 4 * x)


WRITES = {
    "a carry": lambda value, c: (value * 0.5 + c, c * value),
    "a carry that another does not enter": lambda value, c: (value * c, jnp.sin(c)),
    "what stays as it is": lambda value, c: (value + jnp.sin(c), c),
}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["eager", "jit", "checkpoint"])
@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_loop_writes_a_reference_that_the_body_of_another_makes(length, name, wrap):
    """JAX 0.12 loses what goes through the reference: docs/beside_jax.md."""

    def step(c, _):
        held = jax.new_ref(1.0 + 0.0 * c)

        def write(c, _):
            held[...], c = WRITES[name](held[...], c)
            return c, None

        lax.scan(write, c, length=length)
        return jnp.sin(c) + held[...], None

    f = wrap(lambda x: lax.scan(step, x, length=2)[0])
    differences = (f(0.7 + 1e-6) - f(0.7 - 1e-6)) / 2e-6
    np.testing.assert_allclose(bp.grad(f)(0.7), differences, rtol=1e-8)
    np.testing.assert_allclose(jax.grad(bp.Backward().attach(f))(0.7), differences, rtol=1e-8)
    slope = (bp.grad(f)(0.7 + 1e-6) - bp.grad(f)(0.7 - 1e-6)) / 2e-6
    np.testing.assert_allclose(bp.grad(bp.grad(f))(0.7), slope, rtol=1e-7)
