"""The transformations: JAX's signatures, JAX's results, JAX's behaviour at the edges."""

from __future__ import annotations

import jax
import jax.experimental.ode
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.autodiff import backward_pass
from funcbp.cotangents import Zero

x23 = jnp.linspace(-1.0, 2.0, 6).reshape(2, 3)
z23 = lax.complex(x23, x23 + 1)
float0 = jax.dtypes.float0


def assert_same(got, want, tolerance=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        assert getattr(g, "weak_type", False) == getattr(w, "weak_type", False)
        if g.dtype != float0:
            np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


def mixed(x):
    """A function with some of everything."""
    return jnp.tanh(x * x.sum()) @ jnp.sin(x).T


def scalar(x):
    return mixed(x).sum()


# --- arguments ----------------------------------------------------------------------


CASES = {
    "one argument": (lambda t: t.grad(scalar)(x23)),
    "argnums int": (lambda t: t.grad(lambda a, b: (a * jnp.sin(b)).sum(), 1)(x23, x23 + 1)),
    "argnums negative": (lambda t: t.grad(lambda a, b: (a * jnp.sin(b)).sum(), -1)(x23, x23 + 1)),
    "argnums tuple": (lambda t: t.grad(lambda a, b: (a * jnp.sin(b)).sum(), (1, 0))(x23, x23 + 1)),
    "keywords": (lambda t: t.grad(lambda a, *, b: (a * b).sum())(x23, b=x23)),
    "has_aux": (lambda t: t.grad(lambda a: (a.sum(), {"twice": a * 2}), has_aux=True)(x23)),
    "value has_aux": (lambda t: t.value_and_grad(lambda a: (a.sum(), {"twice": a * 2}), has_aux=True)(x23)),
    "pytree": (lambda t: t.grad(lambda p: (p["a"][0] * p["b"]).sum())({"a": [x23, x23], "b": x23 + 1})),
    "ignored": (lambda t: t.grad(lambda a, b: b.sum(), (0, 1))(x23, x23)),
    "constant": (lambda t: t.grad(lambda a: 3.0)(x23)),
    "empty tree": (lambda t: t.grad(lambda a, b: b.sum(), (0, 1))({}, x23)),
    "allow_int": (lambda t: t.grad(lambda a, i: (a * i).sum(), (0, 1), allow_int=True)(x23, 3)),
    "allow_int bool": (lambda t: t.grad(lambda a, i: jnp.where(i, a, 0).sum(), (0, 1), allow_int=True)(x23, x23 > 0)),
    "python float": (lambda t: t.grad(lambda a: jnp.sin(a) ** 2)(1.0)),
    "weak times strong": (lambda t: t.grad(lambda a, b: a * b.sum(), (0, 1))(1.0, x23)),
    "numpy": (lambda t: t.grad(lambda a: (a**2).sum())(np.arange(3.0))),
    "float32": (lambda t: t.grad(lambda a: (a**2).sum())(jnp.arange(3, dtype=jnp.float32))),
    "bfloat16": (lambda t: t.grad(lambda a: (a**2).sum())(jnp.arange(3, dtype=jnp.bfloat16))),
    "holomorphic": (lambda t: t.grad(lambda z: (z**3).sum(), holomorphic=True)(z23)),
    "complex": (lambda t: t.grad(lambda z: (jnp.abs(z) ** 2 * jnp.real(z) + jnp.imag(z * z)).sum())(z23)),
    "jacrev": (lambda t: t.jacrev(mixed)(x23)),
    "jacrev trees": (lambda t: t.jacrev(lambda a, b: {"u": a * b.sum(), "v": b[0]}, (0, 1))(x23, x23)),
    "jacrev int": (
        lambda t: t.jacrev(lambda a, i: {"u": a[i], "v": a}, (0, 1), allow_int=True)(x23, jnp.array([1, 0, 1]))
    ),
    "jacrev aux": (lambda t: t.jacrev(lambda a: (a * 2, a), has_aux=True)(x23)),
    "order 2": (lambda t: t.grad(lambda x: t.grad(scalar)(x).sum())(x23)),
    "order 3": (lambda t: t.grad(lambda x: t.grad(lambda x: t.grad(scalar)(x).sum())(x).sum())(x23)),
    "random": (lambda t: t.grad(lambda a: (jax.random.normal(jax.random.key(0), a.shape) * a).sum())(x23)),
    "dropout": (
        lambda t: t.grad(lambda a: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, (2, 3)), a, 0).sum())(x23)
    ),
    "key as argument": (
        lambda t: t.grad(lambda a, k: (jax.random.normal(k, a.shape) * a).sum())(x23, jax.random.key(1))
    ),
    "closed over": (lambda t: t.grad(lambda a: t.grad(lambda b: (a * b * b).sum())(a).sum())(x23)),
    "associative scan": (lambda t: t.grad(lambda a: lax.associative_scan(jnp.multiply, a).sum())(x23)),
    "odeint": (
        lambda t: t.grad(
            lambda a: jax.experimental.ode.odeint(lambda y, s, k: -k * y, a[0], jnp.array([0.0, 1.0]), a[1]).sum()
        )(x23)
    ),
    "in a loop over steps": (
        lambda t: lax.scan(lambda a, _: (a - 0.1 * t.grad(scalar)(a), t.value_and_grad(scalar)(a)), x23, None, 3)
    ),
    "vmap": (lambda t: jax.vmap(t.grad(lambda a: jnp.sin(a).sum()))(x23)),
    "vmap of jit of vmap": (lambda t: jax.vmap(jax.jit(t.grad(lambda a: jax.vmap(jnp.sin)(a).sum())))(x23)),
    "jvp": (lambda t: jax.jvp(t.grad(scalar), (x23,), (x23 + 1,))),
    "hessian": (lambda t: jax.jacfwd(t.jacrev(scalar))(x23)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_jax(case):
    assert_same(CASES[case](bp), CASES[case](jax), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_equals_jax_under_jit(case):
    assert_same(jax.jit(lambda: CASES[case](bp))(), jax.jit(lambda: CASES[case](jax))(), 1e-10)


def test_each_reverse_mode_differentiates_the_other():
    want = jax.grad(lambda x: jax.grad(scalar)(x).sum())(x23)
    assert_same(jax.grad(lambda x: bp.grad(scalar)(x).sum())(x23), want, 1e-11)
    assert_same(bp.grad(lambda x: jax.grad(scalar)(x).sum())(x23), want, 1e-11)


def test_hvp():
    want = jax.jvp(jax.grad(scalar), (x23,), (x23 + 1,))[1]
    assert_same(bp.hvp(scalar, (x23,), (x23 + 1,)), want, 1e-11)
    two = lambda a, b: (jnp.sin(a) * b**2).sum()
    want = jax.jvp(jax.grad(two, (0, 1)), (x23, x23), (x23, x23 + 1))[1]
    assert_same(bp.hvp(two, (x23, x23), (x23, x23 + 1)), want, 1e-11)


def test_eval_shape():
    got = jax.eval_shape(bp.grad(scalar), jax.ShapeDtypeStruct((2, 3), jnp.float64))
    assert (got.shape, got.dtype) == ((2, 3), jnp.float64)


# --- vjp and its pullback -----------------------------------------------------------


def test_arguments_and_integers_returned_unchanged():
    f = lambda x, n: (x, x, n, n * 2)
    outs, pullback = bp.vjp(f, x23, jnp.int32(2))
    want_outs, want_pullback = jax.vjp(f, x23, jnp.int32(2))
    ct = (x23, x23 + 1, np.zeros((), float0), np.zeros((), float0))
    assert_same(outs, want_outs)
    assert_same(pullback(ct), want_pullback(ct))


def test_aux():
    out, pullback, aux = bp.vjp(lambda x: (x * 2, {"sum": x.sum(), "name": 3}), x23, has_aux=True)
    assert_same(aux["sum"], x23.sum())
    assert aux["name"] == 3 and isinstance(aux["sum"], jax.Array)
    assert_same(pullback(out)[0], 2 * out)


def test_aux_whose_nodes_compute():
    """A node's own code may compute, or ask JAX for its trace, as Flax's variables do: each half in the right trace."""

    @jax.tree_util.register_pytree_node_class
    class Doubled:
        def __init__(self, half):
            self.value = 2 * jnp.asarray(half)

        def tree_flatten(self):
            return (self.value / 2,), None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(*leaves)

    grad, aux = bp.grad(lambda x: (jnp.sin(x), Doubled(x)), has_aux=True)(0.5)
    assert (float(grad), float(aux.value)) == (pytest.approx(np.cos(0.5)), 1.0)


def test_pullback_crosses_jit():
    forward = jax.jit(lambda x: bp.vjp(mixed, x))
    backward = jax.jit(lambda pullback, ct: pullback(ct))
    y, pullback = forward(x23)
    assert_same(backward(pullback, y), jax.vjp(mixed, x23)[1](y))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(pullback))


def test_pullback_is_linear_and_reusable():
    y, pullback = bp.vjp(mixed, x23)
    twice = jax.tree.map(lambda c: 2 * c, pullback(y))
    assert_same(pullback(2 * y), twice)
    assert_same(jax.vmap(pullback)(jnp.stack([y, 2 * y]))[0][1], twice[0])


@pytest.mark.parametrize(
    ("ct", "message"),
    [
        (jnp.ones(3), "The cotangent of an output of type float64[2, 2] must have that shape and dtype"),
        (jnp.ones((2, 2), jnp.float32), "must have that shape and dtype, and is float32[2, 2]"),
        ((jnp.ones((2, 2)),), "The cotangent must have the structure of the output"),
    ],
)
def test_wrong_cotangents(ct, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
        bp.vjp(mixed, x23)[1](ct)


# --- python control flow ------------------------------------------------------------


def branching(x):
    if x[0, 0] > 0:
        return x.sum() * 3
    table = {2: 5.0}
    for _ in range(int(x[1, 2])):
        x = x * x
    return x.sum() * table[int(x.shape[0])] * float(lax.stop_gradient(x[0, 0]) < 5)


def test_python_control_flow_on_values():
    assert_same(bp.grad(branching)(x23), jax.grad(branching)(x23))
    assert_same(bp.grad(branching)(x23 + 3), jax.grad(branching)(x23 + 3))


def test_control_flow_on_values_fails_under_jit_as_in_jax():
    for t in (bp, jax):
        with pytest.raises(jax.errors.TracerBoolConversionError):
            jax.jit(t.grad(branching))(x23)


def test_numpy_refuses_recorded_values_as_in_jax():
    for t in (bp, jax):
        with pytest.raises(jax.errors.TracerArrayConversionError):
            t.grad(lambda x: np.sin(np.asarray(x)).sum())(x23)


# --- what is not needed is not done -------------------------------------------------


def counted(monkeypatch):
    """Names of the primitives whose backward rule was called."""
    called = []
    original = backward_pass.apply_rule

    def counting(state, entry, saved, ct):
        called.append(entry.primitive)
        return original(state, entry, saved, ct)

    monkeypatch.setattr(backward_pass, "apply_rule", counting)
    return called


def test_frozen_leaves_call_no_rule(monkeypatch):
    called = counted(monkeypatch)
    frozen = {"a": x23, "b": x23}

    def loss(w, frozen):
        h = jnp.exp(frozen["a"]) @ jnp.cos(frozen["b"]).T
        h = h + lax.stop_gradient(jnp.tanh(w)).sum()
        return (h * w.sum()).sum()

    jax.make_jaxpr(bp.grad(loss))(x23, frozen)
    assert set(called) == {"mul", "reduce_sum"}


def test_what_does_not_reach_the_output_calls_no_rule(monkeypatch):
    called = counted(monkeypatch)
    jax.make_jaxpr(bp.grad(lambda x: (jnp.exp(x), jnp.sin(x))[1].sum()))(x23)
    assert sorted(called) == ["reduce_sum", "sin"]


def test_frozen_operand_has_no_product():
    """With the input frozen, a dense layer's backward pass has one contraction, not two."""
    dots = lambda f, *args: str(jax.make_jaxpr(f)(*args)).count("dot_general")
    dense = lambda w, x: (x @ w).sum()
    assert dots(bp.grad(dense), x23.T, x23) == 2  # forward, and the weights' cotangent
    assert dots(bp.grad(dense, (0, 1)), x23.T, x23) == 3


def stacked_bytes(f, *args):
    """Bytes that the forward loop of f's gradient stacks for the backward one."""
    eqns = [e for e in jax.make_jaxpr(bp.grad(f))(*args).eqns if e.primitive.name == "scan"]
    forward, backward = eqns
    read = {id(v) for v in backward.invars}
    return sum(v.aval.size * v.aval.dtype.itemsize for v in forward.outvars if id(v) in read)


def test_scan_stacks_nothing_that_does_not_change():
    """Weights, and what follows from them, are kept once; inputs that are stacked already are not stacked again."""

    def f(w, xs):
        def body(c, x):
            return jnp.sin(c) * jnp.exp(w) * x, None

        return lax.scan(body, jnp.ones(3), xs)[0].sum()

    # cos(c) and sin(c) * exp(w) [for x's cotangent: frozen here], so at most two vectors of 3 a step
    assert stacked_bytes(f, jnp.ones(3), jnp.ones((5, 3))) <= 2 * 5 * 3 * 8


def test_scan_keeps_only_what_the_backward_body_reads():
    f = lambda x: lax.scan(lambda c, _: (c + x, jnp.sin(lax.stop_gradient(c))), x, None, 5)[0].sum()
    assert stacked_bytes(f, jnp.ones(3)) == 0


# --- derivatives of the user's own --------------------------------------------------


@jax.custom_vjp
def with_bwd(x):
    return x * 2


with_bwd.defvjp(lambda x: (x * 2, x), lambda x, ct: (ct * 7 * x,))


@jax.custom_jvp
def with_tangent(x, y):
    return x * y


@with_tangent.defjvp
def _(primals, tangents):
    """Deliberately not the derivative."""
    (x, y), (dx, dy) = primals, tangents
    return x * y, 11 * dx * jnp.sin(y) - dy * x.sum()


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint, jax.vmap], ids=["eager", "jit", "remat", "vmap"]
)
def test_custom_derivatives_are_honoured(wrap):
    for t in (bp, jax):
        np.testing.assert_allclose(t.grad(lambda x: wrap(with_bwd)(x).sum())(x23), 7 * x23)
    got = bp.grad(lambda x, y: wrap(with_tangent)(x, y).sum(), (0, 1))(x23, x23 + 1)
    assert_same(got, jax.grad(lambda x, y: wrap(with_tangent)(x, y).sum(), (0, 1))(x23, x23 + 1))
    assert not np.allclose(got[0], x23 + 1)


def test_custom_derivatives_in_loops_and_twice():
    f = lambda x: lax.scan(lambda c, u: (with_tangent(c, u) + with_bwd(u), c), x[0], x)[0].sum()
    assert_same(bp.grad(f)(x23), jax.grad(f)(x23))
    assert_same(bp.grad(lambda x: bp.grad(f)(x).sum())(x23), jax.grad(lambda x: jax.grad(f)(x).sum())(x23), 1e-11)


def test_custom_jvp_with_one_argument_frozen_and_symbolic_zeros():
    @jax.custom_jvp
    def f(x, y):
        return x * y

    def tangent(primals, tangents):
        (x, y), (dx, dy) = primals, tangents
        assert type(dy).__name__ == "SymbolicZero"
        return x * y, 3 * dx * y

    f.defjvp(tangent, symbolic_zeros=True)
    assert_same(bp.grad(lambda x: f(x, x23).sum())(x23), jax.grad(lambda x: f(x, x23).sum())(x23))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_custom_jvp_with_one_argument_frozen(wrap):
    """Its tangent is zeros, made where the function is called."""
    for f in (
        lambda x: with_tangent(x, x23).sum(),
        lambda x: with_tangent(x23, x).sum(),
        lambda x: jnp.logaddexp(x, 0.0).sum(),
    ):
        assert_same(wrap(bp.grad(f))(x23), jax.grad(f)(x23))
        assert_same(
            wrap(bp.grad(lambda x, f=f: bp.grad(f)(x).sum()))(x23), jax.grad(lambda x, f=f: jax.grad(f)(x).sum())(x23)
        )


def test_custom_vjp_with_symbolic_zeros_and_integers():
    @jax.custom_vjp
    def f(x, n):
        return x * 2, x * 3

    def fwd(x, n):
        assert x.perturbed and not n.perturbed
        return (x.value * 2, x.value * 3), None

    def bwd(res, ct):
        assert type(ct[1]).__name__ == "SymbolicZero"
        return ct[0] * 5, None

    f.defvjp(fwd, bwd, symbolic_zeros=True)
    for t in (bp, jax):
        np.testing.assert_allclose(t.grad(lambda x: f(x, 3)[0].sum())(x23), 5 * jnp.ones((2, 3)))


# --- options ------------------------------------------------------------------------


def test_a_rule_can_be_replaced():
    straight_through = bp.rule(lambda res, ct, perturbed, **_: (ct,), save=bp.rules.NOTHING)
    backward = bp.Backward(rules={lax.sign_p: straight_through})
    assert_same(backward.grad(lambda x: jnp.sign(x).sum())(x23), jnp.ones((2, 3)))
    assert_same(jax.jit(backward.grad(lambda x: lax.map(jnp.sign, x).sum()))(x23), jnp.ones((2, 3)))
    assert_same(bp.grad(lambda x: jnp.sign(x).sum())(x23), jnp.zeros((2, 3)))
    assert backward == bp.Backward(rules={lax.sign_p: straight_through}) != bp.Backward()


def test_options_print_as_what_makes_them():
    double = bp.rule(lambda res, ct, perturbed, **_: (2 * ct,), save=bp.rules.NOTHING)
    assert repr(bp.Backward()) == "Backward()"
    assert repr(bp.Backward(residuals=bp.Budget(fraction=0.3), on_missing="jax")) == (
        "Backward(residuals=Budget(fraction=0.3), on_missing='jax')"
    )
    assert repr(bp.Backward(rules={jnp.sin: double})) == "Backward(rules={sin: rule(bwd=<lambda>, save=NOTHING)})"
    weights = {"w": x23, "b": None}
    assert repr(bp.Backward(feedback=weights)) == "Backward(feedback={'w': float64[2,3], 'b': None})"
    assert repr(bp.rules.TABLE[lax.tanh_p]).startswith("rule(bwd=tanh_bwd, ")
    assert repr(bp.rules.TABLE[lax.dot_general_p]) == "rule(bwd=dot_general_bwd, save=other_operands)"
    pullback = bp.vjp(lambda x: jnp.sum(jnp.tanh(x)), x23)[1]
    assert repr(pullback) == "Pullback(float64[] -> float64[2, 3]; 2 entries, 48 bytes saved)"


def test_options_are_replaced_and_joined():
    double = bp.rule(lambda res, ct, perturbed, **_: (2 * ct,), save=bp.rules.NOTHING)
    edit = lambda ct, cts: 3 * ct
    a, b = bp.Backward(rules={lax.sin_p: double}, residuals="inputs"), bp.Backward(edits={"h": edit})
    assert a.replace(rules={}) == bp.Backward(residuals="inputs")
    assert a.replace(residuals="min_cut") == bp.Backward(rules={lax.sin_p: double}) != a
    assert a | b == b | a == bp.Backward(rules={lax.sin_p: double}, edits={"h": edit}, residuals="inputs")
    f = lambda x: jnp.sin(bp.name(5 * x, "h"))
    assert (a | b).grad(f)(0.7) == 5 * 3 * 2
    assert a | a == a | bp.Backward() == a
    with pytest.raises(ValueError, match=r"has residuals='inputs', the other residuals='needed': which holds\?"):
        a | bp.Backward(residuals="needed")
    with pytest.raises(ValueError, match=r"Both backward passes have edits for 'h': which holds\?"):
        b | bp.Backward(edits={"h": lambda ct, cts: ct})
    with pytest.raises(ValueError, match=r"Both backward passes have rules for sin: which holds\?"):
        a | bp.Backward(rules={lax.sin_p: bp.rule(lambda res, ct, perturbed, **_: (ct,))})
    with pytest.raises(TypeError, match="unsupported operand"):
        a | {}
    assert bp.Backward(feedback={"w": x23}) != bp.Backward(feedback={"w": x23 + 0}) != bp.Backward()
    assert bp.Backward(feedback={"w": x23}) == bp.Backward(feedback={"w": x23})


def test_a_wrong_rule_is_named():
    wrong = bp.rule(lambda res, ct, perturbed, **_: (ct[0],), save=bp.rules.NOTHING)
    with pytest.raises(
        TypeError, match=r"cotangent for primal 0 is float64\[3\], and the primal is float64\[2, 3\]"
    ) as e:
        bp.Backward(rules={lax.sin_p: wrong}).grad(lambda x: lax.sin(x).sum())(x23)
    assert any("`sin`" in note and "test_transformations.py" in note for note in e.value.__notes__)


def test_options_are_checked():
    with pytest.raises(ValueError, match="on_missing"):
        bp.Backward(on_missing="warn")
    with pytest.raises(TypeError, match=r"funcbp\.rule"):
        bp.Backward(rules={lax.sin_p: jnp.cos})


# --- errors -------------------------------------------------------------------------


def unbounded(x):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1].sum()


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_while_names_the_line_and_the_remedy(wrap):
    with pytest.raises(bp.MissingRuleError, match=r"`while` at .*test_transformations.py:\d+.*lax\.scan") as e:
        bp.grad(wrap(unbounded))(x23)
    assert "unbounded" in str(e.value)


def test_while_that_is_not_needed_is_fine():
    assert_same(bp.grad(lambda x: (unbounded(x), x.sum())[1])(x23), jnp.ones((2, 3)))
    counter = lambda x: lax.while_loop(lambda c: c < lax.stop_gradient(x.max()), lambda c: c + 1, 0.0)
    assert_same(bp.grad(lambda x: (counter(x) * x).sum())(x23), jax.grad(lambda x: (counter(x) * x).sum())(x23))


AROUND_AN_UNBOUNDED_LOOP = {
    "scan": lambda x: lax.scan(lambda c, _: (c + unbounded(c * x), None), 1.0, None, 2)[0],
    "while": lambda x: lax.while_loop(lambda c: c < 3, lambda c: c + 1 + unbounded(x * 0), 0.0),
    "cond": lambda x: lax.cond(x.sum() > 0, unbounded, jnp.sum, x),
    "checkpoint": jax.checkpoint(unbounded),
}


@pytest.mark.parametrize("f", AROUND_AN_UNBOUNDED_LOOP.values(), ids=AROUND_AN_UNBOUNDED_LOOP)
def test_a_loop_inside_of_what_is_not_needed_is_fine(f):
    assert_same(bp.grad(lambda x: (f(x), x.sum())[1])(x23), jnp.ones((2, 3)))
    with pytest.raises(bp.MissingRuleError, match=r"`while` at .*test_transformations.py:\d+.*\(unbounded\)"):
        bp.grad(f)(x23)


BAD = {
    "not a function": (lambda: bp.grad(3), TypeError, "Expected a function"),
    "vector output": (
        lambda: bp.grad(lambda x: x)(x23),
        TypeError,
        r"scalar-output functions. Output had shape: \(2, 3\)",
    ),
    "tree output": (lambda: bp.grad(lambda x: (x.sum(),))(x23), TypeError, "scalar-output functions"),
    "text output": (lambda: bp.grad(lambda x: "a")(x23), TypeError, "not a valid JAX type"),
    "integer output": (lambda: bp.grad(lambda x: 3)(x23), TypeError, "real-valued outputs"),
    "complex output": (lambda: bp.grad(lambda x: lax.complex(x, x).sum())(x23), TypeError, "holomorphic=True"),
    "integer input": (lambda: bp.grad(lambda x: x * 1.0)(3), TypeError, "allow_int=True"),
    "text input": (lambda: bp.grad(lambda x: 1.0)("a"), TypeError, "not a valid JAX type"),
    "real holomorphic": (lambda: bp.grad(lambda x: x.sum(), holomorphic=True)(x23), TypeError, "inputs with complex"),
    "argnums too large": (lambda: bp.grad(lambda x: x.sum(), 3)(x23), ValueError, "at least 4 positional"),
    "argnums one too large": (lambda: bp.grad(lambda x: x.sum(), 1)(x23), ValueError, "at least 2 positional"),
    "argnums twice": (lambda: bp.grad(lambda x, y: x.sum(), (0, -2))(x23, x23), ValueError, "twice"),
    "argnums text": (lambda: bp.grad(lambda x: x.sum(), "x")(x23), TypeError, "argnums must be"),
    "aux missing": (
        lambda: bp.grad(lambda x: x.sum(), has_aux=True)(x23),
        TypeError,
        "must return a two-element tuple",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_sentences(case):
    call, kind, text = BAD[case]
    with pytest.raises(kind, match=text):
        call()


def test_zero_has_no_truth():
    with pytest.raises(TypeError, match="ambiguous"):
        bool(Zero)


def test_tracers_do_not_leak():
    with jax.checking_leaks():
        bp.grad(scalar)(x23)
        jax.jit(bp.grad(scalar))(x23)
        # a custom rule inside keeps the trace in which its program was made
        jax.jit(lambda x: bp.vjp(jax.checkpoint(jax.nn.relu), x)[1](1.0))(1.0)


@jax.custom_vjp
def both(x, y):
    return x * y, x + y


both.defvjp(lambda x, y: (both(x, y), (x, y)), lambda res, ct: (ct[0] * res[1] + ct[1], ct[0] * res[0] + ct[1]))


@pytest.mark.parametrize("n", [3, np.array(3)], ids=["int", "numpy"])
def test_an_integer_primal_stays_a_number_under_jit(n):
    f = lambda x, n: sum(x**i for i in range(n))  # 1 + x + x²
    assert jax.jit(lambda x: bp.vjp(f, x, n)[1](1.0)[0])(2.0) == 5
    assert jax.jit(lambda x: bp.grad(f, (0, 1), allow_int=True)(x, n)[0])(2.0) == 5
    assert jax.jit(lambda x, y: bp.grad(lambda x, i: x[i] ** 2, (0, 1), allow_int=True)(x, n)[0][n] + y)(
        jnp.arange(4.0), 1.0
    ) == 7  # fmt: skip


def test_rules_by_function_and_for_what_is_no_operation():
    sevenfold = bp.rule(lambda res, ct, perturbed, **params: (7 * ct,))
    assert bp.Backward(rules={jnp.tanh: sevenfold}).grad(jnp.tanh)(0.5) == 7
    with pytest.raises(TypeError, match=r"'silu', which is not one operation.*jax\.make_jaxpr shows.*use edits"):
        bp.Backward(rules={jax.nn.silu: sevenfold})
    with pytest.raises(TypeError, match="'tanh', which is not one operation"):
        bp.Backward(rules={"tanh": sevenfold})


@pytest.mark.parametrize("op", [bp.ops.logistic, bp.ops.relu, jax.nn.relu],
    ids=["ops.logistic", "ops.relu", "jax.nn.relu"])  # fmt: skip
def test_rules_for_functions_with_a_derivative_of_their_own(op):
    """Called plainly, under jit, and inside a loop, where only a program is left of the function."""
    doubled = bp.rule(lambda y, ct, perturbed: (2 * y * ct,), save=bp.rules.OUTPUT)
    backward = bp.Backward(rules={op: doubled})
    loop = lambda x: lax.scan(lambda c, _: (op(c), None), x, None, 2)[0]
    y, z = float(op(0.5)), float(op(op(0.5)))
    for wrap in (lambda f: f, jax.jit):
        np.testing.assert_allclose(wrap(backward.grad(op))(0.5), 2 * y)
        np.testing.assert_allclose(wrap(backward.grad(jax.jit(op)))(0.5), 2 * y)
        np.testing.assert_allclose(wrap(backward.grad(loop))(0.5), 4 * y * z)
    np.testing.assert_allclose(bp.grad(op)(0.5), jax.grad(op)(0.5))
    (row,) = (r for r in bp.trace(op, backward=backward)(0.5) if r.kind == "replaced")
    assert row.cotangent == 1 and row.value == y
    assert backward.coverage()[bp.jaxpr.written_where(op)] == "replaced"


def test_a_rule_for_a_function_of_several_results():
    own = lambda x, y: ((x * y, x + y), (x, y))
    backs = {
        "keeps its primals": bp.rule(lambda res, ct, perturbed: (ct[0] * 10 * res[1], ct[1])),
        "runs its own": bp.rule(lambda res, ct, perturbed: (ct[0] * 10 * res[1], ct[1]), fwd=own),
    }
    for rule in backs.values():
        backward = bp.Backward(rules={both: rule})
        f = lambda x, y: (lambda product, total: product + 3 * total)(*both(x, y))
        assert backward.grad(f, (0, 1))(2.0, 5.0) == (50, 3)


@pytest.mark.parametrize("static", ["a word", jnp.float32, None])
def test_what_is_no_array_stays_as_it_is_among_what_a_rule_keeps(static):
    def back(res, ct, perturbed, **_):
        assert res[1] is static
        return [7 * res[0] * ct]

    backward = bp.Backward(rules={lax.sin_p: bp.rule(back, fwd=lambda x, **_: (lax.sin(x), (x, static)))})
    looped = lambda x: lax.scan(lambda c, _: (lax.sin(c), None), x, length=1)[0]
    for f in (lax.sin, jax.jit(lax.sin), jax.checkpoint(lax.sin), looped):
        assert backward.grad(f)(2.0) == jax.jit(backward.grad(f))(2.0) == 14


def test_a_leaf_that_has_no_derivative_is_named():
    with pytest.raises(TypeError, match=r"got int32 at layer/count\. .* split off its parameters"):
        bp.grad(lambda p: p["layer"]["w"] ** 2)({"layer": {"count": jnp.int32(1), "w": jnp.float32(2.0)}})
