"""What equations have inside, and programs run and read equation by equation."""

from __future__ import annotations

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from funcbp import jaxpr as jx
from funcbp.jaxpr import Kind

X = jnp.arange(1.0, 5.0)


@jax.custom_jvp
def own_tangent(x):
    return x * 2


@jax.custom_vjp
def own_pullback(x):
    return x * 2


@jax.custom_batching.custom_vmap
def own_batching(x):
    return x * 2


own_tangent.defjvp(lambda xs, ts: (own_tangent(*xs), ts[0] * 2))
own_pullback.defvjp(lambda x: (x * 2, None), lambda _, ct: (ct * 2,))
own_batching.def_vmap(lambda size, batched, x: (x * 2, True))


def on_each_device(x):
    mesh = jax.make_mesh((1,), ("i",))
    return jax.shard_map(lambda x: x * 2, mesh=mesh, in_specs=jax.P(), out_specs=jax.P())(x)


def kernel(x):
    pl = pytest.importorskip("jax.experimental.pallas")

    def body(x, y):
        y[...] = x[...] * 2

    return pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


multiplied = lambda a, b: a * b * 1.0  # no reduction that JAX has a primitive of its own for
KINDS = {
    "jit": (jax.jit(lambda x: x * 2), Kind.JIT, 1),
    "checkpoint": (jax.checkpoint(lambda x: x * 2), Kind.REMAT, 1),
    "custom_jvp": (own_tangent, Kind.CUSTOM, 1),
    "custom_vjp": (own_pullback, Kind.CUSTOM, 1),
    "custom_vmap": (own_batching, Kind.CALL, 1),
    "composite": (lax.composite(lambda x: x * 2, "test.twice"), Kind.CALL, 1),
    "scan": (lambda x: lax.scan(lambda c, y: (c + y, c), 0.0, x)[1], Kind.SCAN, 1),
    "while": (lambda x: lax.while_loop(lambda x: x[0] < 9, lambda x: x * 2, x), Kind.WHILE, 2),
    "cond": (lambda x: lax.cond(True, lambda x: x * 2, lambda x: x * 3, x), Kind.COND, 2),
    "switch": (lambda x: lax.switch(2, [jnp.sin, jnp.cos, jnp.tan], x), Kind.COND, 3),
    "shard_map": (on_each_device, Kind.MAPPED, 1),
    "reduce": (lambda x: lax.reduce(x, 1.0, multiplied, (0,)), Kind.OTHER, 1),
    "reduce of a scalar": (lambda x: lax.reduce(x.sum(), 1.0, multiplied, ()), Kind.OTHER, 1),
    "scatter": (lambda x: x.at[0].add(1.0), Kind.OTHER, 1),
    "kernel": (kernel, Kind.OTHER, 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_an_equation_is_of_one_kind(name):
    f, kind, count = KINDS[name]
    found = [jx.inside_of(eqn) for eqn in jax.make_jaxpr(f)(X).eqns]
    assert [(i.kind, len(i.programs)) for i in found if i.programs] == [(kind, count)]


def test_a_plain_equation_has_nothing_inside():
    (eqn,) = jax.make_jaxpr(jnp.sin)(X).eqns
    assert jx.inside_of(eqn) == (Kind(0), ())


# --- running ----------------------------------------------------------------------------------------------------------


def everything(x):
    """All that runs programs, with a result that depends on the order of the steps."""
    x = own_pullback(jax.jit(own_tangent)(jax.checkpoint(jnp.sin)(x)))
    last, ys = lax.scan(lambda c, y: (c * 0.5 + y, c), 0.0, x, reverse=True)
    n, _ = lax.while_loop(lambda c: c[1] < 10.0, lambda c: (c[0] + 1, c[1] * 2), (0, 1.5))
    none = lax.scan(lambda c, y: (c, y), 0.0, jnp.zeros((0, 2)))[1]
    return lax.cond(n > 2, jnp.cos, jnp.sin, last), ys, n, none


class Entering(jx.Visitor):
    """Goes into calls, loops and branches, and notes the operations and what they are in."""

    enters = jx.CALLS | jx.CONTROL

    def __init__(self):
        self.seen, self.steps = [], []

    def equation(self, eqn, args):
        self.seen.append((eqn.primitive.name, *self.steps))
        return super().equation(eqn, args)

    @contextmanager
    def within(self, eqn, kind):
        self.seen.append(f"in {kind.name}")
        yield
        self.seen.append(f"out of {kind.name}")

    @contextmanager
    def step(self, i):
        self.steps.append(i)
        yield
        self.steps.pop()


def test_what_is_entered_gives_what_jax_gives():
    program = jax.make_jaxpr(everything)(X)
    for visitor in (jx.Visitor(), Entering()):
        for got, wanted in zip(jx.run(program, [X], visitor), everything(X), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-12)
            assert got.dtype == wanted.dtype


def test_a_visitor_meets_operations_steps_and_what_is_entered_in_order():
    def f(x):
        y = jax.jit(jnp.sin)(x)
        return lax.scan(lambda c, _: (jnp.exp(c), None), y, None, length=2, reverse=True)[0]

    visitor = Entering()
    jx.run(jax.make_jaxpr(f)(1.0), [1.0], visitor)
    assert visitor.seen == ["in JIT", ("sin",), "out of JIT", "in SCAN", ("exp", 1), ("exp", 0), "out of SCAN"]


def test_a_while_asks_once_more_than_it_steps():
    visitor = Entering()
    program = jax.make_jaxpr(lambda x: lax.while_loop(lambda x: x < 4.0, lambda x: x * 2, x))(1.0)
    assert jx.run(program, [1.0], visitor) == [4.0]
    assert visitor.seen[1:-1] == [("lt", 0), ("mul", 0), ("lt", 1), ("mul", 1), ("lt", 2)]


def test_values_may_be_anything():
    class Degrees(jx.Visitor):
        """Holds the highest power of the input that a value of sums and products has."""

        enters = jx.CALLS

        def constant(self, x):
            return 0

        def equation(self, eqn, args):
            return [sum(args) if eqn.primitive.name == "mul" else max(args)]

    program = jax.make_jaxpr(lambda x: jax.jit(lambda x: x * x + 2.0)(x) * x + x)(1.0)
    assert jx.run(program, [1], Degrees()) == [3]


def test_run_takes_programs_open_and_closed_with_their_constants():
    f = lambda x: [x * np.arange(4.0)]
    program = jx.trace(f, [jax.typeof(X)])
    closed = jax.make_jaxpr(f)(X)
    for p in (program, closed):
        np.testing.assert_array_equal(jx.run(p, [X])[0], X * np.arange(4.0))


# --- reading ----------------------------------------------------------------------------------------------------------


def nested(x):
    def step(c, y):
        inner = lax.scan(lambda d, _: (jnp.exp(d), None), c, None, length=5)[0]
        return inner + y, None

    with jax.named_scope("outer"):
        y = jax.jit(lambda x: jnp.sin(jnp.cos(x)))(x)
    total = lax.scan(step, 0.0, y)[0]
    return lax.cond(total > 0, jnp.tan, lambda t: jnp.sinh(t), total)


def test_equations_know_how_often_they_run_and_where_they_are():
    found = {o.eqn.primitive.name: o for o in jx.equations(jax.make_jaxpr(nested)(X))}
    assert "jit" not in found  # its equations stand in its place
    assert {n: found[n].times for n in ("cos", "sin", "exp", "add", "tan")} == {
        **{"cos": 1, "sin": 1, "tan": 1},
        **{"exp": 4 * 5, "add": 4},
    }
    assert (found["cos"].path, found["sin"].path) == ((0,), (1,))
    assert found["exp"].path == (2, 0, 0)  # the first of the loop that is first in the loop that is third
    assert found["cos"].scope.split("/")[0] == "outer"
    assert len(found["exp"].around) == 2 and not found["exp"].opened
    branches = sorted(found[n].path[-2:] for n in ("sinh", "tan"))
    assert branches == [(0, 0), (1, 0)]
    (place,) = {jx.user_place(found[n].source) for n in ("cos", "sin")}
    assert place[0].endswith("test_interpreter.py") and place[1] > nested.__code__.co_firstlineno


def test_equations_go_into_what_they_are_told_to():
    program = jax.make_jaxpr(nested)(X)
    only_calls = [o.eqn.primitive.name for o in jx.equations(program, jx.programs_of(Kind.JIT))]
    assert [n for n in only_calls if n in ("cos", "sin", "exp", "scan", "tan", "cond")] == [
        "cos",
        "sin",
        "scan",
        "cond",
    ]
    nowhere = [o.eqn.primitive.name for o in jx.equations(program, lambda inside: ())]
    assert nowhere[0] == "jit" and "cos" not in nowhere


def test_a_call_without_a_line_is_read_at_its_callers():
    program = jax.make_jaxpr(lambda x: jax.nn.relu(x))(X)
    lines = {o.line for o in jx.equations(program)}
    assert len(lines) == 1 and "test_interpreter.py" in lines.pop()
